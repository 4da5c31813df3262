"""The mask of a section's tissue, where a reader left one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agl_sc.core.arrays import FloatArray

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Tissue of a section on its image."""

    is_tissue: NDArray[np.bool_]
    """(y, x)."""
    to_image: FloatArray
    """Matrix (3, 3) from (x, y) in pixels of the mask to pixels of the image's finest level."""


def mask_key_of(section: str) -> str:
    """Name of the labels element that holds the tissue of a section."""
    return f"{section}_tissue"


def mask_of(sdata: "SpatialData", section: str, image_key: str) -> Mask | None:
    """The mask of a section; None where there is none in a coordinate system of its image."""
    from spatialdata.transformations import get_transformation
    from xarray import DataTree

    key = mask_key_of(section)
    if key not in sdata.labels or image_key not in sdata.images:
        return None
    element = sdata.labels[key]
    own: dict[str, Any] = get_transformation(element, get_all=True)
    image: dict[str, Any] = get_transformation(sdata.images[image_key], get_all=True)
    shared = [system for system in own if system in image]
    if not shared:
        return None
    finest: Any = dict(element["scale0"]) if isinstance(element, DataTree) else {"labels": element}
    (labels,) = finest.values()
    to_system, from_image = (
        np.asarray(each[shared[0]].to_affine_matrix(("x", "y"), ("x", "y"))) for each in (own, image)
    )
    return Mask(np.asarray(labels) > 0, np.linalg.inv(from_image) @ to_system)
