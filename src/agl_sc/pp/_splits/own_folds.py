"""Folds of the user's own: a column of ``obs``, or a list of splits."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from agl_sc._sdata.study import Study, known_positions
from agl_sc._sdata.table import as_text, near_matches
from agl_sc.core.arrays import StrArray
from agl_sc.pp._splits.blocks import locate
from agl_sc.pp._splits.folds import Fold, FoldPlan, folds_of_units
from agl_sc.pp._splits.leaks import tell_duplicates, tell_patients
from agl_sc.pp._splits.units import SETS, among_sets

if TYPE_CHECKING:
    from anndata import AnnData

OwnFolds = str | Sequence[Sequence[str]]
_UNNAMED = ("", "nan", "none", "<na>")


def own_folds(study: Study, folds: OwnFolds, plan: FoldPlan) -> list[Fold]:
    """Folds from a column of ``obs``, every value of which is test in one of them, or from the sets of every spot in each.

    Parameters
    ----------
    study
        Where the spots are.
    folds
        Name of the column, or of every fold the set of every spot: train, validation, test or unused.
    plan
        What a column leaves open: the share that picks, blocks and buffer where only one value is left for training.

    Raises
    ------
    KeyError
        There is no such column.
    TypeError
        ``folds`` is neither a name nor a list of sets.
    ValueError
        A fold has no training or test spot, or a spot is test in two of them.
    """
    if isinstance(folds, str):
        units = _column(study.table, folds)
        known = known_positions(study.positioned, study.table.n_obs) & among_sets(study) & (units != "")
        made = list(
            folds_of_units(units, plan, known=known, places=partial(locate, study), what=f"value of obs[{folds!r}]")
        )
    else:
        _check_listed(folds)
        made = [_given(study, sets, number) for number, sets in enumerate(folds)]
        _check_disjoint(made)
    splits = [fold.assigned for fold in made]
    tell_patients(study.table, splits)
    tell_duplicates(study.table, splits)
    return made


def _column(table: "AnnData", name: str) -> StrArray:
    """Value of every spot, (n_obs,); empty where there is none."""
    if name not in table.obs:
        known = [str(column) for column in table.obs.columns]
        msg = f"folds={name!r} is not a column of obs; they are {', '.join(known)}{near_matches([name], known)}."
        raise KeyError(msg)
    column = table.obs[name]
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all():  # whole numbers, with gaps
        column = column.astype("Int64")
    values = as_text(column)
    unnamed = column.isna().to_numpy() | np.isin(np.char.lower(np.char.strip(values)), _UNNAMED)
    return np.where(unnamed, "", values)


def _check_listed(folds: Any) -> None:
    """Refuse what is neither the name of a column nor a list of lists."""
    wrong = folds if not isinstance(folds, Iterable) else next((each for each in folds if np.ndim(each) != 1), None)
    if wrong is not None:
        msg = f"folds= holds {wrong!r}, a {type(wrong).__name__}; give the name of a column of obs, or of every fold the set of every spot."
        raise TypeError(msg)


def _given(study: Study, sets: Any, number: int) -> Fold:
    assigned = np.asarray(sets, dtype=object).astype(str)
    if assigned.shape != (study.table.n_obs,):
        msg = f"folds[{number}] has {len(assigned)} entries for {study.table.n_obs} spots; give the set of every spot."
        raise ValueError(msg)
    unknown = sorted(set(assigned.tolist()) - set(SETS))
    if unknown:
        msg = f"folds[{number}] holds {unknown[0]!r}; the sets are {', '.join(SETS)}."
        raise ValueError(msg)
    for name in ("train", "test"):
        if not (assigned == name).any():
            msg = f"folds[{number}] has no {name} spot; give every fold training and test spots."
            raise ValueError(msg)
    return Fold(number, f"fold {number}", assigned.astype("<U10"))


def _check_disjoint(folds: Sequence[Fold]) -> None:
    if not folds:
        msg = "folds= is empty; give the sets of at least one fold, or the name of a column of obs."
        raise ValueError(msg)
    n_test = np.sum([fold.assigned == "test" for fold in folds], axis=0)
    if (n_test > 1).any():
        msg = f"{int((n_test > 1).sum())} spots are test in several folds=; every spot is predicted out of fold once."
        raise ValueError(msg)
