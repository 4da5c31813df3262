"""How what an analysis wrote into the table is taken back when a step fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from agl_sc._sdata.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData


_SLOTS = ("layers", "obsm")


_COLUMNS = ("obs", "var")


@contextmanager
def unchanged_on_failure(table: "AnnData", keys: Keys) -> Iterator[None]:
    """Restore every slot of this analysis when the body fails or is interrupted."""
    names = {keys.layer, keys.oof, keys.features}
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
        for axis in _COLUMNS:
            setattr(table, axis, columns[axis])
        if uns is not None:
            table.uns[keys.uns] = uns
        else:
            table.uns.pop(keys.uns, None)
        raise
