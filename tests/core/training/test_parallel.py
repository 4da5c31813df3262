"""A batch in pieces has the gradient of the batch: accumulated steps, precision, trackers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker

from agl_sc.core.choices import Choices
from agl_sc.core.config import LossName, TrainConfig
from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.epoch import train_epoch
from agl_sc.core.training.fit import fit
from agl_sc.core.training.parallel import drawing_from, of_main, own_pieces, take_over
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import AuxiLearn, Fixed, Uncertainty, Weighting, method_spec

Make = Callable[..., Bilevel]
pytestmark = pytest.mark.usefixtures("another_accelerator")


def gradients(training: Bilevel, weighting: Weighting, n_accumulated: int) -> tuple[float, list[torch.Tensor]]:
    """Loss and gradients after an epoch of a single batch at a learning rate of zero."""
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=n_accumulated)
    own = [*training.problem.network.parameters(), *weighting.trained()]
    loss = train_epoch(training, weighting, stepper=torch.optim.SGD(own, lr=0.0), accelerator=accelerator)
    assert sum(p.grad is None for p in own) <= 1, "a loss without a level gives the biases of the head no gradient"
    return loss, [p.grad.clone() for p in own if p.grad is not None]


WEIGHTINGS: dict[str, Callable[[], Weighting]] = {
    "fixed": lambda: Fixed(3, np.linspace(1, 0.2, 15), target_weight=2.0).double(),
    "uncertainty": lambda: Uncertainty(3, 15).double(),
    "auxilearn": lambda: AuxiLearn(3, 15).double(),
}


@pytest.mark.parametrize("n_spots", [40, 33], ids=["even", "odd"])
@pytest.mark.parametrize("n_sections", [1, 3])
@pytest.mark.parametrize("loss", ["pearson", "mse", "poisson", "negative_binomial", "multinomial"])
@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_accumulated_gradient_is_that_of_the_whole_batch(
    make_bilevel: Make, *, kind: str, loss: LossName, n_sections: int, n_spots: int
) -> None:
    training = make_bilevel(loss=loss, n_sections=n_sections)
    training.batches = [torch.randperm(40, generator=torch.Generator().manual_seed(1))[:n_spots]]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weighting = WEIGHTINGS[kind]()
    (loss_whole, whole), (loss_pieces, pieces) = (gradients(training, weighting, n) for n in (1, 4))
    assert loss_pieces == pytest.approx(loss_whole, rel=1e-10)
    for found, expected in zip(pieces, whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    assert max(float(g.abs().max()) for g in whole) > 1e-3


def test_more_pieces_than_spots(make_bilevel: Make) -> None:
    training = make_bilevel(loss="mse")
    training.batches = [torch.arange(8)]
    weighting = WEIGHTINGS["fixed"]()
    (loss_whole, whole), (loss_pieces, pieces) = (gradients(training, weighting, n) for n in (1, 11))
    assert loss_pieces == pytest.approx(loss_whole, rel=1e-10)
    torch.testing.assert_close(pieces, whole, rtol=1e-8, atol=1e-11)


def test_pieces_are_disjoint_and_complete() -> None:
    index, accelerator = torch.randperm(37), Accelerator(cpu=True, gradient_accumulation_steps=5)
    pieces = own_pieces(index, accelerator)
    assert [len(piece) for piece in pieces] == [8, 8, 7, 7, 7]
    assert torch.equal(torch.cat(pieces), index)


def test_dropout_of_a_piece_is_the_same_in_both_passes() -> None:
    """The second pass differentiates what the first one summed."""
    piece = drawing_from(3, lambda drawn: torch.rand(4) + torch.rand(4, generator=drawn), torch.device("cpu"))
    before = torch.get_rng_state()
    first = piece()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(2)
    assert torch.equal(piece(), first)
    assert not torch.equal(drawing_from(4, lambda drawn: torch.rand(4, generator=drawn), torch.device("cpu"))(), first)


def test_accumulated_steps_with_dropout_learn(make_bilevel: Make) -> None:
    """A batch of pieces whose sums did not belong to their gradients would not."""
    training = make_bilevel(dropout=0.5)
    weighting = WEIGHTINGS["fixed"]()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    stepper = torch.optim.Adam(training.problem.network.parameters(), lr=0.02)
    losses = [train_epoch(training, weighting, stepper=stepper, accelerator=accelerator) for _ in range(30)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


def test_one_process_takes_nothing_over() -> None:
    accelerator, module = Accelerator(cpu=True), torch.nn.Linear(2, 2)
    before = [p.clone() for p in module.parameters()]
    take_over(module, accelerator)
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    value = object()
    assert of_main(value, accelerator) is value


def make_spots() -> tuple[Spots, Validation]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(160, 8))
    expression = np.tanh(features @ rng.normal(size=(8, 20))) + rng.normal(size=(160, 20))
    sections = np.arange(160) % 2
    training = Spots(features[:96], Expression.from_dense(expression[:96]), sections[:96])
    return training, Validation(features[96:], expression[96:, :4], sections[96:])


def run(accelerator: Accelerator, **changes: Any) -> FitResult:
    settings = {
        "start": "random",
        "rank": 4,
        "hidden": 16,
        "lr": 5e-3,
        "batch_size": 32,
        "max_epochs": 5,
        "dropout": 0.0,
    }
    config = TrainConfig.from_plain({**settings, **changes})
    return fit(*make_spots(), n_targets=4, method=method_spec("agl"), config=config, accelerator=accelerator)


def test_accumulated_steps_train_as_larger_batches_do() -> None:
    whole = run(Accelerator(cpu=True))
    GradientState._reset_state()
    pieces = run(Accelerator(cpu=True, gradient_accumulation_steps=4), batch_size=8)
    np.testing.assert_allclose(pieces.history["loss"][1:], whole.history["loss"][1:], atol=1e-5)
    np.testing.assert_allclose(pieces.history["validation_pearson"], whole.history["validation_pearson"], atol=1e-4)
    assert whole.history["loss"][1] - whole.history["loss"][5] > 0.01


def test_bf16_is_about_as_good() -> None:
    full = run(Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    half = run(Accelerator(cpu=True, mixed_precision="bf16"))
    assert half.score == pytest.approx(full.score, abs=0.02)
    assert half.history["loss"][3] != full.history["loss"][3]
    assert all(value.dtype == torch.float32 for value in half.state.values())


class Remembering(GeneralTracker):  # type: ignore[misc]
    """Keeps rows in memory."""

    name = "remembering"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def tracker(self) -> list[tuple[int | None, dict[str, Any]]]:
        return self.rows

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        del values

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        del kwargs
        self.rows.append((step, values))


def test_trackers_receive_a_row_per_epoch() -> None:
    tracker = Remembering()
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("agl_sc")
    result = run(accelerator)
    accelerator.end_training()
    assert [step for step, _ in tracker.rows] == [1, 2, 3, 4, 5]
    assert [row for _, row in tracker.rows] == result.history.iloc[1:].to_dict(orient="records")
    assert {"loss", "validation_pearson", "k"} <= tracker.rows[0][1].keys()


def test_trackers_do_not_receive_the_epochs_that_are_repeated_without_validation() -> None:
    tracker = Remembering()
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("agl_sc")
    common: dict[str, Any] = {
        "n_targets": 4,
        "method": method_spec("agl"),
        "config": TrainConfig(),
        "accelerator": accelerator,
    }
    fit(make_spots()[0], None, choices=Choices(10.0, 4, 1.0, 3), **common)
    assert not tracker.rows
