"""What a hyper-gradient costs, and how exact it is: time and memory as ratios to plain training steps, and to `higher`.

    python benchmarks/hypergradient.py                      # all rows, one thread, about a quarter of an hour
    python benchmarks/hypergradient.py --genes 2000 --rounds 1 --steps 4
    python benchmarks/hypergradient.py --rows fidelity trunk

Variants take turns within one run; time is CPU time of the process, and a ratio is that of the least times over rounds,
with that of the medians behind it. Memory is the peak resident size of one process per variant above its size before.
`higher` is optional: pip install "agl-sc[bench]".
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch

from agl_sc.core.gate import n_active, scaled_rank, soft_top_k
from agl_sc.core.hypergradient import Adam, Parameters, call, hypergradient, warm_state
from agl_sc.core.losses import pearson_loss, weighted_mean
from agl_sc.core.network import Network

N_TARGETS, CUTOFF, LR = 50, 0.5, 3e-5
VARIANTS = ("plain", "exact", "no_hessian", "higher")
HAS_HIGHER = importlib.util.find_spec("higher") is not None


@dataclass(frozen=True)
class Problem:
    """A network with a training and a validation batch; ``genes`` computes the first genes only."""

    network: torch.nn.Module
    optimizer: torch.optim.Optimizer
    inputs: tuple[torch.Tensor, torch.Tensor]
    expression: torch.Tensor
    targets: torch.Tensor
    cut: bool

    @property
    def n_active(self) -> int:
        n_auxiliary = self.expression.shape[1] - N_TARGETS
        return N_TARGETS + n_active(CUTOFF, n_auxiliary) if self.cut else self.expression.shape[1]

    def weights(self, cutoff: torch.Tensor, n_genes: int) -> torch.Tensor:
        rank = scaled_rank(self.expression.shape[1] - N_TARGETS).to(cutoff.dtype)[: n_genes - N_TARGETS]
        return torch.cat([rank.new_ones(N_TARGETS), soft_top_k(cutoff, rank)])

    def leading(self, values: Parameters) -> Parameters:
        """With the head cut to the active genes."""
        return {k: v[: self.n_active] if self.cut and k.startswith("head.") else v for k, v in values.items()}


def resnet(n_genes: int, *, batch: int = 64, px: int = 64) -> Problem:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False, num_classes=n_genes, zero_init_last=False).train()
    inputs = torch.randn(batch, 3, px, px), torch.randn(batch, 3, px, px)
    return problem(network, inputs, n_genes, cut=False)


def trunk(n_genes: int, *, batch: int) -> Problem:
    torch.manual_seed(0)
    network = Network(1280, n_genes, rank=64, dropout=0.0)
    torch.nn.init.normal_(network.outer.weight, std=0.05)
    return problem(network, (torch.randn(batch, 1280), torch.randn(batch, 1280)), n_genes, cut=True)


def problem(network: torch.nn.Module, inputs: tuple[torch.Tensor, torch.Tensor], n_genes: int, *, cut: bool) -> Problem:
    """With moments as a training under way has them."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    for parameter in network.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    batch = len(inputs[0])
    return Problem(network, optimizer, inputs, torch.randn(batch, n_genes), torch.randn(batch, N_TARGETS), cut)


def plain(of: Problem, n_steps: int) -> None:
    """Training steps on all genes."""
    weights = of.weights(torch.tensor(CUTOFF), of.expression.shape[1])
    for _ in range(n_steps):
        loss = weighted_mean(pearson_loss(of.network(of.inputs[0]), of.expression), weights)
        of.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        of.optimizer.step()


def ours(of: Problem, n_steps: int, *, hessian: bool) -> None:
    n_genes, live = of.n_active, dict(of.network.named_parameters())
    state = warm_state(of.optimizer, live)
    hypergradient(
        lambda at, sizes: torch.split(
            pearson_loss(call(of.network, at, of.inputs[0]), of.expression[:, :n_genes]), sizes
        ),
        lambda at: pearson_loss(call(of.network, at, of.inputs[1])[:, :N_TARGETS], of.targets).mean(),
        of.leading({name: value.detach() for name, value in live.items()}),
        scalars=torch.tensor(CUTOFF),
        weights=lambda cutoff: of.weights(cutoff, n_genes),
        optimizer=Adam(LR),
        state=type(state)(of.leading(state.mean), of.leading(state.square), state.n_steps),
        inner_steps=n_steps,
        hessian=hessian,
    )


def released(of: Problem, n_steps: int) -> None:
    """The way of the authors' code: `higher`, all genes, reverse mode through the stored unroll."""
    import higher

    cutoff = torch.tensor(CUTOFF, requires_grad=True)
    with higher.innerloop_ctx(of.network, of.optimizer, copy_initial_weights=False) as (network, optimizer):
        for _ in range(n_steps):
            weights = of.weights(cutoff, of.expression.shape[1])
            optimizer.step(weighted_mean(pearson_loss(network(of.inputs[0]), of.expression), weights))
        value = pearson_loss(network(of.inputs[1])[:, :N_TARGETS], of.targets).mean()
    torch.autograd.grad(value, cutoff)


RUN: dict[str, Callable[[Problem, int], None]] = {
    "plain": plain,
    "exact": lambda of, n: ours(of, n, hessian=True),
    "no_hessian": lambda of, n: ours(of, n, hessian=False),
    "higher": released,
}
