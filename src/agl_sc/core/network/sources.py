"""Where the network's inputs come from: cached features, or tiles through an encoder that is trained too."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from agl_sc.core.arrays import FloatArray, Floats
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.numerics.tensors import part
from agl_sc.core.spots.scaling import CLIP
from agl_sc.core.tiles.dataset import N_WAYS, TileDataset, lay


class InputSource(Protocol):
    """Inputs of a set of spots for the network."""

    encoder: nn.Module | None
    """Trained together with the network where it is not None."""

    def __len__(self) -> int:
        """Number of spots."""
        ...

    def inputs(self, index: torch.Tensor, randomness: torch.Generator) -> torch.Tensor:
        """Training inputs (n, n_features) of the spots ``index``, (n,), augmented where the source can."""
        ...

    def all_inputs(self) -> Iterator[torch.Tensor]:
        """Inputs of all spots in order, in batches, without augmentation."""
        ...

    def begin_epoch(self) -> None:
        """Bring up to date whatever depends on the encoder."""
        ...


class CachedFeatures:
    """Features computed once, (n_spots, n_features)."""

    def __init__(self, features: Floats, device: torch.device) -> None:
        self.features = torch.from_numpy(features.astype(np.float32, copy=False)).to(device)
        self.encoder: nn.Module | None = None

    def __len__(self) -> int:
        return len(self.features)

    def inputs(self, index: torch.Tensor, randomness: torch.Generator) -> torch.Tensor:
        """Rows ``index``."""
        del randomness
        return self.features[index.to(self.features.device)]

    def all_inputs(self) -> Iterator[torch.Tensor]:
        """All rows at once."""
        yield self.features

    def begin_epoch(self) -> None:
        """Nothing changes."""


class EncodedTiles:
    """Tiles through an encoder, read when they are needed, centred per section with the section's mean under the current encoder."""

    def __init__(
        self,
        tiles: TileDataset,
        sections: NDArray[np.int64],
        scale: FloatArray,
        *,
        encoder: Encoder,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.tiles = tiles
        self.sections = torch.from_numpy(sections)
        self.scale = torch.from_numpy(scale.astype(np.float32)).to(device)
        self.encode = encoder
        self.encoder: nn.Module | None = encoder.module.to(device)
        self.batch_size = batch_size
        self.device = device
        self.means = torch.zeros(int(sections.max()) + 1, encoder.n_features, device=device)

    def __len__(self) -> int:
        return len(self.tiles)

    def inputs(self, index: torch.Tensor, randomness: torch.Generator) -> torch.Tensor:
        """Flipped and turned at random, one of the eight ways for the whole batch."""
        way = int(torch.randint(N_WAYS, (), generator=randomness))
        tiles = self.tiles.tiles(index.cpu().numpy()).to(self.device)
        features = self.encode(lay(tiles, way))
        return self._scaled(features, self.sections[index])

    def all_inputs(self) -> Iterator[torch.Tensor]:
        """As they are."""
        features = self._all_features()
        self._center(features)
        yield from torch.split(self._scaled(features, self.sections), 4096)

    def load(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Give the encoder the parameters named ``encoder.*``."""
        self.encode.module.load_state_dict(part(parameters, "encoder."))

    def begin_epoch(self) -> None:
        """Section means under the current encoder."""
        self._center(self._all_features())

    def _scaled(self, features: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return ((features - self.means[codes.to(self.device)]) / self.scale).clamp(-CLIP, CLIP)

    def _all_features(self) -> torch.Tensor:
        features = torch.empty(len(self), self.encode.n_features, device=self.device)
        with torch.no_grad():
            for items, tiles in self.tiles.batches(self.batch_size):
                features[torch.from_numpy(items).to(self.device)] = self.encode(tiles.to(self.device))
        return features

    def _center(self, features: torch.Tensor) -> None:
        codes = self.sections.to(self.device)
        for code in torch.unique(codes):
            self.means[code] = features[codes == code].mean(dim=0)
