"""Sets of a split, drawn by sections, patients, blocks or spots, or as they are named."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._sdata.study import Study
from agl_sc._sdata.table import near_matches
from agl_sc.core.arguments import check_choice, check_names, check_seed, is_number
from agl_sc.core.arrays import StrArray
from agl_sc.pp._splits.blocks import Positions, check_microns, locate
from agl_sc.pp._splits.fitting import fitting_blocks
from agl_sc.pp._splits.units import FINER, SPOTS_WARNING, By, among_sets, draw, units_of

Units = float | str | Sequence[str]
SHARE = 0.2

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """What :func:`split` is asked for."""

    by: By = "section"
    """What is divided."""
    test: Units = SHARE
    """Fraction or names."""
    validation: Units = SHARE
    """Fraction or names."""
    n_folds: int | None = None
    """Number of folds, where folds are made instead of one split."""
    assignments: Mapping[str, str] | str | None = None
    """Sets of the user's own."""
    block_um: float = 500.0
    """Side of a block in microns."""
    buffer_um: float = 150.0
    """Distance that sets of blocks keep, in microns."""
    seed: int = 0
    """Seed of the draw."""

    def __post_init__(self) -> None:
        check_choice("by", self.by, get_args(By))
        check_seed(self.seed)
        check_microns(self.block_um, self.buffer_um)
        for argument in ("test", "validation"):  # an array has no truth of its own
            value = getattr(self, argument)
            if isinstance(value, np.ndarray | pd.Series | pd.Index):
                object.__setattr__(self, argument, value.tolist())


def filled(study: Study, asked: SplitRequest, *, may_fit: bool) -> tuple[StrArray, SplitRequest]:
    """Set of every spot, none of which is empty, and by which blocks they are divided."""
    among = among_sets(study)
    if asked.by == "spot":
        logger.warning(SPOTS_WARNING)
    assigned = _drawn(study, among, asked=asked)
    empty = [name for name in _wanted(asked) if not (assigned == name).any()]
    if not empty:
        return assigned, asked
    found = _smaller_blocks(study, among, asked)
    if found is None:
        msg = (
            f"No spot is left for {empty[0]}; change the fractions test and validation, or divide by='block' or 'spot'."
        )
        raise ValueError(msg)
    block_um, buffer_um = found
    if not may_fit:
        msg = (
            f"No spot is left for {empty[0]} by blocks of {asked.block_um:g} um and a buffer of {asked.buffer_um:g} um; pass block_um={block_um:g} and "
            f"buffer_um={buffer_um:g} to agl_sc.pp.split, or --block-um {block_um:g} --buffer-um {buffer_um:g} to agl-sc train."
        )
        raise ValueError(msg)
    logger.warning(
        "The sections are too small for blocks of %g um and a buffer of %g um, so blocks of %g um and a buffer of %g um divide them; "
        "divide them with agl_sc.pp.split for others.",
        *(asked.block_um, asked.buffer_um, block_um, buffer_um),
    )
    fitted = replace(asked, block_um=block_um, buffer_um=buffer_um)
    return _drawn(study, among, asked=fitted, quiet=True), fitted


def _drawn(study: Study, among: NDArray[np.bool_], *, asked: SplitRequest, quiet: bool = False) -> StrArray:
    """Set of every spot ``among`` all, drawn or by the names given."""
    by, generator = asked.by, np.random.default_rng(asked.seed)
    microns = (asked.block_um, asked.buffer_um)
    shares = {"test": _fraction(asked.test), "validation": _fraction(asked.validation)}
    assigned = np.full(len(among), "unused", dtype="<U10")
    if by == "spot":
        assigned[among] = draw(np.flatnonzero(among).astype(str), **shares, generator=generator)
        return assigned
    if by == "block":
        return _by_block(locate(study), among, shares=shares, microns=microns, generator=generator)
    names = units_of(study.table, by)[among]
    assigned[among] = _by_units(names, asked.test, validation=asked.validation, by=by, generator=generator)
    if (assigned == "validation").any() or not shares["validation"]:
        return assigned
    if not quiet:
        logger.info("Only one %s is left for training: validation takes spatial blocks of it.", by)
    left = assigned == "train"
    within = {"test": 0.0, "validation": shares["validation"]}
    blocks = _by_block(locate(study), left, shares=within, microns=microns, generator=generator)
    return np.where(left, blocks, assigned)


def _by_block(
    places: Positions,
    among: NDArray[np.bool_],
    *,
    shares: Mapping[str, float],
    microns: tuple[float, float],
    generator: np.random.Generator,
) -> StrArray:
    """Assign the spots ``among`` all by blocks; the others, and those without a position, stay unused."""
    block_um, buffer_um = microns
    among = among & places.known
    assigned = np.full(len(among), "unused", dtype="<U10")
    assigned[among] = draw(places.blocks(block_um)[among], **shares, generator=generator)
    return places.with_buffer(assigned, buffer_um)


def _fraction(value: Units) -> float:
    return float(value) if is_number(value) else 0.0


def _wanted(asked: SplitRequest) -> list[str]:
    """Sets that may not be empty."""
    shares = {"train": 1.0, "validation": asked.validation, "test": asked.test}
    return [name for name, share in shares.items() if share]


def _smaller_blocks(study: Study, among: NDArray[np.bool_], asked: SplitRequest) -> tuple[float, float] | None:
    """Side of blocks and buffer in microns by which no set is empty; None without any, or where blocks decide nothing."""

    def draw_blocks(block_um: float, buffer_um: float) -> StrArray:
        return _drawn(study, among, asked=replace(asked, block_um=block_um, buffer_um=buffer_um), quiet=True)

    if asked.by == "spot":
        return None
    return fitting_blocks(draw_blocks, _wanted(asked), (asked.block_um, asked.buffer_um))


def _named(argument: str, value: Units, known: Sequence[str], *, by: str) -> list[str]:
    check_names(argument, value)
    chosen = [value] if isinstance(value, str) else list(value)  # type: ignore[arg-type]
    for name in chosen:
        if name not in known:
            msg = f"{argument}={name!r} is not a {by}; the {by}s are {', '.join(known)}{near_matches([name], known)}."
            raise KeyError(msg)
    return chosen


def _by_units(names: StrArray, test: Units, *, validation: Units, by: str, generator: np.random.Generator) -> StrArray:
    """Whole sections or patients."""
    known = sorted(set(names.tolist()))
    pool = list(generator.permutation(known))
    sets: dict[str, list[str]] = {}
    for argument, value in (("test", test), ("validation", validation)):
        if not is_number(value):
            sets[argument] = _named(argument, value, known, by=by)
            pool = [name for name in pool if name not in sets[argument]]
    both = set(sets.get("test", [])) & set(sets.get("validation", []))
    if both:
        msg = f"{by.capitalize()} {sorted(both)[0]!r} is named for both test and validation; name it once."
        raise ValueError(msg)
    for argument, value in (("test", test), ("validation", validation)):
        if is_number(value):
            n_units = max(1, round(value * len(known))) if value > 0 else 0
            sets[argument] = pool[: min(n_units, len(pool) - 1)]
            pool = pool[len(sets[argument]) :]
    if isinstance(test, float) and test > 0 and not sets["test"]:
        left = [name for name in known if name not in sets.get("validation", [])]
        beside = f" beside validation ({', '.join(sets['validation'])})" if len(left) < len(known) else ""
        msg = f"There is only one {by} ({', '.join(left)}){beside}, which cannot be both training and test; divide by={FINER[by]}."
        raise ValueError(msg)
    return np.select(
        [np.isin(names, sets["test"]), np.isin(names, sets["validation"])], ["test", "validation"], "train"
    )
