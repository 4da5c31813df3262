import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import scipy.sparse
import torch

from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training import fit as fit_module
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.epoch import train_epoch
from agl_sc.core.training.fit import fit
from agl_sc.core.training.result import FitResult
from agl_sc.core.weighting import METHODS, AuxiLearn, Weighting, method_spec
from agl_sc.core.weighting.auxilearn import AuxiLearnConfig

N_TARGETS = 3
SETTINGS = {"method": "dkgsb", "lr": 1e-3}


def spots(n_spots: int, seed: int) -> Spots:
    generator = np.random.default_rng(seed)
    loadings = np.random.default_rng(0).normal(size=(12, 20))
    features = generator.normal(size=(n_spots, 12))
    expression = features @ loadings + generator.normal(size=(n_spots, 20)) * 3
    values = generator.poisson(np.exp(expression / 8)).astype(float)
    counts = Counts(scipy.sparse.csr_matrix(values), values.sum(axis=1), 20.0)
    return Spots(features, Expression.from_dense(expression), np.zeros(n_spots, dtype=np.int64), counts)


def run(config: TrainConfig, method: Method, checkpoint: Checkpoint | None = None) -> FitResult:
    held_out = spots(30, 2)
    validation = Validation(held_out.features, held_out.expression.columns(0, N_TARGETS), held_out.sections)
    return fit(
        spots(64, 1),
        validation,
        n_targets=N_TARGETS,
        method=method_spec(method),
        config=config,
        seed=3,
        checkpoint=checkpoint,
    )


def same(left: FitResult, right: FitResult) -> bool:
    tensors = all(torch.equal(left.state[name], right.state[name]) for name in left.state)
    genes = np.array_equal(left.weights, right.weights) and np.array_equal(left.selected, right.selected)
    tables = left.history.equals(right.history) and left.cutoff_trace.astype(float).equals(
        right.cutoff_trace.astype(float)
    )
    return tensors and genes and tables and left.choices == right.choices


def killed(config: TrainConfig, method: Method, *, checkpoint: Checkpoint, stop_at: int) -> None:
    """The training that writes checkpoints is interrupted in the epoch after so many."""

    def interrupted(training: Bilevel, weighting: Weighting, **kwargs: Any) -> float:
        if checkpoint.path.exists() and epochs_in(checkpoint) == stop_at:
            raise KeyboardInterrupt
        return train_epoch(training, weighting, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_module, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, method, checkpoint)
    assert epochs_in(checkpoint) == stop_at


def epochs_in(checkpoint: Checkpoint) -> int:
    read = checkpoint.read()
    assert read is not None
    return int(read[1]["epoch"])


SEARCHES: list[tuple[Method, dict[str, Any]]] = [
    *((method, {}) for method in get_args(Method)),
    ("dkgsb", {"search": "gradient"}),
    ("dkgsb", {"search": "gradient", "outer_batch_size": 24, "validation_batch_size": 10, "warm_moments": False}),
    ("dkgsb", {"search": "race"}),
    ("agl", {"start": "random"}),
    ("agl", {"rank": 5}),
    *(("agl", {"loss": loss}) for loss in ("mse", "poisson", "negative_binomial", "multinomial")),
]


@pytest.mark.parametrize(
    ("method", "changes"), SEARCHES, ids=["-".join(map(str, (m, *c.values()))) for m, c in SEARCHES]
)
def test_killed_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, *, method: Method, changes: dict[str, Any]
) -> None:
    config = TrainConfig.from_plain(
        {"max_epochs": 4, "hidden": 16, "batch_size": 16, "inner_steps": 2, "lr": 1e-3, "outer_lr": 0.05, **changes}
    )
    whole = run(config, method)
    assert len(whole.history) == 5, "the interrupt must come before the end for this to test anything"
    checkpoint = Checkpoint(tmp_path / "state.safetensors", SETTINGS)
    killed(config, method, checkpoint=checkpoint, stop_at=2)
    assert same(run(config, method, checkpoint), whole)
    assert same(run(config, method, checkpoint), whole), "a finished training is not trained further"


@pytest.mark.parametrize(("method", "module"), [("amal", "amal"), ("auxilearn", "auxilearn")])
def test_what_is_learned_between_epochs_is_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, method: Method, module: str
) -> None:
    """With steps often enough to fall before and after the interrupt, inside an epoch too."""
    if method == "amal":
        monkeypatch.setattr(f"agl_sc.core.weighting.{module}.EVERY", 2)
    else:
        often = AuxiLearnConfig(every=3, lr=0.5)
        monkeypatch.setitem(METHODS, method, replace(METHODS[method], weighting=partial(AuxiLearn, config=often)))
    config = TrainConfig(max_epochs=5, hidden=16, batch_size=16, lr=1e-3)
    whole = run(config, method)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", SETTINGS)
    killed(config, method, checkpoint=checkpoint, stop_at=2)
    read = checkpoint.read()
    assert read is not None
    assert any(name.startswith("outer.") for name in read[0])
    assert same(run(config, method, checkpoint), whole)


def test_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "state", SETTINGS).write({"a": torch.zeros(2)}, {"epoch": 1})
    with pytest.raises(ValueError, match=r"another training: lr was 0.001 and is now 0.01; pass the same lr"):
        Checkpoint(tmp_path / "state", {**SETTINGS, "lr": 1e-2}).read()


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "state", SETTINGS)
    checkpoint.write({"a": torch.zeros(200)}, {"epoch": 1})
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is damaged .* delete it to start again"):
        checkpoint.read()


def test_no_file_is_no_checkpoint(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "state").read() is None


def test_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = Checkpoint(tmp_path / "state", SETTINGS)
    checkpoint.write({"a": torch.zeros(2)}, {"epoch": 1})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with caplog.at_level(logging.WARNING):
        checkpoint.write({"a": torch.ones(2)}, {"epoch": 2})
    assert "No space left on device); the one before it is intact" in caplog.text
    read = checkpoint.read()
    assert read is not None
    assert read[1] == {"epoch": 1}
    assert torch.equal(read[0]["a"], torch.zeros(2))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
