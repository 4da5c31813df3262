"""Shapes, points and labels elements that the spots of a table lie on."""

from typing import TYPE_CHECKING, Any

import numpy as np

from agl_sc._sdata.geometry import spot_pitch_px
from agl_sc.core.arrays import FloatArray

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


def element_of(sdata: "SpatialData", name: str) -> Any:
    """Shapes or points of a region, or the labels of a segmentation."""
    for elements in (sdata.shapes, sdata.points, sdata.labels):
        if name in elements:
            return elements[name]
    msg = f"Region {name!r} of the table is not a shapes element; the shapes are {', '.join(sorted(sdata.shapes)) or 'none'}."
    raise KeyError(msg)


def shapes_of(element: Any) -> Any:
    """Shapes or points as they are; of labels, the circles of the same area around the centre of every object."""
    if hasattr(element, "geometry") or hasattr(element, "columns"):
        return element
    from spatialdata import to_circles

    return to_circles(element)


def points_of(shapes: Any, instances: "pd.Series[Any]", name: str) -> tuple[FloatArray, float, float | None]:
    """Centres (n_spots, 2), median radius, and median side of the square each one would be; None of points."""
    shapes = shapes_of(shapes)
    if not hasattr(shapes, "geometry"):  # a points element, lazy
        shapes = shapes[["x", "y"]].compute()
    missing = ~instances.isin(shapes.index)
    if missing.any():
        msg = (
            f"{int(missing.sum())} spots of the table have no shape in {name!r} (e.g. {instances[missing].iloc[0]!r}); "
            "drop them from the table, or fix its instance_key."
        )
        raise ValueError(msg)
    if not shapes.index.is_unique:
        msg = f"Shapes {name!r} hold several shapes of one name (e.g. {shapes.index[shapes.index.duplicated()][0]!r}); make their index unique."
        raise ValueError(msg)
    rows = shapes.loc[instances]
    if not hasattr(rows, "geometry"):
        centres = rows.to_numpy(dtype=float)
        return centres, spot_pitch_px(centres, "st") / 2, None
    centroids = rows.geometry.centroid
    centres = np.column_stack([centroids.x, centroids.y]).astype(float)
    if "radius" in rows:
        radius = float(np.median(rows["radius"]))
        if not radius > 0:
            msg = f"The median radius of shapes {name!r} is {radius}, which is not positive; mend sdata.shapes[{name!r}]['radius']."
            raise ValueError(msg)
        return centres, radius, 2 * radius
    area = float(np.nanmedian(rows.geometry.area))
    return centres, float(np.sqrt(area / np.pi)), float(np.sqrt(area))
