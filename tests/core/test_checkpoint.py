import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from agl_sc.core import fit as fit_module
from agl_sc.core.checkpoint import Checkpoint
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.epoch import train_epoch
from agl_sc.core.expression import Expression
from agl_sc.core.fit import fit
from agl_sc.core.problem import Spots
from agl_sc.core.progress import FitResult
from agl_sc.core.search import Validation

N_TARGETS = 3
SETTINGS = {"method": "dkgsb", "lr": 1e-3}


def spots(n_spots: int, seed: int) -> Spots:
    generator = np.random.default_rng(seed)
    loadings = np.random.default_rng(0).normal(size=(12, 20))
    features = generator.normal(size=(n_spots, 12))
    expression = features @ loadings + generator.normal(size=(n_spots, 20)) * 3
    return Spots(features, Expression.from_dense(expression), np.zeros(n_spots, dtype=np.int64))


def run(config: TrainConfig, method: Method, checkpoint: Checkpoint | None = None) -> FitResult:
    held_out = spots(30, 2)
    validation = Validation(held_out.features, held_out.expression.columns(0, N_TARGETS), held_out.sections)
    return fit(
        spots(64, 1),
        validation,
        n_targets=N_TARGETS,
        method=method,
        config=config,
        seed=3,
        checkpoint=checkpoint,
    )


def same(left: FitResult, right: FitResult) -> bool:
    tensors = all(torch.equal(left.state[name], right.state[name]) for name in left.state)
    return tensors and left.choices == right.choices and left.history.equals(right.history)


@pytest.mark.parametrize("stop_at", [1, 2, 4])
@pytest.mark.parametrize(
    ("method", "search"), [("agl", "path"), ("dkgsb", "path"), ("dkgsb", "gradient")], ids=["agl", "path", "gradient"]
)
def test_killed_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, method: Method, search: str, stop_at: int
) -> None:
    config = TrainConfig(search=search, max_epochs=5, batch_size=16, inner_steps=2, lr=1e-3, outer_lr=0.05)  # type: ignore[arg-type]
    whole = run(config, method)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", SETTINGS)
    epochs = iter(range(10))

    def interrupted(*args: object, **kwargs: object) -> float:
        if next(epochs) == stop_at:
            raise KeyboardInterrupt
        return train_epoch(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config, method, checkpoint)
    resumed = run(config, method, checkpoint)
    assert len(whole.history) > stop_at + 1, "the interrupt must come before the end for this to test anything"
    assert same(resumed, whole)
    assert same(run(config, method, checkpoint), whole), "a finished training is not trained further"


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

    monkeypatch.setattr("agl_sc.core.checkpoint.os.fsync", full)
    with caplog.at_level(logging.WARNING):
        checkpoint.write({"a": torch.ones(2)}, {"epoch": 2})
    assert "No space left on device); the one before it is intact" in caplog.text
    read = checkpoint.read()
    assert read is not None
    assert read[1] == {"epoch": 1}
    assert torch.equal(read[0]["a"], torch.zeros(2))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
