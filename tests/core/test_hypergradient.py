"""Forward mode against reverse mode and finite differences, in float64."""

from dataclasses import dataclass

import pytest
import torch

from agl_sc.core.gate import scaled_rank, soft_top_k
from agl_sc.core.hypergradient import AdamState, Parameters, adam_step, fresh_state, hypergradient, warm_state
from agl_sc.core.losses import pearson_loss, weighted_mean
from agl_sc.core.network import Network

N_TARGETS, N_GENES, TEMPERATURE, LR = 3, 15, 0.1, 0.02
CUTOFFS = [0.05, 0.4, 0.9]


@dataclass(frozen=True, slots=True)
class Toy:
    """A bi-level problem on a small trunk and head, with a gene constant in each batch."""

    network: Network
    batch: tuple[torch.Tensor, torch.Tensor]
    held_out: tuple[torch.Tensor, torch.Tensor]

    def predict(self, at: Parameters, inputs: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = torch.func.functional_call(self.network, at, (inputs,))
        return predicted

    def parameters(self) -> Parameters:
        return {name: value.detach().clone() for name, value in self.network.named_parameters()}

    def inner(self, at: Parameters, cutoff: torch.Tensor) -> torch.Tensor:
        soft = soft_top_k(cutoff, scaled_rank(N_GENES - N_TARGETS), TEMPERATURE)
        weights = torch.cat([torch.ones(N_TARGETS, dtype=torch.float64), soft])
        return weighted_mean(pearson_loss(self.predict(at, self.batch[0]), self.batch[1]), weights)

    def outer(self, at: Parameters) -> torch.Tensor:
        return pearson_loss(self.predict(at, self.held_out[0])[:, :N_TARGETS], self.held_out[1]).mean()

    def state(self, kind: str) -> AdamState:
        """No step taken, or the moments of five steps of training."""
        if kind == "fresh":
            return fresh_state(self.parameters())
        optimizer = train(self, torch.optim.Adam(self.network.parameters(), lr=LR))
        return warm_state(optimizer, dict(self.network.named_parameters()))

    def hypergradient(self, cutoff: torch.Tensor, state: AdamState, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        return hypergradient(
            self.inner, self.outer, self.parameters(), cutoff=cutoff, state=state, inner_steps=n_steps, inner_lr=LR
        )


def train(toy: Toy, optimizer: torch.optim.Optimizer, n_steps: int = 5) -> torch.optim.Optimizer:
    for _ in range(n_steps):
        optimizer.zero_grad()
        toy.inner(dict(toy.network.named_parameters()), scalar(0.6)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return optimizer


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def make_toy(seed: int = 0) -> Toy:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Network(6, N_GENES, rank=3, hidden=8, dropout=0.0).double()
    with torch.no_grad():
        network.outer.weight.copy_(0.3 * normal(3, 8))
    inputs, held_out = normal(24, 6), normal(20, 6)
    expression = inputs @ normal(6, N_GENES) + normal(24, N_GENES)
    targets = held_out @ normal(6, N_TARGETS) + normal(20, N_TARGETS)
    expression[:, [1, 5]] = -0.1  # a target and an auxiliary gene that are constant in the training batch
    targets[:, 2] = 0.3
    return Toy(network, (inputs, expression), (held_out, targets))


@pytest.fixture
def toy() -> Toy:
    return make_toy()


def reverse_mode(toy: Toy, cutoff: float, state: AdamState, *, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: the whole unroll in one graph, differentiated backwards."""
    at = scalar(cutoff).requires_grad_()
    parameters = {name: value.requires_grad_() for name, value in toy.parameters().items()}
    for _ in range(n_steps):
        gradients = torch.autograd.grad(toy.inner(parameters, at), list(parameters.values()), create_graph=True)
        named = dict(zip(parameters, gradients, strict=True))
        parameters, state = adam_step(parameters, named, state, lr=LR)
    value = toy.outer(parameters)
    return value.detach(), torch.autograd.grad(value, at)[0]


@pytest.mark.parametrize("kind", ["fresh", "warm"])
@pytest.mark.parametrize("n_steps", [1, 2, 6])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_forward_mode_equals_reverse_mode(toy: Toy, *, cutoff: float, n_steps: int, kind: str) -> None:
    state = toy.state(kind)
    value, derivative = toy.hypergradient(scalar(cutoff), state, n_steps)
    expected_value, expected = reverse_mode(toy, cutoff, state, n_steps=n_steps)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-12)
    assert derivative.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("kind", ["fresh", "warm"])
@pytest.mark.parametrize("cutoff", CUTOFFS)
def test_derivative_is_that_of_central_differences(toy: Toy, cutoff: float, kind: str) -> None:
    state, step = toy.state(kind), 1e-5
    _, derivative = toy.hypergradient(scalar(cutoff), state, 6)
    above, below = (toy.hypergradient(scalar(cutoff + side * step), state, 6)[0] for side in (1, -1))
    assert abs(derivative.item()) > 1e-6
    assert derivative.item() == pytest.approx((above - below).item() / (2 * step), rel=1e-5)


def test_first_step_of_a_fresh_adam_hides_the_derivative(toy: Toy) -> None:
    """Its update is the sign of the gradient; warm moments show the derivative."""
    hidden = [toy.hypergradient(scalar(c), toy.state("fresh"), 1)[1].abs().item() for c in CUTOFFS]
    shown = [toy.hypergradient(scalar(c), toy.state("warm"), 1)[1].abs().item() for c in CUTOFFS]
    assert sum(hidden) < 0.01 * sum(shown)


def test_no_auxiliary_gene_near_the_cutoff_means_no_derivative(toy: Toy) -> None:
    _, derivative = toy.hypergradient(scalar(10.0), toy.state("warm"), 3)
    assert abs(derivative.item()) < 1e-30


@pytest.mark.parametrize("n_steps", [1, 7])
@pytest.mark.parametrize("kind", ["fresh", "warm"])
def test_adam_step_equals_torch(toy: Toy, kind: str, n_steps: int) -> None:
    """On the same gradients; those of the gene that is constant in the batch are exactly zero."""
    optimizer = torch.optim.Adam(toy.network.parameters(), lr=LR)
    if kind == "warm":
        train(toy, optimizer)
    live, before = dict(toy.network.named_parameters()), toy.parameters()
    state, parameters = warm_state(optimizer, live), toy.parameters()
    assert state.n_steps == (5 if kind == "warm" else 0)
    for _ in range(n_steps):
        gradients = torch.func.grad(toy.inner)(parameters, scalar(0.6))
        parameters, state = adam_step(parameters, gradients, state, lr=LR)
        for name, value in live.items():
            value.grad = gradients[name]
        optimizer.step()
    for name, value in live.items():
        torch.testing.assert_close(parameters[name], value.detach(), rtol=1e-12, atol=1e-14)
        assert not torch.equal(parameters[name], before[name])
    assert torch.equal(parameters["head.weight"][1], before["head.weight"][1])


def test_adam_step_takes_betas_and_eps() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=(0.5, 0.7), eps=0.3)
    parameters, state = {"w": weight.detach().clone()}, fresh_state({"w": weight.detach()})
    for step in range(4):
        weight.grad = torch.tensor([1.0, 0.5 * step, 0.0], dtype=torch.float64)
        optimizer.step()
        parameters, state = adam_step(parameters, {"w": weight.grad}, state, lr=0.1, betas=(0.5, 0.7), eps=0.3)
    torch.testing.assert_close(parameters["w"], weight.detach(), rtol=1e-12, atol=1e-12)


def test_warm_state_is_a_copy_with_zeros_for_what_was_not_stepped(toy: Toy) -> None:
    optimizer = train(toy, torch.optim.AdamW([toy.network.head.weight], lr=LR), n_steps=3)
    state = warm_state(optimizer, dict(toy.network.named_parameters()))
    assert state.n_steps == 3
    own = optimizer.state[toy.network.head.weight]
    assert torch.equal(state.mean["head.weight"], own["exp_avg"])
    assert torch.equal(state.square["head.weight"], own["exp_avg_sq"])
    assert state.mean["head.weight"].data_ptr() != own["exp_avg"].data_ptr()
    assert (state.square["linear.weight"] == 0).all()


@pytest.mark.parametrize("kind", ["fresh", "warm"])
def test_arguments_and_global_state_are_not_modified(toy: Toy, kind: str) -> None:
    optimizer = train(toy, torch.optim.Adam(toy.network.parameters(), lr=LR))
    parameters, cutoff = toy.parameters(), scalar(0.4)
    state = fresh_state(parameters) if kind == "fresh" else warm_state(optimizer, dict(toy.network.named_parameters()))

    def everything() -> list[torch.Tensor]:
        network = list(toy.network.parameters())
        moments = [value for own in optimizer.state.values() for value in own.values()]
        gradients = [value.grad for value in network if value.grad is not None]
        state_values = [*state.mean.values(), *state.square.values()]
        values = [*parameters.values(), *state_values, cutoff, *network, *moments, *gradients, torch.get_rng_state()]
        return [value.detach().clone() for value in values]

    before = everything()
    value, derivative = hypergradient(
        toy.inner, toy.outer, parameters, cutoff=cutoff, state=state, inner_steps=4, inner_lr=LR
    )
    after = everything()
    assert len(before) == len(after)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not value.requires_grad
    assert not derivative.requires_grad
    assert cutoff.grad is None


def test_derivative_through_a_closed_form_toy() -> None:
    """One step of gradient descent in disguise: with a huge second moment Adam is linear, and calculus is by hand."""
    state = AdamState({"w": scalar(0.0)}, {"w": scalar(1e12)}, 10_000)
    cutoff, w, lr = scalar(0.3), scalar(2.0), 1e6

    def inner(at: Parameters, c: torch.Tensor) -> torch.Tensor:
        return c * at["w"] ** 2  # gradient 2 c w

    def outer(at: Parameters) -> torch.Tensor:
        return at["w"] ** 3

    _, derivative = hypergradient(inner, outer, {"w": w}, cutoff=cutoff, state=state, inner_steps=1, inner_lr=lr)
    root = (0.999e12 / (1 - 0.999**10_001)) ** 0.5
    factor = lr * 0.1 / (1 - 0.9**10_001) / root
    stepped = 2.0 - factor * 2 * 0.3 * 2.0
    assert derivative.item() == pytest.approx(3 * stepped**2 * (-factor * 2 * 2.0), rel=1e-9)
