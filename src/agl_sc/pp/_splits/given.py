"""Sets that the user gives, by section or patient or spot by spot."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agl_sc._sdata.table import near_matches
from agl_sc.core.arguments import label_of
from agl_sc.core.arrays import StrArray
from agl_sc.pp._splits.units import SETS, By, straddling, units_of

if TYPE_CHECKING:
    from anndata import AnnData


logger = logging.getLogger(__name__)


def given_sets(table: "AnnData", assignments: Mapping[str, str] | str, by: By) -> StrArray:
    """Set of every spot, (n_obs,), from a column of ``obs`` or a mapping from section or patient."""
    if isinstance(assignments, str):
        assigned = _from_column(table, assignments)
    elif isinstance(assignments, Mapping):
        assigned = _from_mapping(table, assignments, by)
    else:
        msg = f"assignments is a {type(assignments).__name__}, neither a mapping from section or patient to set nor the name of an obs column."
        raise TypeError(msg)
    _check_patients(table, assigned, by)
    return assigned


def _from_column(table: "AnnData", name: str) -> StrArray:
    if name not in table.obs:
        known = [str(column) for column in table.obs.columns]
        msg = f"assignments={name!r} is not a column of obs; they are {', '.join(known)}{near_matches([name], known)}."
        raise KeyError(msg)
    assigned: StrArray = table.obs[name].astype(object).to_numpy().astype(str)
    _check_values(assigned.tolist(), f"obs[{name!r}]")
    return assigned.astype("<U10")


def _from_mapping(table: "AnnData", assignments: Mapping[str, str], by: By) -> StrArray:
    if by not in ("section", "patient"):
        msg = f"assignments maps sections or patients to sets, but by={by!r}; name a column of obs with the set of every spot instead."
        raise ValueError(msg)
    units, named = (
        units_of(table, "patient" if by == "patient" else "section"),
        {label_of(k): v for k, v in assignments.items()},
    )
    known = sorted(set(units.tolist()))
    for name in named:
        if name not in known:
            msg = f"assignments names {name!r}, which is not a {by}; the {by}s are {', '.join(known)}{near_matches([name], known)}."
            raise KeyError(msg)
    for name in known:
        if name not in named:
            msg = f"assignments has no set for the {by} {name!r}; give it one of {', '.join(SETS)}."
            raise KeyError(msg)
    _check_values(named.values(), "assignments")
    return np.array([named[name] for name in units.tolist()], dtype="<U10")


def _check_values(values: Any, where: str) -> None:
    for value in values:
        if value not in SETS:
            msg = f"{where} holds {value!r}; the sets are {', '.join(SETS)}."
            raise ValueError(msg)


def _check_patients(table: "AnnData", assigned: StrArray, by: By) -> None:
    """A patient in two sets is refused, unless sections are divided on purpose."""
    if "patient" not in table.obs and by != "patient":
        return
    shared = straddling(units_of(table, "patient"), assigned)
    for patient, sets in shared.items():
        where = f"Patient {patient!r} is in {' and '.join(sets)}"
        if by in ("section", "patient"):
            msg = (
                f"{where}; give all spots of a patient one set, or say that sections (test=, validation= with names) or "
                "spots of one patient are divided on purpose (by='block')."
            )
            raise ValueError(msg)
        logger.warning("%s: its spots are not independent.", where)
