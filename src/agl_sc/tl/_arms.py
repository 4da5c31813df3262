"""Several methods on the same split, features and held-out spots."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from agl_sc._boundary import get_table, section_of
from agl_sc._keys import Keys
from agl_sc.core import metrics
from agl_sc.core.baselines import ridge_cv
from agl_sc.core.config import Method, TrainConfig
from agl_sc.model import Model
from agl_sc.pp._split import split_of
from agl_sc.tl._data import training_data
from agl_sc.tl._evaluate import evaluate
from agl_sc.tl._train import train

if TYPE_CHECKING:
    from spatialdata import SpatialData

Arm = Method | Literal["ridge"]
LABELS = {
    "ridge": "ridge",
    "pgl": "targets only",
    "agl": "all auxiliary",
    "dkgsb": "DkGSB",
    "fixed_k": "fixed k",
    "target_weight": "tuned target weight",
    "uncertainty": "uncertainty",
    "auxilearn": "AuxiLearn",
    "amal": "AMAL",
    "cosine": "gradient cosine",
}


def compare_arms(
    sdata: "SpatialData",
    arms: Sequence[Arm] = ("ridge", "pgl", "agl", "dkgsb"),
    *,
    config: TrainConfig | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, Model | None]:
    """Test Pearson of the targets under every arm; what the last model wrote stays.

    Ridge is fitted on training and validation spots, which is what the other arms are fitted on in the end too.

    Returns
    -------
    One row per arm, section and gene (arm, seed, section, gene, pearson), and the last model.
    """
    model = None
    tables = []
    for arm in arms:
        if arm == "ridge":
            result = ridge_pearson(sdata)
        else:
            model = train(sdata, method=arm, config=config, seed=seed)
            result = evaluate(sdata)[["section", "gene", "pearson"]]
        tables.append(result.assign(arm=arm, seed=seed))
    return pd.concat(tables, ignore_index=True), model


def ridge_pearson(sdata: "SpatialData") -> pd.DataFrame:
    """Test Pearson of ridge with cross-validated penalty per section and target gene: section, gene, pearson."""
    table, keys = get_table(sdata, None), Keys()
    data = training_data(table, keys, None)
    spots = data.spots(data.train | data.validation, data.n_targets)
    predicted = data.features @ ridge_cv(spots.features, spots.expression.columns(0, data.n_targets))
    rows = (split_of(table, keys) == "test") & np.isfinite(predicted).all(axis=1)
    names = section_of(table).to_numpy()
    tables = []
    for name in sorted(set(names[rows])):
        inside = rows & (names == name)
        pearson = metrics.pearson(data.measured(inside, data.n_targets), predicted[inside])
        tables.append(pd.DataFrame({"section": name, "gene": data.genes[: data.n_targets], "pearson": pearson}))
    return pd.concat(tables, ignore_index=True)


def summary(result: pd.DataFrame) -> pd.DataFrame:
    """Mean Pearson over targets (an undefined one left out) and seeds: a row per arm, a column per section."""
    table = result.groupby(["arm", "section"], sort=False)["pearson"].mean().unstack()
    return table.rename(index=LABELS).rename_axis(index=None, columns=None)
