"""Everything that the library refuses, or warns of, in a store: its own errors, all of them instead of the first."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.sections import levels_of
from agl_sc._sdata.study import Address, Study, around, without_counts
from agl_sc._sdata.table import check_unique_genes, counts_of, find_table, region_of, section_of
from agl_sc.cli._frame import REFUSALS, is_refusal, message_of
from agl_sc.core.config import TrainConfig
from agl_sc.pp._features.placed import place_section
from agl_sc.pp._features.tiles import TileSpec
from agl_sc.pp._splits.units import patient_of
from agl_sc.tl._model.train import check_enough, split_if_missing

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

T = TypeVar("T")


class Findings:
    """Problems, which stop the library, and notes, which it goes on with; each once."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []

    def attempt(self, function: Callable[..., T], *args: Any, **options: Any) -> T | None:
        """The function's value, or None where it refuses; what it said is kept."""
        try:
            with _warnings_to(self.notes):
                return function(*args, **options)
        except REFUSALS as error:
            if not is_refusal(error):
                raise
            _add(self.problems, message_of(error))
        return None

    def remark(self, function: Callable[..., Any], *args: Any) -> None:
        """Call a function that only some analyses need; its refusal is a note."""
        try:
            function(*args)
        except REFUSALS as error:
            if not is_refusal(error):
                raise
            _add(self.notes, message_of(error))


def check_data(
    findings: Findings, sdata: "SpatialData", spec: TileSpec, *, address: Address | None = None, key_added: str = "agl"
) -> None:
    """Run what training runs before any work, and go on after every refusal.

    Parameters
    ----------
    findings
        What is found is added.
    sdata
        Nothing of it is changed.
    spec
        Tiles to be cut.
    address
        Where the data is, as far as somebody says.
    key_added
        Prefix of all slots.
    """
    address = address or Address()
    table = findings.attempt(find_table, sdata, address.table_key)
    if table is None:
        return
    findings.attempt(check_unique_genes, table)
    is_measured = table.X is not None or address.layer is not None
    if is_measured:
        findings.attempt(counts_of, table, address.layer)
    else:
        findings.notes.append("The table has no counts: its spots can be predicted, not trained on.")
    images = [address.image_key] if isinstance(address.image_key, str) else address.image_key
    for key in sorted(sdata.images):
        if images is None or key in images:
            findings.attempt(levels_of, sdata.images[key], key)
    regions = findings.attempt(region_of, table)
    if regions is None or findings.attempt(section_of, table) is None:
        return
    wanted = [address.shapes_key] if isinstance(address.shapes_key, str) else address.shapes_key
    for name in wanted or sorted(set(regions)):
        _check_region(findings, sdata, spec, address=replace(address, shapes_key=name), key_added=key_added)
    if is_measured:
        findings.attempt(_check_split, sdata, table, address=address, keys=Keys(key_added))
    findings.remark(patient_of, table)


def _check_region(
    findings: Findings, sdata: "SpatialData", spec: TileSpec, *, address: Address, key_added: str
) -> None:
    """Image, scale and tiles of one region."""
    study = findings.attempt(Study.of, sdata, address, key_added)
    for section in (study and findings.attempt(lambda: study.imaged)) or ():
        findings.attempt(place_section, section, spec)


def _check_split(sdata: "SpatialData", table: "AnnData", *, address: Address, keys: Keys) -> None:
    """Whether there are enough spots to train on, after the split that training would make; on a copy."""
    spots = without_counts(table, keys)
    copied = around(sdata, spots)
    copied.attrs = copy.deepcopy(sdata.attrs)
    study = Study.of(copied, replace(address, table_key=None, layer=None), keys.key_added)
    split_if_missing(study, seed=0)
    check_enough(study, TrainConfig())


@contextmanager
def _warnings_to(texts: list[str]) -> Iterator[None]:
    """The library's warnings into a list instead of onto standard error."""
    logger, handler = logging.getLogger("agl_sc"), _Kept(texts)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


class _Kept(logging.Handler):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        _add(self.texts, record.getMessage())


def _add(texts: list[str], text: str) -> None:
    if text not in texts:
        texts.append(text)
