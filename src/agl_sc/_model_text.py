"""What a person wants to know of a model, in a few lines."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from agl_sc.model import Model

LEVELS, NO_LEVELS = "predicted, values compare between sections too", "not predicted, values compare within a section"
"""What is said of a model."""
_SHOWN = 5
"""Names of sections in a representation."""
_BEST = 3
_CHANCE = 0.05
"""Genes of a smaller false discovery rate are told from chance."""


def description_of(model: "Model") -> list[tuple[str, str]]:
    """What a person wants to know, as names and texts; the method first."""
    made_from = model.card.get("features", {})
    n_auxiliary = len(model.genes) - model.n_targets
    genes = (
        f"{model.n_targets} targets, {model.n_predicted - model.n_targets} of {n_auxiliary} auxiliary genes selected"
    )
    sections = sorted(model.card.get("fitted_on", {}))
    shown = ", ".join(sections[:_SHOWN]) + (", ..." if len(sections) > _SHOWN else "")
    scores = model.history["validation_pearson"].dropna() if "validation_pearson" in model.history else pd.Series()
    best = f"{scores.max():.3f} at epoch {model.best_epoch}" if len(scores) else "not known"
    return [
        ("method", model.method if model.search is None else f"{model.method} (search by {model.search})"),
        ("genes", genes if model.cutoff is None else f"{genes} (cutoff {model.cutoff:.2f})"),
        ("encoder", f"{made_from.get('encoder', 'not known')}{', fine-tuned' if model.finetuned else ''}"),
        ("tiles", _tiles(made_from)),
        ("trained on", f"{_counted(len(sections), 'section')} ({shown})" if sections else "sections not known"),
        ("validation Pearson", best),
        *_held_out(model),
        ("levels of sections", LEVELS if model.levels is not None else NO_LEVELS),
    ]


def _tiles(made_from: Mapping[str, Any]) -> str:
    mpp = made_from.get("mpp", "?")
    return f"{made_from.get('tile_px', '?')} px at {f'{mpp:.4g}' if isinstance(mpp, float) else mpp} um/px"


def _held_out(model: "Model") -> list[tuple[str, str]]:
    """Genes that are told from chance, and the best of them; nothing of an older model."""
    frame = model.scores.loc[model.predicted_genes] if len(model.scores) else model.scores
    known = frame["pearson"].dropna() if "pearson" in frame else pd.Series(dtype=float)
    if known.empty:
        return []
    best = ", ".join(f"{gene} {r:.2f}" for gene, r in known.sort_values(ascending=False, kind="stable")[:_BEST].items())
    n_told = int((frame["q_value"] < _CHANCE).sum()) if "q_value" in frame else 0
    told = f"; {n_told} of {len(known)} predicted genes told from chance" if n_told else ""
    return [("held-out r", f"median {known.median():.2f}, best {best}{told} ({model.card['scores']['words']})")]


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
