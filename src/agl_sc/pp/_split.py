"""Training, validation and test spots that share nothing they should not."""

import hashlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from agl_sc._boundary import get_table, near_matches, record, recorded, section_of, sections
from agl_sc._keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

By = Literal["section", "block", "spot"]
Units = float | str | Sequence[str]
SETS = ("train", "validation", "test", "unused")

logger = logging.getLogger(__name__)


def split(
    sdata: "SpatialData",
    *,
    by: By = "section",
    test: Units = 0.2,
    validation: Units = 0.2,
    block_um: float = 500.0,
    buffer_um: float = 150.0,
    image_mpp: float | None = None,
    table_key: str | None = None,
    key_added: str = "agl",
    seed: int = 0,
) -> None:
    """Divide the spots into training, validation and test.

    Validation picks (the cutoff, the epoch, the ridge penalty); test is only ever evaluated. When fewer than two sections
    are left after ``test`` has been taken out, a fraction for validation is drawn from spatial blocks of what is left.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    by
        Whole sections, spatial blocks within sections, or single spots. Spots of one section share pixels and are
        correlated with their neighbours, so ``"spot"`` flatters every method; it works, and warns.
    test
        Fraction of the units in [0, 1), or, with ``by="section"``, names of sections.
    validation
        As ``test``.
    block_um
        Side of a spatial block in microns.
    buffer_um
        With blocks, training and validation spots closer than this to a spot of another set are left out of both,
        in microns. The default is wider than a tile of 112 um.
    image_mpp
        Microns per pixel of the full image; from metadata or spot pitch by default.
    table_key
        Table to use; the only one by default.
    key_added
        Prefix of all slots.
    seed
        Seed of the draw.

    Returns
    -------
    Nothing; writes ``obs["agl_split"]``, categorical: train, validation, test, or unused (in a buffer), and
    ``uns["agl"]["split"]``, the settings with a hash over all assignments.

    Raises
    ------
    KeyError
        A named section does not exist.
    ValueError
        A fraction is out of range, a section is asked for twice, or a set would be empty.
    """
    table = get_table(sdata, table_key)
    _check(by, test, validation)
    generator = np.random.default_rng(seed)
    names = section_of(table).to_numpy(dtype=str)
    if by == "spot":
        logger.warning(
            "Spots of one section share pixels and expression with their neighbours: by='spot' flatters every method."
        )
        assigned = _draw(np.arange(len(names)).astype(str), test, validation=validation, generator=generator)
    elif by == "block":
        assigned = _by_block(
            sdata,
            table,
            among=np.ones(table.n_obs, dtype=bool),
            fractions=(test, validation),
            microns=(block_um, buffer_um),
            image_mpp=image_mpp,
            generator=generator,
        )
    else:
        assigned = _by_section(names, test, validation=validation, generator=generator)
        if not (assigned == "validation").any() and isinstance(validation, float) and validation > 0:
            logger.info("Only one section is left for training: validation takes spatial blocks of it.")
            left = assigned == "train"
            blocks = _by_block(
                sdata,
                table,
                among=left,
                fractions=(0.0, validation),
                microns=(block_um, buffer_um),
                image_mpp=image_mpp,
                generator=generator,
            )
            assigned = np.where(left, blocks, assigned)
    _check_sets(assigned, test=test, validation=validation)
    _write(
        table,
        Keys(key_added),
        assigned=assigned,
        settings={"by": by, "seed": seed, "block_um": block_um, "buffer_um": buffer_um},
    )


def split_of(table: "AnnData", keys: Keys) -> NDArray[Any]:
    """Set of every spot, (n_spots,) of str, checked against its manifest."""
    if keys.split not in table.obs:
        msg = f'obs["{keys.split}"] is missing; run agl_sc.pp.split(sdata) first, so that nothing is fitted on test spots.'
        raise KeyError(msg)
    assigned: NDArray[Any] = table.obs[keys.split].astype(str).to_numpy()
    unknown = sorted(set(assigned) - set(SETS))
    if unknown:
        msg = f'obs["{keys.split}"] holds {unknown[0]!r}; the sets are {", ".join(SETS)}.'
        raise ValueError(msg)
    manifest = recorded(table, keys, "split")
    if manifest is not None and manifest["hash"] != _hash(table, assigned):
        msg = f'obs["{keys.split}"] no longer matches its manifest in uns["{keys.uns}"]["split"]; run agl_sc.pp.split(sdata) again.'
        raise ValueError(msg)
    return assigned


def split_hash(table: "AnnData", keys: Keys) -> str:
    """Hash over the set of every spot, whoever wrote it."""
    return _hash(table, split_of(table, keys))


def check_fitted_on(table: "AnnData", keys: Keys, what: str, *, by: str) -> None:
    """Refuse what was fitted on the training spots of an earlier split."""
    fitted_on = (recorded(table, keys, "fitted_on") or {}).get(what)
    if fitted_on is not None and fitted_on != split_hash(table, keys):
        msg = f'var["{keys.metric(what)}"] was fitted on the training spots of another split; run agl_sc.pp.{by}(sdata) again.'
        raise ValueError(msg)


def record_fitted_on(table: "AnnData", keys: Keys, what: str) -> None:
    """Remember the split that something was fitted on."""
    fitted_on = {**(recorded(table, keys, "fitted_on") or {}), what: split_hash(table, keys)}
    record(table, keys, {"fitted_on": fitted_on})


def training_spots(table: "AnnData", keys: Keys) -> NDArray[np.bool_]:
    """Training spots, (n_spots,); refused when there are none."""
    training: NDArray[np.bool_] = split_of(table, keys) == "train"
    if not training.any():
        msg = f'obs["{keys.split}"] has no training spot; run agl_sc.pp.split(sdata) with smaller test and validation.'
        raise ValueError(msg)
    return training


def _check(by: str, test: Units, validation: Units) -> None:
    if by not in ("section", "block", "spot"):
        msg = f"by={by!r} is not one of 'section', 'block', 'spot'."
        raise ValueError(msg)
    total = 0.0
    for argument, value in (("test", test), ("validation", validation)):
        if isinstance(value, float | int):
            if not 0 <= value < 1:
                msg = f"{argument}={value!r} is not a fraction in [0, 1) nor section names."
                raise ValueError(msg)
            total += value
        elif by != "section":
            msg = f"{argument}={value!r} names sections, but by={by!r}; pass a fraction in [0, 1), or by='section'."
            raise ValueError(msg)
    if total >= 1:
        msg = f"test={test!r} and validation={validation!r} leave nothing for training; their sum must be below 1."
        raise ValueError(msg)


def _check_sets(assigned: NDArray[Any], *, test: Units, validation: Units) -> None:
    for name, asked in (("train", True), ("validation", validation), ("test", test)):
        if asked and not (assigned == name).any():
            msg = f"No spot is left for {name}; change the fractions test and validation, or divide by='block' with a smaller block_um."
            raise ValueError(msg)


def _named(argument: str, value: Units, known: Sequence[str]) -> list[str]:
    chosen = [value] if isinstance(value, str) else list(value)  # type: ignore[arg-type]
    for name in chosen:
        if name not in known:
            msg = f"{argument}={name!r} is not a section; the sections are {', '.join(known)}{near_matches([name], known)}."
            raise KeyError(msg)
    return chosen


def _by_section(names: NDArray[Any], test: Units, *, validation: Units, generator: np.random.Generator) -> NDArray[Any]:
    known = sorted(set(names))
    pool = list(generator.permutation(known))
    sets: dict[str, list[str]] = {}
    for argument, value in (("test", test), ("validation", validation)):
        if not isinstance(value, float | int):
            sets[argument] = _named(argument, value, known)
            pool = [name for name in pool if name not in sets[argument]]
    both = set(sets.get("test", [])) & set(sets.get("validation", []))
    if both:
        msg = f"Section {sorted(both)[0]!r} is named for both test and validation; name it once."
        raise ValueError(msg)
    for argument, value in (("test", test), ("validation", validation)):
        if isinstance(value, float | int):
            n_units = max(1, round(value * len(known))) if value > 0 else 0
            sets[argument] = pool[: min(n_units, len(pool) - 1)]
            pool = pool[len(sets[argument]) :]
    if isinstance(test, float) and test > 0 and not sets["test"]:
        msg = f"There is only one section ({', '.join(known)}), which cannot be both training and test; divide by='block'."
        raise ValueError(msg)
    return np.select(
        [np.isin(names, sets["test"]), np.isin(names, sets["validation"])], ["test", "validation"], "train"
    )


def _draw(units: NDArray[Any], test: Units, *, validation: Units, generator: np.random.Generator) -> NDArray[Any]:
    """Assign every spot by its unit, whole units in random order until a set has its fraction of the spots."""
    names, sizes = np.unique(units, return_counts=True)
    order = generator.permutation(len(names))
    filled = np.concatenate([[0], np.cumsum(sizes[order])]) / len(units)
    # The number of units whose share of the spots is nearest to what is asked for: units differ in size.
    n_test = int(np.argmin(np.abs(filled - _fraction(test))))
    n_both = int(np.argmin(np.abs(filled - filled[n_test] - _fraction(validation)))) if validation else n_test
    in_test, in_validation = (np.isin(units, names[order[part]]) for part in (slice(n_test), slice(n_test, n_both)))
    return np.select([in_test, in_validation], ["test", "validation"], "train")


def _fraction(value: Units) -> float:
    return float(value) if isinstance(value, float | int) else 0.0


def _by_block(
    sdata: "SpatialData",
    table: "AnnData",
    *,
    among: NDArray[np.bool_],
    fractions: tuple[Units, Units],
    microns: tuple[float, float],
    image_mpp: float | None,
    generator: np.random.Generator,
) -> NDArray[Any]:
    """Assign the spots ``among`` the table's by blocks; the others stay unused."""
    block_um, buffer_um = microns
    centres_um = np.full((table.n_obs, 2), np.nan)
    found = sections(sdata, table)
    for section in found:
        centres_um[section.rows] = section.centres * section.mpp(image_mpp)
    names = section_of(table).to_numpy(dtype=str)
    offset = pd.DataFrame(centres_um).groupby(names).transform("min").to_numpy()
    grid = np.floor(np.nan_to_num((centres_um - offset) / block_um)).astype(int)
    blocks = np.array([f"{name}/{y}/{x}" for name, (x, y) in zip(names, grid, strict=True)])
    assigned = np.full(table.n_obs, "unused", dtype="<U10")
    assigned[among] = _draw(blocks[among], fractions[0], validation=fractions[1], generator=generator)
    return _with_buffer(assigned, centres_um, names=names, buffer_um=buffer_um)


def _with_buffer(
    assigned: NDArray[Any], centres_um: NDArray[np.float64], *, names: NDArray[Any], buffer_um: float
) -> NDArray[Any]:
    """Leave out spots too near to a set that outranks theirs: test over validation over train."""
    result = assigned.astype("<U10")
    for name in np.unique(names):
        inside = np.flatnonzero((names == name) & np.isfinite(centres_um).all(axis=1))
        for weaker, stronger in (("train", ("validation", "test")), ("validation", ("test",))):
            weak = inside[assigned[inside] == weaker]
            strong = inside[np.isin(assigned[inside], stronger)]
            if len(weak) and len(strong):
                distance, _ = cKDTree(centres_um[strong]).query(centres_um[weak])
                result[weak[distance < buffer_um]] = "unused"
    return result


def _hash(table: "AnnData", assigned: NDArray[Any]) -> str:
    lines = "\n".join(f"{spot}\t{name}" for spot, name in zip(table.obs_names, assigned, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _write(table: "AnnData", keys: Keys, *, assigned: NDArray[Any], settings: dict[str, Any]) -> None:
    table.obs[keys.split] = pd.Categorical(assigned, categories=list(SETS))
    record(table, keys, {"split": {**settings, "hash": _hash(table, assigned)}})
    counts = ", ".join(f"{(assigned == name).sum()} {name}" for name in SETS if (assigned == name).any())
    logger.info('Wrote obs["%s"]: %s spots.', keys.split, counts)
