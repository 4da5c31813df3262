"""How what an analysis wrote into the table is taken back when a step fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agl_sc._sdata.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


_SLOTS = ("layers", "obsm")


_COLUMNS = ("obs", "var")


@contextmanager
def unchanged_on_failure(table: "AnnData", keys: Keys, sdata: "SpatialData | None" = None) -> Iterator[None]:
    """Restore every slot of this analysis, and tables of predictions, when the body fails or is interrupted."""
    own = {keys.prediction_table, keys.oof_table}
    tables = {} if sdata is None else {name: sdata.tables[name] for name in own & set(sdata.tables)}
    names = {keys.layer, keys.oof, keys.features, keys.lower, keys.upper}
    before = {slot: {n: getattr(table, slot)[n] for n in names if n in getattr(table, slot)} for slot in _SLOTS}
    columns = {axis: getattr(table, axis).copy(deep=False) for axis in _COLUMNS}
    uns = dict(table.uns.get(keys.uns, {})) if keys.uns in table.uns else None
    try:
        yield
    except BaseException:
        for slot in _SLOTS:
            for name in names & set(getattr(table, slot)):
                del getattr(table, slot)[name]
            for name, value in before[slot].items():
                getattr(table, slot)[name] = value
        if sdata is not None:
            _restore_tables(sdata, own, tables)
        for axis in _COLUMNS:
            setattr(table, axis, columns[axis])
        if uns is not None:
            table.uns[keys.uns] = uns
        else:
            table.uns.pop(keys.uns, None)
        raise


def _restore_tables(sdata: "SpatialData", names: set[str], before: "dict[str, AnnData]") -> None:
    """Put tables of predictions back as they were."""
    for name in names & set(sdata.tables):
        if sdata.tables[name] is not before.get(name):
            del sdata.tables[name]
    for name in set(before) - set(sdata.tables):
        sdata.tables[name] = before[name]
