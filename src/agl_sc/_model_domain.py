"""What the file of a model holds of the place of its training tissue."""

from collections.abc import Mapping

import torch

OF_DOMAIN = "domain."
"""Before the names of the tensors."""
POSITIVE = ("scale", "spread", "units", "limit", "neighbours.reach", "seen_scale.limit")
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
        n_directions, n_spots = first("neighbours.directions"), first("neighbours.reach")
        shapes |= {
            "measures": (2, n_known), "neighbours.middle": (width,), "neighbours.directions": (n_directions, width),
            "neighbours.points": (n_spots, n_directions), "neighbours.rest": (n_spots,), "neighbours.reach": (n_spots,),
        }  # fmt: skip
    if any(name.startswith("seen_scale.") for name in found):
        shapes |= {"seen_scale.slope": (width,), "seen_scale.offset": (1,), "seen_scale.limit": (2,)}
    return {f"{OF_DOMAIN}{name}": shape for name, shape in shapes.items()}
