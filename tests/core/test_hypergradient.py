"""Forward mode against reverse mode and finite differences, in float64."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from agl_sc.core.gate import scaled_rank, soft_top_k
from agl_sc.core.hypergradient import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    Parameters,
    State,
    _weighting,
    call,
    fresh_state,
    hypergradient,
    step,
    warm_state,
)
from agl_sc.core.losses import pearson_loss
from agl_sc.core.network import Network

N_TARGETS, N_GENES, LR = 3, 15, 0.02
CUTOFFS = [0.05, 0.4, 0.9]
RULES: dict[str, Optimizer] = {
    "adam": Adam(LR),
    "adam, decay": Adam(LR, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.1),
    "adamw": AdamW(LR, weight_decay=0.5),
    "sgd": SGD(0.3),
    "momentum": SGD(0.2, momentum=0.9, dampening=0.2, weight_decay=0.1),
    "nesterov": SGD(0.2, momentum=0.8, nesterov=True),
}
TORCH: dict[type, type[torch.optim.Optimizer]] = {
    Adam: torch.optim.Adam,
    AdamW: torch.optim.AdamW,
    SGD: torch.optim.SGD,
}


def as_torch(rule: Optimizer, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    assert isinstance(rule, (Adam, SGD))
    return TORCH[type(rule)](parameters, **asdict(rule))


class Convolutions(torch.nn.Module):
    """Two convolutions with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        convolution, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.body = torch.nn.Sequential(
            convolution(2, 4, 3, padding=1, bias=False), norm(4), torch.nn.GELU(), convolution(4, 4, 3), norm(4)
        )
        self.head = torch.nn.Linear(4, N_GENES)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.head(torch.tanh(self.body(tiles)).mean(dim=(2, 3)))
        return predicted


@dataclass(frozen=True, slots=True)
class Toy:
    """A bi-level problem, with genes that are constant in each batch."""

    network: torch.nn.Module
    batch: tuple[torch.Tensor, torch.Tensor]
    held_out: tuple[torch.Tensor, torch.Tensor]
    temperature: float = 0.1

    def parameters(self) -> Parameters:
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}

    def losses(self, at: Parameters) -> torch.Tensor:
        return pearson_loss(call(self.network, at, self.batch[0]), self.batch[1])

    def inner(self, at: Parameters, sizes: list[int]) -> tuple[torch.Tensor, ...]:
        return torch.split(self.losses(at), sizes)

    def weights(self, cutoff: torch.Tensor) -> torch.Tensor:
        soft = soft_top_k(cutoff, scaled_rank(N_GENES - N_TARGETS), self.temperature)
        return torch.cat([torch.ones(N_TARGETS, dtype=torch.float64), soft])

    def outer(self, at: Parameters) -> torch.Tensor:
        return pearson_loss(call(self.network, at, self.held_out[0])[:, :N_TARGETS], self.held_out[1]).mean()

    def state(self, kind: str, rule: Optimizer = RULES["adam"]) -> State:
        """No step taken, or the moments of five steps of training."""
        if kind == "fresh":
            return fresh_state(self.parameters())
        named = dict(self.network.named_parameters())
        return warm_state(train(self, as_torch(rule, list(named.values()))), named)


def train(toy: Toy, optimizer: torch.optim.Optimizer, n_steps: int = 5) -> torch.optim.Optimizer:
    for _ in range(n_steps):
        optimizer.zero_grad()
        weights = toy.weights(scalar(0.6))
        (toy.losses(dict(toy.network.named_parameters())) @ weights / weights.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return optimizer


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def make_toy(kind: str = "trunk", seed: int = 0) -> Toy:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = Network(6, N_GENES, rank=3, hidden=8, dropout=0.0).double()
        network = trunk if kind == "trunk" else Convolutions().double()
    with torch.no_grad():
        trunk.outer.weight.copy_(0.3 * normal(3, 8))
    shape = (6,) if kind == "trunk" else (2, 6, 6)
    inputs, held_out = normal(24, *shape), normal(20, *shape)
    n_inputs = inputs[0].numel()
    expression = inputs.flatten(1) @ normal(n_inputs, N_GENES) + normal(24, N_GENES)
    targets = held_out.flatten(1) @ normal(n_inputs, N_TARGETS) + normal(20, N_TARGETS)
    expression[:, [1, 5]] = -0.1  # a target and an auxiliary gene that are constant in the training batch
    targets[:, 2] = 0.3
    return Toy(network, (inputs, expression), (held_out, targets))


@pytest.fixture
def toy() -> Toy:
    return make_toy()


def ours(
    toy: Toy,
    cutoff: float,
    *,
    rule: Optimizer = RULES["adam"],
    state: State | None = None,
    n_steps: int = 6,
    hessian: bool = True,
    detach_normalizer: bool = False,
) -> tuple[float, float]:
    value, derivative = hypergradient(
        toy.inner,
        toy.outer,
        toy.parameters(),
        scalars=scalar(cutoff),
        weights=toy.weights,
        optimizer=rule,
        state=state or toy.state("fresh"),
        inner_steps=n_steps,
        hessian=hessian,
        detach_normalizer=detach_normalizer,
    )
    return value.item(), derivative.item()


def oracle(
    toy: Toy,
    cutoff: float,
    *,
    rule: Optimizer = RULES["adam"],
    state: State | None = None,
    n_steps: int = 6,
    hessian: bool = True,
    detach_normalizer: bool = False,
) -> tuple[float, float]:
    """The whole unroll in one graph, differentiated backwards; formulas of the optimisers as torch documents them."""
    at, state = scalar(cutoff).requires_grad_(), state or toy.state("fresh")
    w = {name: value.requires_grad_() for name, value in toy.parameters().items()}
    moments = {name: (state.mean[name], state.square.get(name, state.mean[name])) for name in w}
    for done in range(state.n_steps, state.n_steps + n_steps):
        where = w if hessian else {name: value.detach().requires_grad_() for name, value in w.items()}
        weights = toy.weights(at)
        total = weights.sum().detach() if detach_normalizer else weights.sum()
        loss = (toy.losses(where) * weights).sum() / total
        gradients = torch.autograd.grad(loss, list(where.values()), create_graph=True)
        for name, gradient in zip(w, gradients, strict=True):
            w[name], moments[name] = reference_step(rule, w[name], gradient, moments=moments[name], done=done)
    value = toy.outer(w)
    return value.item(), torch.autograd.grad(value, at)[0].item()


def reference_step(
    rule: Optimizer, w: torch.Tensor, g: torch.Tensor, *, moments: tuple[torch.Tensor, torch.Tensor], done: int
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    m, v = moments
    if isinstance(rule, SGD):
        g = g + rule.weight_decay * w
        m = rule.momentum * m + (1 - rule.dampening) * g if done and rule.momentum else g
        return w - rule.lr * (g + rule.momentum * m if rule.nesterov else m), (m, v)
    assert isinstance(rule, Adam)
    g = g if isinstance(rule, AdamW) else g + rule.weight_decay * w
    m, v = rule.betas[0] * m + (1 - rule.betas[0]) * g, rule.betas[1] * v + (1 - rule.betas[1]) * g**2
    moved = v > 0
    root = (torch.where(moved, v, 1.0) / (1 - rule.betas[1] ** (done + 1))).sqrt()
    update = torch.where(moved, m / (1 - rule.betas[0] ** (done + 1)) / (root + rule.eps), 0.0)
    decay = rule.lr * rule.weight_decay if isinstance(rule, AdamW) else 0.0
    return (1 - decay) * w - rule.lr * update, (m, v)


@pytest.mark.parametrize("kind", ["fresh", "warm"])
@pytest.mark.parametrize("n_steps", [1, 2, 6])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_forward_mode_equals_reverse_mode(toy: Toy, *, cutoff: float, n_steps: int, kind: str) -> None:
    state = toy.state(kind)
    value, derivative = ours(toy, cutoff, state=state, n_steps=n_steps)
    expected_value, expected = oracle(toy, cutoff, state=state, n_steps=n_steps)
    assert value == pytest.approx(expected_value, rel=1e-12)
    assert derivative == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("kind", ["trunk", "convolutions"])
@pytest.mark.parametrize("warm", ["fresh", "warm"])
@pytest.mark.parametrize("rule", RULES)
def test_every_optimizer_and_network_equals_reverse_mode(rule: str, warm: str, kind: str) -> None:
    toy, own = make_toy(kind), RULES[rule]
    state = toy.state(warm, own)
    for cutoff in CUTOFFS:
        value, derivative = ours(toy, cutoff, rule=own, state=state)
        expected_value, expected = oracle(toy, cutoff, rule=own, state=state)
        assert value == pytest.approx(expected_value, rel=1e-12)
        assert derivative == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_twelve_steps_through_batch_norm_over_20_cutoffs(rule: str) -> None:
    toy, own = make_toy("convolutions"), RULES[rule]
    state = toy.state("warm", own)
    for cutoff in np.linspace(0.02, 0.98, 20):
        exact = ours(toy, cutoff, rule=own, state=state, n_steps=12)[1]
        assert exact == pytest.approx(oracle(toy, cutoff, rule=own, state=state, n_steps=12)[1], rel=1e-9)


@pytest.mark.parametrize("rule", ["adam", "adamw", "nesterov"])
@pytest.mark.parametrize("kind", ["trunk", "convolutions"])
@pytest.mark.parametrize("warm", ["fresh", "warm"])
def test_derivative_is_that_of_central_differences(kind: str, warm: str, rule: str) -> None:
    toy, own, width = make_toy(kind), RULES[rule], 1e-5
    state = toy.state(warm, own)
    for cutoff in CUTOFFS:
        derivative = ours(toy, cutoff, rule=own, state=state)[1]
        above, below = (ours(toy, cutoff + side * width, rule=own, state=state)[0] for side in (1, -1))
        assert abs(derivative) > 1e-6
        assert derivative == pytest.approx((above - below) / (2 * width), rel=1e-5)


@pytest.mark.parametrize("rule", ["adam", "momentum"])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_without_hessian_its_term_alone_is_missing(toy: Toy, cutoff: float, rule: str) -> None:
    own = RULES[rule]
    state = toy.state("warm", own)
    derivative = ours(toy, cutoff, rule=own, state=state, hessian=False)[1]
    assert derivative == pytest.approx(oracle(toy, cutoff, rule=own, state=state, hessian=False)[1], rel=1e-9)
    assert derivative != pytest.approx(oracle(toy, cutoff, rule=own, state=state)[1], rel=1e-4)


def test_without_hessian_of_a_warm_adam_is_nearly_exact() -> None:
    """The goal of the issue: the sign right in 95 of 100, half of the errors below 5 %."""
    pairs = []
    for seed in range(6):
        toy = make_toy(seed=seed)
        train(toy, optimizer := torch.optim.Adam(toy.network.parameters(), lr=1e-3), n_steps=60)
        state, rule = warm_state(optimizer, dict(toy.network.named_parameters())), Adam(1e-3)
        pairs += [
            [ours(toy, cutoff, rule=rule, state=state, n_steps=12, hessian=hessian)[1] for hessian in (True, False)]
            for cutoff in (0.1, 0.3, 0.6, 0.8)
        ]
    exact, approximate = np.array(pairs).T
    assert (np.sign(exact) == np.sign(approximate)).mean() >= 0.95
    assert np.median(np.abs(approximate / exact - 1)) < 0.05


@pytest.mark.parametrize("hessian", [True, False])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_detached_normalizer_equals_reverse_mode(toy: Toy, cutoff: float, hessian: bool) -> None:
    state = toy.state("warm")
    derivative = ours(toy, cutoff, state=state, hessian=hessian, detach_normalizer=True)[1]
    expected = oracle(toy, cutoff, state=state, hessian=hessian, detach_normalizer=True)[1]
    assert derivative == pytest.approx(expected, rel=1e-9)
    assert derivative != pytest.approx(ours(toy, cutoff, state=state, hessian=hessian)[1], rel=1e-2)


def by_runs(toy: Toy) -> tuple[Callable[[Parameters, list[int]], list[torch.Tensor]], list[list[int]]]:
    """Runs of genes that share the trunk alone, and the sizes that were asked for."""
    asked: list[list[int]] = []

    def inner(at: Parameters, sizes: list[int]) -> list[torch.Tensor]:
        asked.append(sizes)
        hidden = torch.nn.functional.gelu(toy.batch[0] @ at["inner.weight"].T + at["inner.bias"])
        shared = toy.batch[0] @ at["linear.weight"].T + hidden @ at["outer.weight"].T
        parts = (torch.split(values, sizes) for values in (at["head.weight"], at["head.bias"], toy.batch[1].T))
        return [pearson_loss(shared @ w.T + b, y.T) for w, b, y in zip(*parts, strict=True)]

    return inner, asked


@pytest.mark.parametrize("detach_normalizer", [False, True])
@pytest.mark.parametrize(("cutoff", "sizes"), [(0.0, [3, 6, 6]), (0.5, [3, 12]), (0.95, [8, 7])])
def test_genes_far_from_the_cutoff_change_nothing(cutoff: float, sizes: list[int], detach_normalizer: bool) -> None:
    """A temperature of 0.01 leaves the weights of a few of the 12 auxiliary genes with a derivative."""
    toy = replace(make_toy(), temperature=0.014)
    state = toy.state("warm")
    inner, asked = by_runs(toy)
    arguments = {
        "scalars": scalar(cutoff),
        "weights": toy.weights,
        "optimizer": Adam(LR),
        "state": state,
        "inner_steps": 4,
        "hessian": False,
        "detach_normalizer": detach_normalizer,
    }
    near = hypergradient(inner, toy.outer, toy.parameters(), **arguments)  # type: ignore[arg-type]
    assert asked == [sizes] * 4
    value, expected = oracle(toy, cutoff, state=state, n_steps=4, hessian=False, detach_normalizer=detach_normalizer)
    assert near[0].item() == pytest.approx(value, rel=1e-12)
    assert near[1].item() == pytest.approx(expected, rel=1e-9)


def test_several_scalars_are_those_one_at_a_time(toy: Toy) -> None:
    """Two cutoffs over the two halves of the auxiliary genes, and the weight of the targets."""
    half = (N_GENES - N_TARGETS) // 2
    rank, state, start = scaled_rank(half), toy.state("warm"), torch.tensor([[0.2, 0.8, 1.5]], dtype=torch.float64)

    def weights(s: torch.Tensor) -> torch.Tensor:
        return torch.cat([s[0, 2].expand(N_TARGETS), soft_top_k(s[0, 0], rank, 0.1), soft_top_k(s[0, 1], rank, 0.1)])

    def run(scalars: torch.Tensor, at: Callable[[torch.Tensor], torch.Tensor], hessian: bool) -> torch.Tensor:
        return hypergradient(
            by_runs(toy)[0],
            toy.outer,
            toy.parameters(),
            scalars=scalars,
            weights=at,
            optimizer=AdamW(LR),
            state=state,
            inner_steps=5,
            hessian=hessian,
        )[1]

    def alone(i: int, s: torch.Tensor) -> torch.Tensor:
        return weights(torch.where(torch.arange(3) == i, s, start))

    for hessian in (True, False):
        together = run(start, weights, hessian)
        assert together.shape == start.shape
        for i in range(3):
            one = run(start[0, i], partial(alone, i), hessian)
            assert one.shape == ()
            assert abs(one.item()) > 1e-6
            assert together[0, i].item() == pytest.approx(one.item(), rel=1e-10)


def test_first_step_of_a_fresh_adam_hides_the_derivative(toy: Toy) -> None:
    """Its update is the sign of the gradient; warm moments show the derivative."""
    hidden = [abs(ours(toy, c, n_steps=1)[1]) for c in CUTOFFS]
    shown = [abs(ours(toy, c, state=toy.state("warm"), n_steps=1)[1]) for c in CUTOFFS]
    assert sum(hidden) < 0.01 * sum(shown)


@pytest.mark.parametrize("hessian", [True, False])
def test_no_auxiliary_gene_near_the_cutoff_means_no_derivative(toy: Toy, hessian: bool) -> None:
    assert abs(ours(toy, 10.0, state=toy.state("warm"), n_steps=3, hessian=hessian)[1]) < 1e-30
    assert ours(toy, 1e4, state=toy.state("warm"), n_steps=3, hessian=hessian)[1] == 0  # exp underflows


@pytest.mark.parametrize("rule", ["adam", "adam, decay", "adamw", "momentum"])
@pytest.mark.parametrize("hessian", [True, False])
def test_a_parameter_without_gradient_has_no_derivative(toy: Toy, rule: str, hessian: bool) -> None:
    """Of a head's row of a constant gene the gradient is zero; of a parameter that is not used there is none."""
    state = toy.state("fresh")
    unused = {"unused": torch.ones(2, dtype=torch.float64)}
    derivative = hypergradient(
        toy.inner,
        lambda at: toy.outer(at) + at["head.weight"][5].sum() + at["head.weight"][1].sum() + at["unused"].sum(),
        {**toy.parameters(), **unused},
        scalars=scalar(0.4),
        weights=toy.weights,
        optimizer=RULES[rule],
        state=replace(state, mean={**state.mean, **unused}, square={**state.square, **unused}),
        inner_steps=4,
        hessian=hessian,
    )[1]
    assert np.isfinite(derivative.item())
    assert derivative.item() == pytest.approx(
        ours(toy, 0.4, rule=RULES[rule], n_steps=4, hessian=hessian)[1], rel=1e-12
    )


def test_a_batch_of_constant_genes_has_no_derivative(toy: Toy) -> None:
    constant = replace(toy, batch=(toy.batch[0], torch.zeros_like(toy.batch[1])))
    value, derivative = ours(constant, 0.4)
    assert derivative == 0
    assert value == toy.outer(toy.parameters()).item()


@pytest.mark.parametrize("n_steps", [1, 7])
@pytest.mark.parametrize("warm", ["fresh", "warm"])
@pytest.mark.parametrize("rule", RULES)
def test_step_equals_torch(toy: Toy, *, rule: str, warm: str, n_steps: int) -> None:
    """On the same gradients; those of the gene that is constant in the batch are exactly zero."""
    own, live = RULES[rule], dict(toy.network.named_parameters())
    optimizer = as_torch(own, list(live.values()))
    if warm == "warm":
        train(toy, optimizer)
    before, parameters, state = toy.parameters(), toy.parameters(), warm_state(optimizer, live)
    for _ in range(n_steps):
        gradients = torch.func.grad(lambda at: toy.losses(at) @ toy.weights(scalar(0.6)))(parameters)
        parameters, state = step(own, parameters, gradients, state=state)
        for name, value in live.items():
            value.grad = gradients[name]
        optimizer.step()
    for name, value in live.items():
        torch.testing.assert_close(parameters[name], value.detach(), rtol=1e-12, atol=1e-14)
        assert not torch.equal(parameters[name], before[name])
    if rule == "adam":
        assert torch.equal(parameters["head.weight"][1], before["head.weight"][1])


def test_step_leaves_its_arguments_alone(toy: Toy) -> None:
    parameters, state = toy.parameters(), toy.state("warm")
    gradients = {name: torch.ones_like(value) for name, value in parameters.items()}
    before = [value.clone() for own in (parameters, gradients, state.mean, state.square) for value in own.values()]
    moved, after = step(AdamW(LR), parameters, gradients, state=state)
    now = [value for own in (parameters, gradients, state.mean, state.square) for value in own.values()]
    assert all(torch.equal(*pair) for pair in zip(before, now, strict=True))
    assert after.n_steps == state.n_steps + 1
    assert {k: v.shape for k, v in moved.items()} == {k: v.shape for k, v in parameters.items()}


def test_warm_state_has_zeros_for_what_was_not_stepped() -> None:
    toy = make_toy()
    assert isinstance(toy.network, Network)
    optimizer = train(toy, torch.optim.AdamW([toy.network.head.weight], lr=LR), n_steps=3)
    state = warm_state(optimizer, dict(toy.network.named_parameters()))
    assert state.n_steps == 3
    own = optimizer.state[toy.network.head.weight]
    assert torch.equal(state.mean["head.weight"], own["exp_avg"])
    assert torch.equal(state.square["head.weight"], own["exp_avg_sq"])
    assert (state.square["linear.weight"] == 0).all()


@pytest.mark.parametrize("hessian", [True, False])
def test_network_optimizer_buffers_and_generators_are_left_alone(hessian: bool) -> None:
    """With BatchNorm on batch statistics and dropout switched on."""
    toy = make_toy("convolutions")
    network = torch.nn.Sequential(torch.nn.Dropout(0.3), toy.network).train()
    toy = replace(toy, network=network)
    optimizer = train(toy, torch.optim.Adam(network.parameters(), lr=LR))
    parameters, cutoff = toy.parameters(), torch.tensor([0.4, 0.6], dtype=torch.float64)
    state = warm_state(optimizer, dict(network.named_parameters()))

    def everything() -> list[torch.Tensor]:
        moments = [value for own in optimizer.state.values() for value in own.values()]
        gradients = [value.grad for value in network.parameters() if value.grad is not None]
        own = [*parameters.values(), *state.mean.values(), *state.square.values(), cutoff, torch.get_rng_state()]
        return [value.detach().clone() for value in (*own, *network.state_dict().values(), *moments, *gradients)]

    before = everything()
    value, derivative = hypergradient(
        toy.inner,
        toy.outer,
        parameters,
        scalars=cutoff,
        weights=lambda s: toy.weights(s.mean()),
        optimizer=Adam(LR),
        state=state,
        inner_steps=4,
        hessian=hessian,
    )
    after = everything()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not value.requires_grad
    assert not derivative.requires_grad
    assert cutoff.grad is None
    assert torch.rand(1) is not None
    assert any("running_mean" in name for name in network.state_dict())


def test_train_mode_normalises_by_the_batch(toy: Toy) -> None:
    """And evaluation mode by the running statistics: the derivatives differ."""
    training = make_toy("convolutions")
    by_batch = ours(training, 0.4)[1]
    training.network.eval()
    assert by_batch != pytest.approx(ours(training, 0.4)[1], rel=1e-3)


@pytest.mark.parametrize("hessian", [True, False])
def test_single_precision_is_close(toy: Toy, hessian: bool) -> None:
    state, parameters = toy.state("warm"), toy.parameters()  # in this order: the state comes from training the network
    expected = ours(toy, 0.4, state=state, hessian=hessian)[1]
    toy.network.float()
    mean, square = ({k: v.float() for k, v in moment.items()} for moment in (state.mean, state.square))
    single = replace(
        toy,
        batch=(toy.batch[0].float(), toy.batch[1].float()),
        held_out=(toy.held_out[0].float(), toy.held_out[1].float()),
    )
    derivative = hypergradient(
        single.inner,
        single.outer,
        {name: value.float() for name, value in parameters.items()},
        scalars=scalar(0.4),
        weights=single.weights,
        optimizer=RULES["adam"],
        state=State(mean, square, state.n_steps),
        inner_steps=6,
        hessian=hessian,
    )[1]
    assert derivative.dtype == torch.float32
    assert derivative.item() == pytest.approx(expected, rel=1e-3)


def test_derivative_through_a_closed_form_toy() -> None:
    """One step of gradient descent: calculus by hand."""
    w, at, lr = 2.0, 0.3, 0.1
    derivative = hypergradient(
        lambda p, sizes: [torch.stack([p["w"] ** 2, 3 * p["w"]])],
        lambda p: p["w"] ** 3,
        {"w": scalar(w)},
        scalars=scalar(at),
        weights=lambda c: torch.stack([c, 1 - c]),  # the sum of weights is 1: gradient 2 c w + 3 (1 - c)
        optimizer=SGD(lr),
        state=fresh_state({"w": scalar(w)}),
        inner_steps=1,
    )[1]
    stepped = w - lr * (2 * at * w + 3 * (1 - at))
    assert derivative.item() == pytest.approx(3 * stepped**2 * -lr * (2 * w - 3), rel=1e-12)


def test_long_parameters_are_stepped_piece_by_piece() -> None:
    """More entries than are handled at a time."""
    n = 70_001
    generator = torch.Generator().manual_seed(0)
    w, g = (torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(2))
    live = w.clone().requires_grad_()
    live.grad = g
    torch.optim.Adam([live], lr=LR).step()
    moved, _ = step(Adam(LR), {"w": w}, {"w": g}, state=fresh_state({"w": w}))
    torch.testing.assert_close(moved["w"], live.detach(), rtol=1e-12, atol=1e-14)


def test_shares_of_the_loss_and_their_slopes() -> None:
    """With a temperature of 0.01, weights have a derivative within 36 temperatures in double precision."""
    rank = scaled_rank(1001)
    at = _weighting(lambda c: soft_top_k(c, rank, 0.01), scalar(0.5), detach_normalizer=False, whole=False)
    assert all(size > 100 for size in at.sizes)
    assert [slope is None for slope in at.slope[0]] == [True, False, True]
    weight = soft_top_k(scalar(0.5), rank, 0.01)
    far = torch.split(weight * (1 - weight) / 0.01, at.sizes)[::2]
    assert 0 < max(part.max().item() for part in far) < 1e-14
    torch.testing.assert_close(torch.cat(at.share), weight / weight.sum())
    assert at.drift.item() == pytest.approx((weight * (1 - weight)).sum() / 0.01 / weight.sum())
