"""Folds of a cross-validation: every spot is test in one of them, and shares nothing with what trains there."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import SplitRecord, remember
from agl_sc._sdata.study import Study, known_positions
from agl_sc.core.arguments import check_choice, check_seed, is_whole
from agl_sc.core.arrays import BoolArray, StrArray
from agl_sc.pp._splits.blocks import Positions, check_microns, locate
from agl_sc.pp._splits.leaks import tell_duplicates, tell_patients
from agl_sc.pp._splits.manifest import checked_manifest, hash_of
from agl_sc.pp._splits.units import (
    FINER,
    SETS,
    SPOTS_WARNING,
    By,
    among_sets,
    check_patients_named,
    deal,
    draw,
    units_of,
)

if TYPE_CHECKING:
    from anndata import AnnData

_DEFAULT_FOLDS = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """Sets of one fold."""

    number: int
    """Number of the fold, from 0."""
    name: str
    """The unit held out, or ``"fold 3"`` where there are several."""
    assigned: StrArray
    """Set of every spot, (n_obs,): train, validation, test, or unused (in a buffer, or without a position)."""


@dataclass(frozen=True, slots=True)
class FoldPlan:
    """How spots are divided into folds."""

    by: By = "section"
    """Whole sections, all sections of a patient, spatial blocks within sections, or single spots."""
    n_folds: int | None = None
    """Number of folds; one per section or patient, 5 of blocks or spots, by default."""
    validation: float = 0.2
    """Fraction of the units, or with blocks and spots of the spots, that picks in every fold; 0 for none."""
    block_um: float = 500.0
    """Side of a spatial block in microns."""
    buffer_um: float = 150.0
    """With blocks, spots closer than this to a set that outranks theirs are left out of the fold, in microns."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        check_choice("by", self.by, get_args(By))
        if self.n_folds is not None and (not is_whole(self.n_folds) or self.n_folds < 2):
            msg = f"n_folds={self.n_folds!r} is not a whole number of at least 2; None makes one fold per section or patient."
            raise ValueError(msg)
        if not isinstance(self.validation, Real) or not 0 <= self.validation < 1:
            msg = f"validation={self.validation!r} is not a fraction in [0, 1); 0 leaves validation out."
            raise ValueError(msg)
        check_microns(self.block_um, self.buffer_um)
        check_seed(self.seed)


def make_folds(study: Study, plan: FoldPlan) -> list[Fold]:
    """Divide the spots of a table into the folds of a cross-validation.

    Every spot on tissue with a position is test in exactly one fold. Validation of a fold is whole units of the others where
    two or more are left (by section or patient), drawn so that all take turns; else spatial blocks of what is left, with the
    buffer.

    Parameters
    ----------
    study
        Where the spots are.
    plan
        How to divide.

    Raises
    ------
    KeyError
        ``by="patient"`` without a column ``patient``.
    ValueError
        There are fewer units than folds, or a set of a fold would be empty.
    """
    table = study.table
    if plan.by == "patient":
        check_patients_named(study)
    known = known_positions(study.positioned, table.n_obs) & among_sets(study)
    if plan.by in ("section", "patient"):
        folds = list(_by_units(table, plan, known=known, places=partial(locate, study)))
    else:
        folds = list(_within_sections(locate(study), plan, known=known))
    for fold in folds:
        _check_sets(fold, plan)
        if plan.by in ("block", "spot"):
            _tell_untrained(fold, study.section_names)
    splits = [fold.assigned for fold in folds]
    if plan.by == "section":
        tell_patients(table, splits)
    tell_duplicates(table, splits)
    return folds


def folds_of(table: "AnnData", keys: Keys) -> list[Fold]:
    """Folds that ``agl_sc.pp.split(sdata, n_folds=)`` wrote, checked against their manifest."""
    _, manifest = checked_manifest(table, keys)
    if manifest is None or manifest.names is None:
        msg = (
            f'obs["{keys.split}"] holds no folds; run agl_sc.pp.split(sdata, n_folds=5), or say how to divide with by=.'
        )
        raise ValueError(msg)
    names = np.array(SETS)
    return [
        Fold(number, str(name), names[codes])
        for number, (name, codes) in enumerate(zip(manifest.names, manifest.sets, strict=True))
    ]


def write_folds(
    table: "AnnData", keys: Keys, *, folds: Sequence[Fold], plan: FoldPlan, seen: Mapping[str, Any]
) -> None:
    """Write the number of the fold that every spot is test in, and the sets of every fold to the manifest."""
    tests = np.array([fold.assigned == "test" for fold in folds])
    assigned = np.where(tests.any(axis=0), tests.argmax(axis=0).astype(str), "unused")
    categories = [*map(str, range(len(folds))), *(["unused"] if "unused" in assigned else [])]
    table.obs[keys.split] = pd.Categorical(assigned, categories=categories)
    sets = np.array([pd.Categorical(fold.assigned, categories=list(SETS)).codes for fold in folds])
    settings = {**asdict(plan), "n_folds": len(folds)}
    names = [fold.name for fold in folds]
    remember(table, keys, SplitRecord(hash_of(table, assigned, sets), {**settings, **seen}, names, sets))
    logger.info(
        'Wrote obs["%s"]: %d folds of %s spots.', keys.split, len(folds), ", ".join(map(str, tests.sum(axis=1)))
    )


def _by_units(table: "AnnData", plan: FoldPlan, *, known: BoolArray, places: Callable[[], Positions]) -> Iterator[Fold]:
    """Folds of whole sections or patients."""
    units = units_of(table, "patient" if plan.by == "patient" else "section")
    return folds_of_units(units, plan, known=known, places=places, what=plan.by)


def folds_of_units(
    units: StrArray, plan: FoldPlan, *, known: BoolArray, places: Callable[[], Positions], what: str
) -> Iterator[Fold]:
    """Folds of whole units.

    Parameters
    ----------
    units
        Unit of every spot, (n_obs,).
    plan
        How to divide.
    known
        Spots to be divided, (n_obs,).
    places
        Where they are, asked for where blocks are needed.
    what
        What a unit is called.
    """
    groups = _groups(units, known, plan, what=what)
    order = np.random.default_rng(plan.seed).permutation(len(groups))
    n_validation = max(1, round(plan.validation * sum(map(len, groups)))) if plan.validation else 0
    for number, held_out in enumerate(groups):
        turn = int(np.flatnonzero(order == number)[0])
        left = [name for i in np.roll(order, -turn - 1)[:-1] for name in groups[i]]
        rest = known & np.isin(units, left)
        if n_validation and len(left) == 1:
            logger.info("Fold %d: only %s is left for training, validation takes spatial blocks of it.", number, *left)
            where = places()
            assigned = _drawn(where.blocks(plan.block_um), rest, plan, number=number, share=plan.validation)
            assigned = where.with_buffer(assigned, plan.buffer_um)
        else:
            picking = np.isin(units, left[: min(n_validation, len(left) - 1)])
            assigned = np.select([rest & picking, rest], ["validation", "train"], "unused")
        assigned[known & np.isin(units, held_out)] = "test"
        yield Fold(number, held_out[0] if len(held_out) == 1 else f"fold {number}", assigned)


def _groups(units: StrArray, known: BoolArray, plan: FoldPlan, *, what: str) -> list[list[str]]:
    """Names of the units held out in every fold."""
    names = sorted(set(units.tolist()) - {""})
    nowhere = sorted(set(names) - set(units[known].tolist()))
    if nowhere:
        msg = f"The {what} {nowhere[0]!r} has no spot with a position, so a fold would be empty; drop its spots from the table."
        raise ValueError(msg)
    if len(names) < 2:
        msg = (
            f"by={plan.by!r} holds out whole {plan.by}s, and there is only one ({names[0]}); divide by={FINER[plan.by]}."
            if what == plan.by and names
            else f"There is {f'only one {what} ({names[0]})' if names else f'no {what}'}, and folds hold out one after the other; name more."
        )
        raise ValueError(msg)
    if plan.n_folds is None:
        return [[name] for name in names]
    _check_enough(len(names), plan.n_folds, f"{plan.by}s")
    generator = np.random.default_rng(plan.seed)
    fold_of = deal(units[known], np.zeros(known.sum(), dtype=str), n_folds=plan.n_folds, generator=generator)
    return [sorted(set(units[known][fold_of == number].tolist())) for number in range(plan.n_folds)]


def _within_sections(places: Positions, plan: FoldPlan, *, known: BoolArray | None = None) -> Iterator[Fold]:
    """Folds of blocks or spots, each with its share of every section; of ``known`` spots, all with a position by default."""
    n_folds = plan.n_folds or _DEFAULT_FOLDS
    known = places.known if known is None else known
    if plan.by == "spot":
        logger.warning(SPOTS_WARNING)
        units, what = np.arange(len(known)).astype(str), "spots"
    else:
        units, what = places.blocks(plan.block_um), f"blocks of {plan.block_um:g} um"
    _check_enough(len(set(units[known])), n_folds, what)
    fold_of = np.full(len(known), -1)
    generator = np.random.default_rng(plan.seed)
    fold_of[known] = deal(units[known], places.sections[known], n_folds=n_folds, generator=generator)
    for number in range(n_folds):
        rest = known & (fold_of != number)
        assigned = _drawn(units, rest, plan, number=number, share=plan.validation * known.sum() / rest.sum())
        assigned[fold_of == number] = "test"
        if plan.by == "block":
            assigned = places.with_buffer(assigned, plan.buffer_um)
        yield Fold(number, f"fold {number}", assigned)


def _drawn(units: StrArray, rest: BoolArray, plan: FoldPlan, *, number: int, share: float) -> StrArray:
    """The rest of the spots as training and validation, whole units; the others unused."""
    assigned = np.full(len(units), "unused", dtype="<U10")
    generator = np.random.default_rng([plan.seed, number])
    assigned[rest] = draw(units[rest], test=0.0, validation=share, generator=generator)
    return assigned


def _check_enough(n_units: int, n_folds: int, what: str) -> None:
    if n_units < n_folds:
        mend = "or a smaller block_um" if what.startswith("blocks") else "or divide by='block'"
        msg = f"n_folds={n_folds} needs as many {what}, and there are {n_units}; ask for fewer folds, {mend}."
        raise ValueError(msg)


def _check_sets(fold: Fold, plan: FoldPlan) -> None:
    for name, asked in (("train", True), ("validation", plan.validation > 0), ("test", True)):
        if asked and not (fold.assigned == name).any():
            msg = (
                f"No spot of {fold.name!r} is left for {name} (validation={plan.validation:g}, block_um={plan.block_um:g}, "
                f"buffer_um={plan.buffer_um:g}); use a smaller validation, block_um or buffer_um."
            )
            raise ValueError(msg)


def _tell_untrained(fold: Fold, sections: StrArray) -> None:
    """Within sections, a test spot is to be predicted by others of its section."""
    untrained = set(sections[fold.assigned == "test"]) - set(sections[fold.assigned == "train"])
    if untrained:
        logger.warning(
            "No training spot of %s is left in %s: it is predicted from other sections there; use a smaller block_um or buffer_um.",
            ", ".join(sorted(untrained)),
            fold.name,
        )
