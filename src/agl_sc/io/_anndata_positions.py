"""Where the spots of an AnnData lie: pixels by the names of their columns, and places on the array."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from agl_sc.core.arrays import FloatArray

_NAMED = re.compile(r"(?:(?:cent(?:er|re|roid)|image|img|pixel|pxl|coord|pos|loc)?([xy])(?:coord|pos|pixel|px|loc)?s?)")
"""One word of a column name that says x or y."""
_OF_PIXELS = re.compile("pxl|pixel|full|ima?ge?")
_ARRAY_NAMES = (("arrayrow", "arraycol"), ("arrayrow", "arraycolumn"), ("arrayy", "arrayx"))
_LOOSE_ARRAY_NAMES = (("row", "col"), ("row", "column"), ("spotrow", "spotcol"))
"""Names that say array positions only beside a technology that has an array."""


def centres_of(adata: AnnData) -> FloatArray:
    """Spot centres (n_spots, 2), x and y in full-resolution pixels, from ``obsm["spatial"]``.

    A data frame is read by the names of its columns, whatever their order; a constant third column is left out.

    Parameters
    ----------
    adata
        The spots.

    Raises
    ------
    KeyError
        There is no ``obsm["spatial"]``.
    ValueError
        It has another shape, holds no numbers, or its columns do not say which is x.
    """
    if "spatial" not in adata.obsm:
        msg = f"adata has no obsm['spatial'] (spot centres x, y); it has {', '.join(adata.obsm) or 'no obsm'}{_elsewhere(adata)}."
        raise KeyError(msg)
    found = adata.obsm["spatial"]
    if isinstance(found, pd.DataFrame):
        found = _of_frame(found)
    elif issparse(found):
        found = found.toarray()
    shape = np.shape(found)
    if len(shape) != 2:
        raise ValueError(_wrong_shape(shape))
    try:
        numbers: FloatArray = np.asarray(found, dtype=np.float64)
    except (ValueError, TypeError) as error:
        msg = f"obsm['spatial'] holds entries that are no numbers ({error}); give spot centres x, y in pixels."
        raise ValueError(msg) from error
    if shape[1] == 3 and _is_flat(numbers):
        return numbers[:, :2]
    if shape[1] != 2:
        raise ValueError(_wrong_shape(shape))
    return numbers


def array_of(obs: pd.DataFrame, *, is_array: bool) -> FloatArray | None:
    """Row and column of the spots on their array (n_spots, 2), NaN where unknown; None where no column says.

    Parameters
    ----------
    obs
        Columns of the spots.
    is_array
        Whether the technology has an array, so that columns named just row and col mean it.
    """
    column_of = {re.sub(r"[^a-z]", "", str(name).lower()): name for name in reversed(obs.columns)}
    for names in (*_ARRAY_NAMES, *(_LOOSE_ARRAY_NAMES if is_array else ())):
        if all(name in column_of for name in names):
            columns = [pd.to_numeric(obs[column_of[name]].astype(object), errors="coerce") for name in names]
            return np.column_stack([column.to_numpy(dtype=np.float64) for column in columns])
    return None


def _of_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of a frame in the order x, y."""
    names = [str(name) for name in frame.columns]
    axes = [_axis(name) for name in names]
    if axes.count("x") == axes.count("y") == 1:
        return frame.iloc[:, [axes.index("x"), axes.index("y")]]
    if not set(axes) & {"x", "y"} and _are_numbered(names):
        return frame
    on_array = "which are places on the array rather than pixels" if set(axes) == {"array"} else ""
    fault = on_array or "which do not say which one is x and which one y"
    msg = f"obsm['spatial'] is a data frame with the columns {', '.join(names)}, {fault}; name the pixels 'x' and 'y'."
    raise ValueError(msg)


def _axis(name: str) -> str | None:
    """``"x"``, ``"y"``, ``"array"`` for a place on the array, or None where a column name says none of them."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    if any(word.startswith("array") for word in words):
        return "array"
    said = {named[1] for word in words if (named := _NAMED.fullmatch(word))}
    said |= {"x" for word in words if re.search(r"col(umn)?$", word)} | {"y" for word in words if word.endswith("row")}
    return said.pop() if len(said) == 1 else None


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether columns have just been counted, as those of an array are: 0, 1 or spatial_1, spatial_2."""
    found = [re.fullmatch(r"(\D*)(\d+)", name) for name in names]
    prefixes = {match[1] for match in found if match}
    numbers = [int(match[2]) for match in found if match]
    return len(numbers) == len(names) and len(prefixes) == 1 and numbers in ([0, 1], [1, 2], [0, 1, 2], [1, 2, 3])


def _is_flat(numbers: FloatArray) -> bool:
    """Whether the third coordinate says nothing, and one of the others does."""
    varies = [len(np.unique(column[~np.isnan(column)])) > 1 for column in numbers.T]
    return not varies[2] and any(varies[:2])


def _wrong_shape(shape: tuple[int, ...]) -> str:
    return f"obsm['spatial'] has shape {shape}; it must be (n_spots, 2), x and y (a third column may be there if it is constant)."


def _elsewhere(adata: AnnData) -> str:
    """Where coordinates are instead, and how to put them where they belong."""
    named = [key for key in adata.obsm if "spatial" in key.lower() or "coord" in key.lower()]
    if named:
        return f", so if these are pixels of the full image: adata.obsm['spatial'] = adata.obsm[{named[0]!r}]"
    of_axis = {axis: [name for name in map(str, adata.obs.columns) if _axis(name) == axis] for axis in "xy"}
    if of_axis["x"] and of_axis["y"]:
        pair = [min(names, key=lambda name: not _OF_PIXELS.search(name.lower())) for names in of_axis.values()]
        return f", while obs has columns of positions: adata.obsm['spatial'] = adata.obs[{pair!r}].to_numpy()"
    stored = adata.uns.get("spatial")
    is_there = np.ndim(stored) == 2 and np.shape(stored)[0] == adata.n_obs if hasattr(stored, "shape") else False
    return ", while uns['spatial'] holds coordinates: adata.obsm['spatial'] = adata.uns['spatial']" if is_there else ""
