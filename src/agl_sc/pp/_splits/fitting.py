"""Blocks that are small enough for small sections."""

from collections.abc import Callable

from agl_sc.core.arrays import StrArray

_SMALLEST_UM = 10.0
_FEWEST = 0.05
"""Share of the spots that each set is to have."""

Draw = Callable[[float, float], StrArray]
"""Set of every spot, by side of a block and buffer in microns."""


def fitting_blocks(draw: Draw, sets: list[str], microns: tuple[float, float]) -> tuple[float, float] | None:
    """Side of blocks and buffer in microns that leave spots in every set, or None where none do.

    Parameters
    ----------
    draw
        Makes a split.
    sets
        That may not be empty.
    microns
        Side and buffer that leave one empty. Both are made smaller alike; if that does not help, without a buffer.
    """
    block_um, buffer_um = microns
    for share in dict.fromkeys((buffer_um / block_um, 0.0)):
        side = block_um
        while side >= _SMALLEST_UM:
            rounded = float(f"{side:.2g}"), float(f"{side * share:.2g}")
            assigned = draw(*rounded)
            among = (assigned != "unused").sum()
            if all((assigned == name).sum() >= max(2, _FEWEST * among) for name in sets):
                return rounded
            side /= 2
    return None
