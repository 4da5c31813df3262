"""Settings of training are checked when they are made."""

from typing import Any

import pytest

from agl_sc.core.config import TrainConfig

BAD = [
    ("search", "grid", r"search='grid' is not one of 'path', 'gradient'"),
    ("rank", 0, r"rank=0 is not at least 1, or None\."),
    ("hidden", 0, r"hidden=0 is not at least 1\."),
    ("dropout", 1.0, r"dropout=1\.0 is not in \[0, 1\)\."),
    ("dropout", -0.1, r"dropout=-0\.1 is not in \[0, 1\)\."),
    ("lr", 0.0, r"^lr=0\.0 is not positive\."),
    ("lr", float("nan"), r"^lr=nan is not positive\."),
    ("encoder_lr", -1.0, r"encoder_lr=-1\.0 is not positive\."),
    ("weight_decay", -0.01, r"weight_decay=-0\.01 is not at least 0\."),
    ("batch_size", 7, r"batch_size=7 is not at least 8, since Pearson is taken over a batch\."),
    ("max_epochs", -1, r"max_epochs=-1 is not at least 0\."),
    ("patience", 0, r"patience=0 is not at least 1\."),
    ("temperature", 0.0, r"temperature=0\.0 is not positive; 0\.01 is the paper's\."),
    ("start_cutoff", 1.5, r"start_cutoff=1\.5 is not in \[0, 1\]\."),
    ("start_cutoff", float("nan"), r"start_cutoff=nan is not in \[0, 1\]\."),
    ("inner_steps", 0, r"inner_steps=0 is not at least 1\."),
    ("outer_lr", 0.0, r"outer_lr=0\.0 is not positive\."),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{name}={value}" for name, value, _ in BAD])
def test_bad_settings_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{name: value})


def test_settings_at_the_edge_are_taken() -> None:
    TrainConfig(rank=1, hidden=1, dropout=0.0, weight_decay=0.0, batch_size=8, max_epochs=0, patience=1, start_cutoff=0)
