"""Everything that the library refuses, or warns of, in a store: its own errors, all of them instead of the first."""

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.sections import levels_of, sections
from agl_sc._sdata.table import check_unique_genes, counts_of, find_table, region_of
from agl_sc.cli._frame import REFUSALS, is_refusal, message_of
from agl_sc.core.config import TrainConfig
from agl_sc.pp._features.embed import place_section
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
    findings: Findings,
    sdata: "SpatialData",
    spec: TileSpec,
    *,
    image_mpp: float | None = None,
    table_key: str | None = None,
    image_key: Sequence[str] | None = None,
    shapes_key: Sequence[str] | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
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
    image_mpp
        Microns per pixel of the images, where they do not say.
    table_key, image_key, shapes_key, coordinate_system, layer, key_added
        As :func:`agl_sc.tl.train` takes them.
    """
    table = findings.attempt(find_table, sdata, table_key)
    if table is None:
        return
    findings.attempt(check_unique_genes, table)
    is_measured = table.X is not None or layer is not None
    if is_measured:
        findings.attempt(counts_of, table, layer)
    else:
        findings.notes.append("The table has no counts: its spots can be predicted, not trained on.")
    for key in sorted(sdata.images):
        if image_key is None or key in image_key:
            findings.attempt(levels_of, sdata.images[key], key)
    regions = findings.attempt(region_of, table)
    if regions is None:
        return
    where = {"image_key": image_key, "coordinate_system": coordinate_system}
    for name in shapes_key or sorted(set(regions)):
        for section in findings.attempt(sections, sdata, table, shapes_key=name, **where) or ():
            findings.attempt(place_section, section, spec, image_mpp)
    if is_measured:
        findings.attempt(_check_split, sdata, table, keys=Keys(key_added), image_mpp=image_mpp)
    findings.remark(patient_of, table)


def _check_split(sdata: "SpatialData", table: "AnnData", *, keys: Keys, image_mpp: float | None) -> None:
    """Whether there are enough spots to train on, after the split that training would make; on a copy."""
    from anndata import AnnData
    from spatialdata import SpatialData

    spots = AnnData(
        obs=table.obs.copy(),
        uns=copy.deepcopy({k: table.uns[k] for k in ("spatialdata_attrs", keys.uns) if k in table.uns}),
    )
    elements = {kind: dict(getattr(sdata, kind)) for kind in ("images", "shapes", "points")}
    copied = SpatialData(**elements, tables={"table": spots}, attrs=copy.deepcopy(sdata.attrs))
    split_if_missing(copied, spots, keys=keys, seed=0, image_mpp=image_mpp)
    check_enough(spots, keys, TrainConfig())


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
