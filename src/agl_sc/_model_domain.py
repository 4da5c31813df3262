"""What the file of a model holds of the place of its training tissue."""

from collections.abc import Mapping

import torch

OF_DOMAIN, OF_NEIGHBOURS, OF_SEEN_SCALE = "domain.", "neighbours.", "seen_scale."
"""Before the names of the tensors; the latter two behind the first."""
POSITIVE = ("scale", "spread", "units", "limit", f"{OF_NEIGHBOURS}reach", f"{OF_SEEN_SCALE}limit")
"""What must be positive."""


def domain_shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """What the tensors of the training tissue have to measure; nothing of a model that does not know it.

    Older models measure from no neighbours, and some know no scale.
    """
    found = {name.removeprefix(OF_DOMAIN): each for name, each in tensors.items() if name.startswith(OF_DOMAIN)}
    if not found:
        return {}

    def first(name: str) -> int:
        tensor = found.get(name)
        return max(1, len(tensor)) if tensor is not None and tensor.ndim else 1

    width, n_axes, n_known = first("centre"), first("spread"), first("held_out")
    shapes: dict[str, tuple[int, ...]] = {
        "centre": (width,), "scale": (width,), "axes": (n_axes, width), "spread": (n_axes,), "held_out": (n_known,),
        "limit": (2,), "units": (2,),
    }  # fmt: skip
    if "measures" in found:
        n_directions, n_spots = (first(f"{OF_NEIGHBOURS}{name}") for name in ("directions", "reach"))
        near: dict[str, tuple[int, ...]] = {
            "middle": (width,), "directions": (n_directions, width), "points": (n_spots, n_directions), "rest": (n_spots,),
            "reach": (n_spots,),
        }  # fmt: skip
        shapes |= {"measures": (2, n_known), **{f"{OF_NEIGHBOURS}{name}": shape for name, shape in near.items()}}
    if any(name.startswith(OF_SEEN_SCALE) for name in found):
        seen: dict[str, tuple[int, ...]] = {"slope": (width,), "offset": (1,), "limit": (2,)}
        shapes |= {f"{OF_SEEN_SCALE}{name}": shape for name, shape in seen.items()}
    return {f"{OF_DOMAIN}{name}": shape for name, shape in shapes.items()}
