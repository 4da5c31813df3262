"""Settings of training, checked when they are made."""

from dataclasses import dataclass
from typing import Literal, get_args

from agl_sc.core.gate import TEMPERATURE

Method = Literal["pgl", "agl", "dkgsb"]
Search = Literal["path", "gradient", "race"]

MIN_BATCH = 8
"""A smaller last batch is dropped: Pearson over a few spots is noise."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of training."""

    search: Search = "path"
    """How ``dkgsb`` learns its cutoff: ``"path"``, the closed form at every cutoff (seconds, deterministic);
    ``"gradient"``, the paper's hyper-gradient through unrolled steps; ``"race"``, a few cutoffs trained side by side, the
    worse half dropped at each rung. With fine-tuning, path and race run on the cached features before it."""
    rank: int | None = None
    """Width of the shared trunk's output; of 4, 8, 16, 32 and 64 the best on validation spots if None."""
    hidden: int = 256
    """Width of the trunk's hidden layer."""
    dropout: float = 0.2
    """Of the hidden layer, in [0, 1)."""
    lr: float = 1e-4
    """Learning rate of AdamW."""
    encoder_lr: float = 1e-4
    """Learning rate of AdamW on the encoder, where it is fine-tuned."""
    weight_decay: float = 0.01
    """Of AdamW."""
    batch_size: int = 128
    """Spots per batch; Pearson is taken over a batch."""
    max_epochs: int = 50
    """Passes over the training spots at most."""
    patience: int = 10
    """Epochs without a better validation Pearson before training stops."""
    refit: bool = True
    """After validation has picked penalty, cutoff and epoch, train once more on training and validation spots."""
    temperature: float = TEMPERATURE
    """Width of the gate's soft edge on the rank axis."""
    start_cutoff: float = 0.5
    """Where the gradient search starts, in [0, 1]."""
    inner_steps: int = 12
    """Training steps that a hyper-gradient differentiates through."""
    outer_lr: float = 3e-3
    """Learning rate of Adam on the cutoff."""

    def __post_init__(self) -> None:
        legal = {
            "search": (self.search in get_args(Search), f"one of {', '.join(map(repr, get_args(Search)))}"),
            "rank": (self.rank is None or self.rank >= 1, "at least 1, or None"),
            "hidden": (self.hidden >= 1, "at least 1"),
            "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
            "lr": (self.lr > 0, "positive"),
            "encoder_lr": (self.encoder_lr > 0, "positive"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "batch_size": (self.batch_size >= MIN_BATCH, f"at least {MIN_BATCH}, since Pearson is taken over a batch"),
            "max_epochs": (self.max_epochs >= 0, "at least 0"),
            "patience": (self.patience >= 1, "at least 1"),
            "temperature": (self.temperature > 0, "positive; 0.01 is the paper's"),
            "start_cutoff": (0 <= self.start_cutoff <= 1, "in [0, 1]"),
            "inner_steps": (self.inner_steps >= 1, "at least 1"),
            "outer_lr": (self.outer_lr > 0, "positive"),
        }
        for name, (fine, what) in legal.items():
            if not fine:
                msg = f"{name}={getattr(self, name)!r} is not {what}."
                raise ValueError(msg)
