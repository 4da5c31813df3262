"""Where to cut the ranking of auxiliary genes: by a race, or by hyper-gradient; and the spots that judge it."""

from collections.abc import Callable, Sequence

import pandas as pd

RACE_CUTOFFS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Cutoffs that ``search="race"`` trains."""


def race_search(
    train: Callable[[float, int], float], *, cutoffs: Sequence[float] = RACE_CUTOFFS, first_rung: int = 2
) -> tuple[float, pd.DataFrame]:
    """Cutoff by successive halving (Jamieson and Talwalkar, 2016): the question that a short hyper-gradient cannot ask.

    The last rung is run once more with the two cutoffs half-way to the winner's neighbours.

    Parameters
    ----------
    train
        From a cutoff and a number of epochs to the best validation Pearson of a training from the common start.
    cutoffs
        Contestants on the rank axis, increasing.
    first_rung
        Epochs of the first rung; every rung has twice as many, and the better half of the contestants.

    Returns
    -------
    The cutoff in [0, 1], and the trace: step (the rung), cutoff, validation_pearson.
    """
    rungs = [{cutoff: train(cutoff, first_rung) for cutoff in cutoffs}]
    n_epochs = first_rung
    while len(rungs[-1]) > 2:
        n_epochs *= 2
        rungs.append({cutoff: train(cutoff, n_epochs) for cutoff in _best(rungs[-1], len(rungs[-1]) // 2)})
    (winner,) = _best(rungs[-1], 1)
    rungs.append({cutoff: train(cutoff, n_epochs) for cutoff in _between(winner, cutoffs)})
    (winner,) = _best({winner: rungs[-2][winner], **rungs[-1]}, 1)
    rows = [
        {"step": rung, "cutoff": c, "validation_pearson": s} for rung, of in enumerate(rungs) for c, s in of.items()
    ]
    return winner, pd.DataFrame(rows)


def _best(scores: dict[float, float], n: int) -> list[float]:
    """The n cutoffs of highest score, increasing; of equal scores the smaller cutoff."""
    return sorted(sorted(scores, key=lambda cutoff: (-scores[cutoff], cutoff))[:n])


def _between(cutoff: float, cutoffs: Sequence[float]) -> list[float]:
    """Half-way from a cutoff to the next smaller and the next larger one."""
    place = list(cutoffs).index(cutoff)
    return [(cutoff + cutoffs[i]) / 2 for i in (place - 1, place + 1) if 0 <= i < len(cutoffs)]
