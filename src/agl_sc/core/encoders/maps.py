"""Encoders that pass over the tissue once: their maps, and the features of a field of view as means over these."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from agl_sc.core.encoders.conch import ImageTower
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.pathology import ClassAndPatches
from agl_sc.core.encoders.stages import WithStages, spread

CELL_PX = 16
"""Maps that are finer are averaged to cells of this side, in pixels of the window: 8 um at 0.5 um per pixel."""
WINDOW_PX, HALO_PX, WIDER_HALO_PX = 576, 32, 64
"""Side of the largest windows of a network that sees nothing far away, and what of it is there for the sake of the rest alone, of
tiles and of wider fields of view. Larger windows take longer per pixel on a CPU, whose caches they exceed. With the narrower halo
wider fields tell where in the windows a place lies; of the tiles themselves the wider one would cost a third more."""
_USUAL_PX = 224
_STRIP_PX = (32, 2048)
"""Height and width of the strip on which it is tried how far a network sees."""
_SAME = 1e-5
_CANNOT = (
    AttributeError,
    AssertionError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a network raises that has no maps, or takes tiles of one size alone."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One map of a network."""

    n_channels: int
    """Its channels."""
    stride_px: int
    """Pixels of the window to a side of one of its values."""
    squares: bool = False
    """Whether the mean of its squares is wanted too."""

    @property
    def cell_px(self) -> int:
        """Side of the cells that its values are averaged to, in pixels of the window."""
        return self.stride_px if CELL_PX % self.stride_px else CELL_PX

    @property
    def n_sums(self) -> int:
        """Numbers kept of every cell."""
        return self.n_channels * (1 + self.squares)


class Maps(nn.Module):
    """A network as maps over windows, from whose means over a field of view the features of that field are made.

    Features of a convolutional network are those of its tiles, but for the borders: a tile has zeros around it where a
    window has tissue. The spread of a stage's maps in several orientations is that over all of them together. Features of
    a transformer are the means of its patch tokens; it has no class token of a field.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[Layer], *, window_px: int, halo_px: int, local: bool
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layers)
        self.window_px = window_px
        self.halo_px = halo_px
        """What of a window, on every side, is there for the sake of the rest alone."""
        self.local = local
        """Whether what is far away changes nothing, so that windows may be of any size."""
        with torch.inference_mode():
            nothing = [torch.zeros(1, layer.n_sums) for layer in self.layers]
            self.n_features = int(self.features(nothing).shape[1])

    @property
    def core_px(self) -> int:
        """Side of the middle of a window, of which the maps are kept."""
        return self.window_px - 2 * self.halo_px

    def with_halo(self, halo_px: int) -> "Maps":
        """The same network with another halo; its own stays where it sees far."""
        if not self.local or halo_px == self.halo_px:
            return self
        other = copy(self)  # the network is shared, on whichever device it is
        other.halo_px = halo_px
        return other

    def forward(self, windows: torch.Tensor) -> list[torch.Tensor]:
        """Maps (n, n_channels, y, x) of scaled windows (n, 3, window_px, window_px), one per layer."""
        return _maps(self.network, windows)

    def features(self, means: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features (n, n_features) of the means over fields of view, (n, n_sums) per layer."""
        own = means[0] if _is_transformer(self.network) else _head(self.network, means[0][:, :, None, None])
        halves = [torch.chunk(each, 2, dim=1) for each in means[1:]]
        spreads = [spread(square - mean**2) for mean, square in halves]
        return torch.cat([own, *(mean for mean, _ in halves), *spreads], dim=1)


class Centred(nn.Module):
    """Features of the middle of a tile as maps give them; what is around it is there for the sake of the rest."""

    def __init__(self, maps: Maps, side_px: int) -> None:
        super().__init__()
        self.maps = maps
        self.side_px = side_px
        """Side of the middle."""
        unit = max(layer.stride_px for layer in maps.layers)
        self.tile_px = -(-side_px // unit) * unit + 2 * WIDER_HALO_PX
        """Side of the tile: a wide halo, for most tiles lie farther than the narrow one from the border of a window."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) of scaled tiles (n, 3, tile_px, tile_px)."""
        low = (self.tile_px - self.side_px) / 2
        means = []
        for values, layer in zip(self.maps(tiles), self.maps.layers, strict=True):
            edges = layer.stride_px * torch.arange(values.shape[3] + 1.0, device=tiles.device)
            shares = (edges[1:].clamp(max=low + self.side_px) - edges[:-1].clamp(min=low)).clamp(min=0) / self.side_px
            parts = [values.float(), values.float() ** 2] if layer.squares else [values.float()]
            means.append(torch.cat([torch.einsum("ncyx,y,x->nc", part, shares, shares) for part in parts], dim=1))
        return self.maps.features(means)


def maps_of(encoder: Encoder) -> Maps | None:
    """The maps of an encoder on the CPU, or None where it has none whose means are features.

    A strip of which one half is changed tells whether a network sees it at the far end, as with squeeze-excitation or
    attention: then windows have the side of the tiles that the encoder takes, and the middle of each is kept.
    """
    network = encoder.module
    if isinstance(network, ClassAndPatches | ImageTower):
        network = network.trunk
    try:
        with torch.inference_mode():
            return _tried(network, encoder.input_px)
    except _CANNOT:
        return None


def _tried(network: nn.Module, input_px: int | None) -> Maps | None:
    size = _STRIP_PX if input_px is None else (input_px, input_px)
    noise = torch.randn((1, 3, *size), generator=torch.Generator().manual_seed(0))
    maps = _maps(network, noise)
    if not _is_transformer(network) and not _pools_by_mean(network, maps[0]):
        return None
    strides = [size[1] // each.shape[3] for each in maps]
    if any(
        (each.shape[2] * stride, each.shape[3] * stride) != size for each, stride in zip(maps, strides, strict=True)
    ):
        return None
    layers = [
        Layer(each.shape[1], stride, squares=i > 0) for i, (each, stride) in enumerate(zip(maps, strides, strict=True))
    ]
    coarsest = max(strides)
    if input_px is None and HALO_PX % coarsest == 0 and _sees_nothing_far(network, noise, maps):
        return Maps(network, layers, window_px=WINDOW_PX, halo_px=HALO_PX, local=True)
    side = input_px or _USUAL_PX
    halo_px = side // coarsest // 4 * coarsest
    return Maps(network, layers, window_px=side, halo_px=halo_px, local=False) if side % coarsest == 0 else None


def _maps(network: nn.Module, windows: torch.Tensor) -> list[torch.Tensor]:
    """The last map of a network, then those of its stages where they are part of its features."""
    trunk: Any = _trunk(network)
    if _is_transformer(trunk):
        tokens: list[torch.Tensor] = trunk.forward_intermediates(windows, indices=1, norm=True, intermediates_only=True)
        return tokens
    last, stages = trunk.forward_intermediates(windows)
    last = last.permute(0, 3, 1, 2) if _channels_last(trunk) else last
    return [last, *(stages if isinstance(network, WithStages) else ())]


def _head(network: nn.Module, last: torch.Tensor) -> torch.Tensor:
    """A network's own features of its last map (n, n_channels, y, x)."""
    trunk: Any = _trunk(network)
    last = last.permute(0, 2, 3, 1) if _channels_last(trunk) else last
    own: torch.Tensor = trunk.forward_head(last, pre_logits=True)
    return own


def _trunk(network: nn.Module) -> nn.Module:
    return network.trunk if isinstance(network, WithStages) else network


def _is_transformer(network: nn.Module) -> bool:
    return hasattr(network, "num_prefix_tokens")


def _channels_last(trunk: nn.Module) -> bool:
    return str(getattr(trunk, "output_fmt", "NCHW")).endswith("NHWC")


def _pools_by_mean(network: nn.Module, last: torch.Tensor) -> bool:
    """Whether the features of a map are those of its mean."""
    pooled = _head(network, last.mean(dim=(2, 3), keepdim=True))
    return _agree(_head(network, last), pooled)


def _sees_nothing_far(network: nn.Module, strip: torch.Tensor, maps: Sequence[torch.Tensor]) -> bool:
    """Whether the far end of a strip stays the same while its first half changes."""
    changed = strip.clone()
    changed[..., : strip.shape[3] // 2] = 1.0
    ends = [each[..., -1] for each in maps]
    return all(_agree(each[..., -1], end) for each, end in zip(_maps(network, changed), ends, strict=True))


def _agree(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _SAME * other.abs().max())
