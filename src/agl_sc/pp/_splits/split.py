"""Training, validation and test spots that share nothing they should not."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import FittedRecord, SplitRecord, remember, remembered
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import is_number, label_of
from agl_sc.pp._splits.drawn import SHARE, SplitRequest, Units, filled
from agl_sc.pp._splits.folds import FoldPlan, make_folds, write_folds
from agl_sc.pp._splits.given import given_sets
from agl_sc.pp._splits.leaks import count_shared_pixels, tell_duplicates, tell_patients
from agl_sc.pp._splits.manifest import checked_manifest, hash_of
from agl_sc.pp._splits.units import SETS, By, check_patients_named

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

_SPLIT, _HASH = "split", "split hash"
"""Of the memo of a study."""

logger = logging.getLogger(__name__)


def split(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    by: By = "section",
    test: Units = SHARE,
    validation: Units = SHARE,
    n_folds: int | None = None,
    assignments: Mapping[str, str] | str | None = None,
    block_um: float = 500.0,
    buffer_um: float = 150.0,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    key_added: str = "agl",
    seed: int = 0,
) -> None:
    """Divide the spots into training, validation and test, or into folds.

    Validation picks (the cutoff, the epoch, the ridge penalty); test is only ever evaluated. When fewer than two sections
    (patients) are left after ``test`` has been taken out, a fraction for validation is drawn from spatial blocks of what is
    left. What sets still share is told: tiles with the same pixels, a patient's sections in training and test, one section
    under two names. Spots off the tissue (``obs["in_tissue"]`` of 0) are in no set, and so are those of regions that
    ``shapes_key`` leaves out. No image is needed: blocks and buffers go by positions.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    by
        Whole sections, all sections of a patient (``obs["patient"]``), spatial blocks within sections, or single spots.
        Spots of one section share pixels and are correlated with their neighbours, so ``"spot"`` flatters every method; it
        works, and warns.
    test
        Fraction of the units in [0, 1), or, with ``by="section"`` or ``"patient"``, names of sections or patients.
    validation
        What picks. A fraction or names, as ``test``.
    n_folds
        Number of folds. For :func:`agl_sc.tl.cross_validate`, instead of one split: every spot is test in one of them, and
        ``validation`` is a fraction.
    assignments
        Sets of your own instead of drawn ones: a mapping from section (or patient, with ``by="patient"``) to train,
        validation, test or unused, or the column of ``obs`` that holds them for every spot.
    block_um
        Side of a spatial block in microns.
    buffer_um
        With blocks, training and validation spots closer than this to a spot of another set are left out of both,
        in microns. The default is wider than a tile of 112 um, and narrower than wider fields of view: how
        many tiles then share pixels is told, and what a buffer that keeps them apart would cost.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    image_mpp
        Microns per pixel of the full image, a number or a mapping by section; from metadata or spot pitch by default.
    key_added
        Prefix of all slots.
    seed
        Seed of the draw.

    Returns
    -------
    Nothing; writes ``obs["agl_split"]``, categorical: train, validation, test, or unused (in a buffer), or with ``n_folds``
    the number of the fold that a spot is test in; and ``uns["agl"]["split"]``, the settings with a hash over all
    assignments, how many test and validation tiles share pixels with a set they are to be kept from (of the size of the
    recorded features', without any those of the default fields of view), and with ``n_folds`` the sets of every fold.

    Raises
    ------
    KeyError
        A named section or patient does not exist, or there is no column ``patient``.
    TypeError
        ``assignments`` is neither a mapping nor a name.
    ValueError
        A fraction is out of range, a section is asked for twice, a set would be empty, or assignments put a patient in two
        sets.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.split(sdata, by="section", test="section_3", validation="section_2")
    >>> sdata["table"].obs.groupby("section", observed=True)["agl_split"].first().to_dict()
    {'section_1': 'train', 'section_2': 'validation', 'section_3': 'test'}
    """
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
    )
    study = Study.of(sdata, address, key_added)
    asked = SplitRequest(by, test, validation, n_folds, assignments, block_um, buffer_um, seed)
    split_study(study, asked)


def split_study(study: Study, asked: SplitRequest, *, may_fit: bool = False) -> None:
    """As :func:`split`, of what is resolved already; with smaller blocks than asked for where it may, and others leave a set empty."""
    table, by, test, validation = study.table, asked.by, asked.test, asked.validation
    if by == "patient":
        check_patients_named(study)
    for name in (_SPLIT, _HASH):
        study.memo.pop(name, None)
    if asked.n_folds is not None:
        _check_unused(f"n_folds={asked.n_folds}", test=test, assignments=asked.assignments)
        plan = FoldPlan(n_folds=asked.n_folds, validation=validation, **_settings(asked))  # type: ignore[arg-type]  # refuses names
        folds = make_folds(study, plan)
        seen = count_shared_pixels(study, splits=[fold.assigned for fold in folds], by=by)
        write_folds(table, study.keys, folds=folds, plan=plan, seen=seen)
        return
    _check(by, test, validation)
    if asked.assignments is None:
        assigned, asked = filled(study, asked, may_fit=may_fit)
        settings = _settings(asked)
    else:
        _check_unused("assignments", test=test, validation=validation)
        assigned = given_sets(table, asked.assignments, by)
        settings = {"by": by, "assignments": asked.assignments if isinstance(asked.assignments, str) else "mapping"}
    if by == "section":
        tell_patients(table, [assigned])
    tell_duplicates(table, [assigned])
    seen = count_shared_pixels(study, splits=[assigned], by=by)
    _write(table, study.keys, assigned=assigned, settings={**settings, **seen})


def _settings(asked: SplitRequest) -> dict[str, Any]:
    return {"by": asked.by, "seed": asked.seed, "block_um": asked.block_um, "buffer_um": asked.buffer_um}


def split_of(table: "AnnData", keys: Keys) -> NDArray[Any]:
    """Set of every spot, (n_spots,) of str, checked against its manifest."""
    assigned, manifest = checked_manifest(table, keys)
    if manifest is not None and manifest.names is not None:
        msg = (
            f'obs["{keys.split}"] holds {len(manifest.names)} folds, not one split; run agl_sc.tl.cross_validate(sdata) over '
            "them, or agl_sc.pp.split(sdata) for one split."
        )
        raise ValueError(msg)
    unknown = sorted(set(assigned) - set(SETS))
    if unknown:
        msg = f'obs["{keys.split}"] holds {unknown[0]!r}; the sets are {", ".join(SETS)}.'
        raise ValueError(msg)
    return assigned


def assigned_in(study: Study) -> NDArray[Any]:
    """Set of every spot, (n_spots,) of str, looked up and checked once."""
    if _SPLIT not in study.memo:
        study.memo[_SPLIT] = split_of(study.table, study.keys)
    found: NDArray[Any] = study.memo[_SPLIT]
    return found


def split_hash(study: Study) -> str:
    """Hash over the set of every spot, whoever wrote it."""
    if _HASH not in study.memo:
        study.memo[_HASH] = hash_of(study.table, assigned_in(study))
    found: str = study.memo[_HASH]
    return found


def check_fitted_on(study: Study, what: str, *, by: str) -> None:
    """Refuse what was fitted on the training spots of an earlier split."""
    fitted_on = (remembered(study.table, study.keys, FittedRecord) or FittedRecord({})).by.get(what)
    if fitted_on is not None and fitted_on != split_hash(study):
        msg = f'var["{study.keys.metric(what)}"] was fitted on the training spots of another split; run agl_sc.pp.{by}(sdata) again.'
        raise ValueError(msg)


def record_fitted_on(study: Study, what: str) -> None:
    """Remember the split that something was fitted on."""
    before = remembered(study.table, study.keys, FittedRecord) or FittedRecord({})
    remember(study.table, study.keys, FittedRecord({**before.by, what: split_hash(study)}))


def training_spots(study: Study) -> NDArray[np.bool_]:
    """Training spots, (n_spots,); refused when there are none."""
    training: NDArray[np.bool_] = assigned_in(study) == "train"
    if not training.any():
        msg = f'obs["{study.keys.split}"] has no training spot; run agl_sc.pp.split(sdata) with smaller test and validation.'
        raise ValueError(msg)
    return training


def _check(by: By, test: Units, validation: Units) -> None:
    total = 0.0
    for argument, value in (("test", test), ("validation", validation)):
        if is_number(value):
            if not 0 <= value < 1:
                msg = f"{argument}={value!r} is not a fraction in [0, 1) nor section names; write a name that is a number as text, {argument}={label_of(value)!r}."
                raise ValueError(msg)
            total += value
        elif value is None:
            msg = f"{argument}=None is neither a fraction in [0, 1) nor names; 0 takes none."
            raise TypeError(msg)
        elif by not in ("section", "patient"):
            msg = f"{argument}={value!r} names sections, but by={by!r}; pass a fraction in [0, 1), or by='section'."
            raise ValueError(msg)
    if total >= 1:
        msg = f"test={test!r} and validation={validation!r} leave nothing for training; their sum must be below 1."
        raise ValueError(msg)


def _check_unused(other: str, **given: object) -> None:
    """Refuse what is asked for beside something that decides it already."""
    for argument, value in given.items():
        if value not in (None, SHARE):
            msg = f"{argument}={value!r} is not used with {other}; leave one of the two out."
            raise ValueError(msg)


def _write(table: "AnnData", keys: Keys, *, assigned: NDArray[Any], settings: dict[str, Any]) -> None:
    table.obs[keys.split] = pd.Categorical(assigned, categories=list(SETS))
    remember(table, keys, SplitRecord(hash_of(table, assigned), settings))
    counts = ", ".join(f"{(assigned == name).sum()} {name}" for name in SETS if (assigned == name).any())
    logger.info('Wrote obs["%s"]: %s spots.', keys.split, counts)
