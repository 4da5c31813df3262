"""Levels of whole sections in a model: fitted to sections, kept where held-out ones show that they are predicted."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agl_sc._sdata.study import Study
from agl_sc._sdata.table import region_of
from agl_sc.core.arrays import BoolArray
from agl_sc.core.linear.levels import FEWEST_UNITS, MARGIN, best_penalty, fit_levels, held_out_error
from agl_sc.core.training.recipe import TrainingData
from agl_sc.pp._features.reference import reference_of


@dataclass(frozen=True, slots=True)
class FittedLevels:
    """What a model knows of levels of sections."""

    card: dict[str, Any]
    """Whether they are predicted, and the evidence: number of sections and of units, error of held-out units."""
    tensors: dict[str, torch.Tensor]
    """``levels.centre``, ``levels.sections``, ``levels.coefficients``, and what is added to ``intercept``; none where they
    are not predicted."""


def levels_of(study: Study, data: TrainingData, selected: BoolArray) -> FittedLevels:
    """Fit the levels of the sections with training or validation spots, and judge them by leaving units out.

    Units are patients where they are named, else sections. Six are needed, and held-out levels must have at most .8 of the
    squared error of the mean of the others.

    Parameters
    ----------
    study
        With features.
    data
        What the model was fitted to.
    selected
        Modelled genes that are predicted, (n_genes,).
    """
    regions, patients = region_of(study.table).to_numpy(dtype=str), study.table.obs.get("patient")
    fitted = data.train | data.validation
    names = np.unique(regions[fitted])
    units = names
    if patients is not None and not patients[fitted].isna().any():
        units = np.array([str(patients[fitted & (regions == name)].iloc[0]) for name in names])
    n_units = len(np.unique(units))
    card: dict[str, Any] = {"predicted": False, "n_sections": len(names), "n_units": n_units}
    if n_units < FEWEST_UNITS or data.sources is not None:  # a fine-tuned encoder has other means
        return FittedLevels(card, {})
    reference = reference_of(study)
    features = np.array([reference[name] for name in names]) / data.feature_scale
    values = data.expression[:, np.flatnonzero(selected)]
    means = np.vstack([np.asarray(values[fitted & (regions == name)].mean(axis=0)) for name in names]).astype(float)
    targets = means[:, : data.n_targets]
    error = held_out_error(features, targets, units)
    if not error <= MARGIN:
        return FittedLevels({**card, "error": error}, {})
    levels = fit_levels(features, means, best_penalty(features, targets, units))
    of_spots = np.asarray(values[fitted].mean(axis=0), dtype=float).ravel()
    arrays = {
        "levels.centre": levels.centre,
        "levels.sections": levels.sections,
        "levels.coefficients": levels.coefficients,
        "offset": means.mean(axis=0) - of_spots,
    }
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
    return FittedLevels({**card, "predicted": True, "error": error}, tensors)
