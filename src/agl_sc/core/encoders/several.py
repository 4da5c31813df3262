"""Several encoders as one: the features of each, side by side."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from agl_sc.core.encoders.load import Encoder

JOIN = " + "
"""Between the names of encoders that are used at once."""


def joined(names: str | Iterable[str]) -> str:
    """One name of several encoders, in the order given; a name alone stays.

    Raises
    ------
    ValueError
        There is none, or one stands twice.
    """
    listed = [names] if isinstance(names, str) else list(names)
    each = [part for name in listed for part in names_of(name)]
    twice = sorted({name for name in each if each.count(name) > 1})
    if twice or not each:
        which = f"names {twice[0]!r} twice" if twice else "is empty"
        msg = f"encoder={names!r} {which}; pass a name, or a list of different names."
        raise ValueError(msg)
    return JOIN.join(each)


def names_of(name: str) -> list[str]:
    """The encoders that a name is of; a path is one, whatever it is called."""
    return [name] if Path(name.partition("@")[2] or name).exists() else name.split(JOIN)


class Several(nn.Module):
    """Encoders that each see the same tiles, scaled and resized as each was trained on them."""

    def __init__(self, encoders: Sequence["Encoder"]) -> None:
        super().__init__()
        self.encoders = tuple(encoders)
        self.parts = nn.ModuleList(encoder.module for encoder in encoders)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (n, sum of the numbers of features) of tiles (n, 3, y, x) with pixels from 0 to 255."""
        return torch.cat([encoder(pixels) for encoder in self.encoders], dim=1)
