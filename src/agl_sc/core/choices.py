"""What validation picks, and what a fit takes over from an earlier one."""

from dataclasses import dataclass

import pandas as pd

from agl_sc.core.arrays import FloatArray
from agl_sc.core.numerics.tensors import Parameters


@dataclass(frozen=True, slots=True)
class Choices:
    """What validation picks."""

    alpha: float
    """Ridge penalty of the closed-form start."""
    rank: int
    """Width of the trunk."""
    cutoff: float
    """On the rank axis, in [0, 1]; 0 without and 1 with all auxiliary genes."""
    n_epochs: int
    """Epochs trained."""
    target_weight: float = 1.0
    """Weight of a target gene where a fully weighted auxiliary gene has 1."""
    own_alpha: float | None = None
    """Ridge penalty of the targets' own directions, where they have any."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a fit takes over from an earlier one."""

    state: Parameters | None = None
    """Parameters to start from."""
    weights: FloatArray | None = None
    """Weight of every gene, (n_genes,), instead of the method's own."""
    n_epochs: int = 0
    """Epochs trained before, which trackers count on from."""


TRACE_COLUMNS = ("step", "cutoff", "k", "validation_pearson")


def no_trace() -> pd.DataFrame:
    """The trace where nothing is searched."""
    return pd.DataFrame(columns=list(TRACE_COLUMNS))
