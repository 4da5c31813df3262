"""What a hyper-gradient costs, and how exact it is: time and memory as ratios to plain training steps, and to `higher`.

    python benchmarks/hypergradient.py                      # all rows, one thread, about a quarter of an hour
    python benchmarks/hypergradient.py --genes 2000 --rounds 1 --steps 4
    python benchmarks/hypergradient.py --rows fidelity trunk

Variants take turns within one run; time is CPU time of the process, and a ratio is that of the least times over rounds,
with that of the medians behind it. Memory is the peak resident size of one process per variant above its size before.
`higher` is optional: pip install "agl-sc[bench]".

The floor, where matrix products are all that costs: a plain step is 3 of them (forward, and to weights and inputs on the way
back). Without the Hessian a second cotangent goes back, 5/3 of a step; with it, the products of the way back are
differentiated too: 9/3 in reverse over reverse, as here, 8/3 in forward over reverse. So the goals of 2.6 and 1.6 for ResNet18
lie below it. Measured (12 steps, two rounds, one thread of a shared CPU): ResNet18 3.43 exact and 1.81 without the Hessian; trunk
1.8 to 1.9 and 1.3 to 1.4, ours at the active half of the genes.
"""

import argparse
import gc
import importlib.util
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

from agl_sc.core.network.network import Network
from agl_sc.core.numerics.hypergradient import SGD, Adam, State, fresh_state, hypergradient, warm_state
from agl_sc.core.numerics.losses import linear_pearson_loss, pearson_loss, weighted_mean
from agl_sc.core.numerics.tensors import Parameters, call
from agl_sc.core.weighting.gate import n_active, scaled_rank, soft_top_k

N_TARGETS, CUTOFF, LR = 50, 0.5, 3e-5
GOALS = {
    "resnet": {"exact": 2.6, "no_hessian": 1.6},
    "trunk": {"exact": 1.6},
    "extra memory": {"exact": 1.15, "no_hessian": 1.15},
    "to higher": {"exact": 0.12, "no_hessian": 0.12},
}
"""At 12 steps, each at most."""
VARIANTS = ("plain", "predictions", "exact", "no_hessian", "higher")
HAS_HIGHER = importlib.util.find_spec("higher") is not None


class Model(torch.nn.Module):
    """A body and a linear head on its output."""

    def __init__(self, body: torch.nn.Module, head: torch.nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.head(self.body(inputs))
        return predicted


class Trunk(torch.nn.Module):
    """Of the package's network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.linear, self.inner, self.outer = network.linear, network.inner, network.outer

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.outer(torch.nn.functional.gelu(self.inner(features)))
        shared: torch.Tensor = self.linear(features) + hidden
        return shared


@dataclass(frozen=True)
class Problem:
    """A model with a training and a validation batch; with ``cut``, ours computes the head of active genes alone."""

    model: Model
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

    def leading(self, values: Parameters, n_genes: int) -> Parameters:
        """With the head cut to the first genes."""
        return {k: v[:n_genes] if k.startswith("head.") else v for k, v in values.items()}

    def hidden(self, at: Parameters, inputs: torch.Tensor) -> torch.Tensor:
        """Output of the body at other parameters."""
        own = {name.removeprefix("body."): value for name, value in at.items() if name.startswith("body.")}
        return call(self.model.body, own, inputs)

    def inner(self, at: Parameters, sizes: list[int]) -> list[torch.Tensor]:
        hidden = self.hidden(at, self.inputs[0])
        parts = at["head.weight"], at["head.bias"], self.expression[:, : sum(sizes)].T
        runs = zip(*(torch.split(part, sizes) for part in parts), strict=True)
        return [linear_pearson_loss(hidden, weight, bias, measured=rows.T) for weight, bias, rows in runs]

    def outer(self, at: Parameters) -> torch.Tensor:
        hidden, head = self.hidden(at, self.inputs[1]), self.leading(at, N_TARGETS)
        return linear_pearson_loss(hidden, head["head.weight"], head["head.bias"], measured=self.targets).mean()


def resnet(n_genes: int, *, batch: int = 64, px: int = 64) -> Problem:
    torch.manual_seed(0)
    body = timm.create_model("resnet18", pretrained=False, num_classes=0, zero_init_last=False).train()
    inputs = torch.randn(batch, 3, px, px), torch.randn(batch, 3, px, px)
    return problem(Model(body, torch.nn.Linear(512, n_genes)), inputs, n_genes, cut=False)


def trunk(n_genes: int, *, batch: int) -> Problem:
    torch.manual_seed(0)
    network = Network(1280, n_genes, rank=64, dropout=0.0)
    torch.nn.init.normal_(network.outer.weight, std=0.05)
    model = Model(Trunk(network), network.head)
    return problem(model, (torch.randn(batch, 1280), torch.randn(batch, 1280)), n_genes, cut=True)


def problem(model: Model, inputs: tuple[torch.Tensor, torch.Tensor], n_genes: int, *, cut: bool) -> Problem:
    """With moments as a training under way has them."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    for parameter in model.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    batch = len(inputs[0])
    return Problem(model, optimizer, inputs, torch.randn(batch, n_genes), torch.randn(batch, N_TARGETS), cut)


def plain(of: Problem, n_steps: int, *, predictions: bool = False) -> None:
    """Training steps on all genes, as the package takes them, or by way of the matrix of predictions."""
    weights, head = of.weights(torch.tensor(CUTOFF), of.expression.shape[1]), of.model.head
    for _ in range(n_steps):
        hidden = of.model.body(of.inputs[0])
        losses = (
            pearson_loss(head(hidden), of.expression)
            if predictions
            else linear_pearson_loss(hidden, head.weight, head.bias, measured=of.expression)
        )
        of.optimizer.zero_grad()
        weighted_mean(losses, weights).backward()  # type: ignore[no-untyped-call]
        of.optimizer.step()


def ours(of: Problem, n_steps: int, *, hessian: bool) -> None:
    n_genes, live = of.n_active, dict(of.model.named_parameters())
    state = warm_state(of.optimizer, live)
    hypergradient(
        of.inner,
        of.outer,
        of.leading({name: value.detach() for name, value in live.items()}, n_genes),
        scalars=torch.tensor(CUTOFF),
        weights=lambda cutoff: of.weights(cutoff, n_genes),
        optimizer=Adam(LR),
        state=State(of.leading(state.mean, n_genes), of.leading(state.square, n_genes), state.n_steps),
        inner_steps=n_steps,
        hessian=hessian,
    )


def released(of: Problem, n_steps: int) -> None:
    """The way of the authors' code: `higher`, all genes and predictions, reverse mode through the stored unroll."""
    import higher

    cutoff = torch.tensor(CUTOFF, requires_grad=True)
    with higher.innerloop_ctx(of.model, of.optimizer, copy_initial_weights=False) as (model, optimizer):
        for _ in range(n_steps):
            weights = of.weights(cutoff, of.expression.shape[1])
            optimizer.step(weighted_mean(pearson_loss(model(of.inputs[0]), of.expression), weights))
        value = pearson_loss(model(of.inputs[1])[:, :N_TARGETS], of.targets).mean()
    torch.autograd.grad(value, cutoff)


RUN: dict[str, Callable[[Problem, int], None]] = {
    "plain": plain,
    "predictions": lambda of, n: plain(of, n, predictions=True),
    "exact": lambda of, n: ours(of, n, hessian=True),
    "no_hessian": lambda of, n: ours(of, n, hessian=False),
    "higher": released,
}


def seconds(of: Problem, variants: list[str], *, n_steps: int, rounds: int) -> dict[str, list[float]]:
    """CPU time of every variant and round, the variants taking turns after one step each to warm up."""
    taken: dict[str, list[float]] = {variant: [] for variant in variants}
    for variant in variants:
        RUN[variant](of, 1)
    for _ in range(rounds):
        for variant in variants:
            start = time.process_time()
            RUN[variant](of, n_steps)
            taken[variant].append(time.process_time() - start)
            gc.collect()
    return taken


def extra_memory(problem_name: str, variant: str, *, n_steps: int, arguments: argparse.Namespace) -> float:
    """Peak resident size in MB above that of the problem, in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", problem_name, variant, "--steps", str(n_steps)]
    command += ["--genes", str(arguments.genes), "--px", str(arguments.px)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident() -> float:
    """In MB."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """In MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def goal(row: str, variant: str) -> str:
    at_most = GOALS[row].get(variant)
    return "" if at_most is None else f" (goal {at_most})"


def print_time(row: str, title: str, of: Problem, *, arguments: argparse.Namespace) -> None:
    variants = [variant for variant in arguments.variants if variant != "higher" or HAS_HIGHER]
    taken = seconds(of, variants, n_steps=arguments.steps, rounds=arguments.rounds)
    floor = taken["plain"]
    print(f"\nTime of {arguments.steps} steps / that of as many plain steps on all genes: {title}")
    for variant in variants:
        least, middle = (how(taken[variant]) / how(floor) for how in (min, statistics.median))
        print(
            f"  {variant:<12}{least:6.2f}{goal(row, variant)}; {middle:.2f} by medians; {min(taken[variant]):.2f} CPU s"
        )


def print_memory(name: str, *, arguments: argparse.Namespace) -> None:
    variants = [variant for variant in arguments.variants if variant != "higher" or HAS_HIGHER]
    long = {v: extra_memory(name, v, n_steps=arguments.steps, arguments=arguments) for v in variants}
    print(f"\nExtra memory, MB: {name}")
    for variant, size in long.items():
        once = extra_memory(name, variant, n_steps=1, arguments=arguments)
        print(f"  {variant:<12}{arguments.steps} steps {size:7.0f}, 1 step {once:7.0f}, ", end="")
        share = f"; / higher {size / long['higher']:.3f}{goal('to higher', variant)}" if "higher" in long else ""
        print(f"ratio {size / once:.2f}{goal('extra memory', variant)}{share}")


class Small(torch.nn.Module):
    """Two convolutions with BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        convolution, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.body = torch.nn.Sequential(convolution(3, 8, 3), norm(8), torch.nn.GELU(), convolution(8, 8, 3), norm(8))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.body(tiles)).mean(dim=(2, 3))


RULES: dict[str, Adam | SGD] = {"Adam": Adam(1e-4), "SGD": SGD(0.005, momentum=0.9)}


@dataclass(frozen=True)
class Exact:
    """A small problem in double precision, its optimiser after some training."""

    of: Problem
    rule: Adam | SGD
    state: State
    n_steps: int

    @property
    def start(self) -> Parameters:
        return {name: value.detach() for name, value in self.of.model.named_parameters()}

    def losses(self, at: Parameters) -> torch.Tensor:
        return pearson_loss(call(self.of.model, at, self.of.inputs[0]), self.of.expression)

    def weights(self, cutoff: torch.Tensor) -> torch.Tensor:
        return self.of.weights(cutoff, self.of.n_active)

    def forward_mode(self, cutoff: float, *, hessian: bool = True) -> tuple[float, float]:
        value, derivative = hypergradient(
            self.of.inner,
            self.of.outer,
            self.start,
            scalars=torch.tensor(cutoff, dtype=torch.float64),
            weights=self.weights,
            optimizer=self.rule,
            state=self.state,
            inner_steps=self.n_steps,
            hessian=hessian,
        )
        return value.item(), derivative.item()

    def reverse_mode(self, cutoff: float) -> float:
        """One graph of all steps."""
        at = torch.tensor(cutoff, dtype=torch.float64, requires_grad=True)
        w = {name: value.clone().requires_grad_() for name, value in self.start.items()}
        moments = {name: (self.state.mean[name], self.state.square[name]) for name in w}
        for done in range(self.state.n_steps, self.state.n_steps + self.n_steps):
            loss = weighted_mean(self.losses(w), self.weights(at))
            gradients = torch.autograd.grad(loss, list(w.values()), create_graph=True)
            for name, gradient in zip(w, gradients, strict=True):
                w[name], moments[name] = self.reverse_step(w[name], gradient, moments=moments[name], done=done)
        return torch.autograd.grad(self.of.outer(w), at)[0].item()

    def reverse_step(
        self, w: torch.Tensor, g: torch.Tensor, *, moments: tuple[torch.Tensor, torch.Tensor], done: int
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        m, v = moments
        if isinstance(self.rule, SGD):
            m = self.rule.momentum * m + g
            return w - self.rule.lr * m, (m, v)
        one, two = self.rule.betas
        m, v = one * m + (1 - one) * g, two * v + (1 - two) * g**2
        root = (torch.where(v > 0, v, 1.0) / (1 - two ** (done + 1))).sqrt()
        step = m / (1 - one ** (done + 1)) / (root + self.rule.eps)
        return w - self.rule.lr * torch.where(v > 0, step, 0.0), (m, v)


def small(name: str, *, warm: bool, n_steps: int, n_genes: int = 300) -> Exact:
    torch.manual_seed(0)
    model = Model(Small(), torch.nn.Linear(8, n_genes)).double()
    inputs, held_out = torch.randn(2, 48, 3, 10, 10, dtype=torch.float64)
    driver = torch.randn(300, n_genes, dtype=torch.float64)
    expression, targets = ((x.flatten(1) @ driver).tanh() for x in (inputs, held_out))
    settings = {"momentum": 0.9} if name == "SGD" else {}
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=RULES[name].lr, **settings)
    of = Problem(model, optimizer, (inputs, held_out), expression, targets[:, :N_TARGETS], cut=False)
    plain(of, 60)
    named = dict(model.named_parameters())
    fresh = fresh_state({name: value.detach() for name, value in named.items()})
    state = warm_state(optimizer, named) if warm else fresh
    return Exact(of, RULES[name], State(state.mean, state.square or fresh.square, state.n_steps), n_steps)


def print_fidelity(n_cutoffs: int = 20, n_steps: int = 12, width: float = 1e-6) -> None:
    print(f"\nFidelity in float64, convolutions with BatchNorm after 60 steps, {n_cutoffs} cutoffs, {n_steps} steps")
    for name, warm in (("Adam", False), ("Adam", True), ("SGD", False), ("SGD", True)):
        toy, rows = small(name, warm=warm, n_steps=n_steps), []
        for c in torch.linspace(0.03, 0.97, n_cutoffs).tolist():
            off = {step: toy.forward_mode(c + step * width)[0] for step in (-2, -1, 1, 2)}
            difference = (8 * (off[1] - off[-1]) - (off[2] - off[-2])) / (12 * width)
            exact, short = (toy.forward_mode(c, hessian=hessian)[1] for hessian in (True, False))
            rows.append([exact, short, toy.reverse_mode(c), difference])
        exact_, short_, reverse_, difference_ = torch.tensor(rows, dtype=torch.float64).T
        print(
            f"  {name}, {'warm' if warm else 'fresh'}: largest relative error of exact to reverse mode "
            f"{(exact_ / reverse_ - 1).abs().max():.0e} (goal 1e-9), to central differences "
            f"{(exact_ / difference_ - 1).abs().max():.0e} (goal 1e-5); without Hessian the sign is right in "
            f"{100 * (short_.sign() == exact_.sign()).double().mean():.0f} % (goal 95), median error "
            f"{100 * (short_ / exact_ - 1).abs().median():.2f} % (goal 5, warm)"
        )


PROBLEMS: dict[str, Callable[[argparse.Namespace], Problem]] = {
    "resnet": lambda given: resnet(given.genes, px=given.px),
    "trunk": lambda given: trunk(given.genes, batch=128),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["fidelity", "resnet", "trunk", "memory"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="plain is the floor")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--genes", type=int, default=15_000)
    parser.add_argument("--px", type=int, default=64)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if given.memory_of is not None:
        name, variant = given.memory_of
        of = PROBLEMS[name](given)
        before = resident()
        RUN[variant](of, given.steps)
        print(peak() - before)
        return
    # glibc then keeps freed memory of this size for the next step, as after reading any data, in every variant.
    torch.empty(31 << 20, dtype=torch.uint8)
    if not HAS_HIGHER:
        print('higher is not installed (pip install "agl-sc[bench]"): its rows are left out.')
    if "fidelity" in given.rows:
        print_fidelity()
    if "resnet" in given.rows:
        title = f"ResNet18, {given.px} px, batch 64, {given.genes} genes"
        print_time("resnet", title, resnet(given.genes, px=given.px), arguments=given)
    if "trunk" in given.rows:
        for n_genes, batch in ((given.genes, 128), (given.genes, 256), (2 * given.genes, 128)):
            title = f"trunk on 1,280 features, batch {batch}, {n_genes} genes, ours at the active ones"
            print_time("trunk", title, trunk(n_genes, batch=batch), arguments=given)
    if "memory" in given.rows:
        for name in PROBLEMS:
            print_memory(name, arguments=given)


if __name__ == "__main__":
    main()
