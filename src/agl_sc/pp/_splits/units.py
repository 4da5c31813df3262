"""What is divided: sections, patients, blocks or spots, drawn into sets or dealt to folds."""

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from agl_sc._sdata.study import Study
from agl_sc._sdata.table import off_tissue, outdated, region_of, section_of
from agl_sc.core.arrays import BoolArray, IntArray, StrArray

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

By = Literal["section", "patient", "block", "spot"]
ATTRS_KEY, ASSUMED_KEY = "agl_sc", "patients_assumed"
"""Entry of ``sdata.attrs``, and the entry in it that readers set where they took each section for its own patient."""
SETS = ("train", "validation", "test", "unused")
_SHOWN = 3
FINER = {"patient": "'section' or 'block'", "section": "'block'"}
SPOTS_WARNING = (
    "Spots of one section share pixels and expression with their neighbours: by='spot' flatters every method."
)


def among_sets(study: Study) -> BoolArray:
    """Spots to be divided, (n_obs,): those on tissue, of the regions asked for; how many are not, is told."""
    table = study.table
    among = np.ones(table.n_obs, dtype=bool)
    if study.address.shapes_key is not None:
        wanted = [study.address.shapes_key] if isinstance(study.address.shapes_key, str) else study.address.shapes_key
        among &= region_of(table).isin(list(wanted)).to_numpy()
    off = off_tissue(table.obs)
    if off.any():
        logger.warning('%d spots are off the tissue (obs["in_tissue"] of 0) and are in no set.', off.sum())
    return among & ~off


def units_of(table: "AnnData", by: Literal["section", "patient"]) -> StrArray:
    """Section or patient of every spot, (n_obs,)."""
    if by == "patient":
        return patient_of(table)
    names: StrArray = section_of(table).to_numpy(dtype=str)
    return names


def patient_of(table: "AnnData") -> StrArray:
    """Patient of every spot, (n_obs,), from ``obs["patient"]``."""
    if "patient" not in table.obs:
        of = "section" if "section" in table.obs else str(region_of(table).name)
        msg = (
            f"obs has no column 'patient' (its columns are {', '.join(map(str, table.obs.columns))}); add one, e.g. "
            f"table.obs['patient'] = table.obs[{of!r}].map({{name: patient, ...}}), or divide by='section'."
        )
        raise KeyError(msg)
    column = table.obs["patient"]
    if column.isna().any():
        without = ", ".join(sorted(set(section_of(table)[column.isna()])))
        msg = f"obs['patient'] is missing for {int(column.isna().sum())} spots (of {without}); name the patient of every spot."
        raise ValueError(msg)
    named = column.astype(str)
    assumed = _assumed_before(table)
    names: StrArray = (named.where(~assumed, section_of(table)) if assumed.any() else named).to_numpy(dtype=str)
    return names


def _assumed_before(table: "AnnData") -> BoolArray:
    """Spots whose patient is only the name that their section had before spatialdata.concatenate renamed it, (n_obs,)."""
    if "section" not in table.obs:
        return np.zeros(table.n_obs, dtype=bool)
    same: BoolArray = (table.obs["patient"].astype(str) == table.obs["section"].astype(str)).to_numpy()
    return outdated(table) & same


def assumed_by_reader(study: Study) -> BoolArray:
    """Spots whose patient is only the name of their section or region, which a reader took for it, (n_obs,)."""
    table = study.table
    if not study.sdata.attrs.get(ATTRS_KEY, {}).get(ASSUMED_KEY):
        return np.zeros(table.n_obs, dtype=bool)
    patients = table.obs["patient"].astype(str)
    same: BoolArray = ((patients == section_of(table)) | (patients == region_of(table))).to_numpy()
    return same


def assumed_patients(study: Study) -> BoolArray:
    """Spots whose patient nobody named, whether a reader took a section for one or a name of before is left over, (n_obs,)."""
    return assumed_by_reader(study) | _assumed_before(study.table)


def check_patients_named(study: Study) -> None:
    """Refuse to divide by patients that a reader had to assume, each section taken for its own.

    Whoever names the patients in ``obs`` by something else than their sections ends the assumption.

    Raises
    ------
    ValueError
        The patient of some section is assumed.
    """
    table = study.table
    if "patient" not in table.obs:
        return
    assumed = assumed_patients(study)
    if assumed.any():
        names = sorted(set(section_of(table)[assumed]))
        listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        msg = (
            f"by='patient' needs patients, and nobody named those of {len(names)} sections ({listed}), each of which was taken for "
            "its own; name them when reading, with patient= of agl_sc.io.read_visium or whichever reads them, or in the table, with "
            "obs['patient'] = obs['section'].map({section: patient, ...})."
        )
        raise ValueError(msg)


def straddling(units: StrArray, assigned: NDArray[Any]) -> dict[str, list[str]]:
    """Units with spots in several of train, validation and test, and in which."""
    found = {}
    for unit in np.unique(units):
        inside = np.unique(assigned[units == unit])
        sets = [name for name in SETS[:-1] if name in inside]
        if len(sets) > 1:
            found[str(unit)] = sets
    return found


def draw(units: StrArray, *, test: float, validation: float, generator: np.random.Generator) -> StrArray:
    """Assign every spot by its unit, whole units in random order until a set has its fraction of the spots."""
    names, sizes = np.unique(units, return_counts=True)
    order = generator.permutation(len(names))
    filled = np.concatenate([[0], np.cumsum(sizes[order])]) / max(len(units), 1)
    # The number of units whose share of the spots is nearest to what is asked for: units differ in size.
    n_test = int(np.argmin(np.abs(filled - test)))
    n_both = int(np.argmin(np.abs(filled - filled[n_test] - validation))) if validation else n_test
    in_test, in_validation = (np.isin(units, names[order[part]]) for part in (slice(n_test), slice(n_test, n_both)))
    return np.select([in_test, in_validation], ["test", "validation"], "train")


def deal(units: StrArray, strata: StrArray, *, n_folds: int, generator: np.random.Generator) -> IntArray:
    """Number of the fold of every spot: whole units, largest first, each to the fold with fewest spots.

    Spots are counted within the unit's stratum first, so that every fold gets its share of each section.

    Parameters
    ----------
    units
        Unit of every spot, (n_spots,).
    strata
        Stratum of every spot, (n_spots,), the same for all spots of a unit.
    n_folds
        Number of folds, at most that of units.
    generator
        Draws the order of units of the same size.
    """
    names, first, inverse, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    order = generator.permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    total = [0] * n_folds
    within = {str(stratum): [0] * n_folds for stratum in np.unique(strata)}
    fold_of = np.empty(len(names), dtype=np.int64)
    for unit in order:
        here = within[str(strata[first[unit]])]
        counts = list(zip(here, total, strict=True))
        fold = counts.index(min(counts))
        fold_of[unit] = fold
        here[fold] += int(sizes[unit])
        total[fold] += int(sizes[unit])
    return fold_of[inverse]
