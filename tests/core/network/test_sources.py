"""Inputs of the network from features and from tiles."""

from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
from torch import nn

from agl_sc.core.encoders.load import Encoder
from agl_sc.core.network.sources import CachedFeatures, EncodedTiles, InputSource
from agl_sc.core.spots.scaling import CLIP
from agl_sc.core.tiles.dataset import TileDataset
from agl_sc.core.tiles.reader import Boxes

CPU = torch.device("cpu")
SECTIONS = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0, 1])
N_SPOTS, N_FEATURES = len(SECTIONS), 16


def randomness(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TinyModule(nn.Module):
    """One convolution and four pooled quarters, so that turning a tile changes its features."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        for parameter in self.convolution.parameters():
            nn.init.normal_(parameter, generator=randomness())

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(self.convolution(tiles).relu(), 2).flatten(1)


def tiny_encoder() -> Encoder:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    return Encoder("tiny", TinyModule().eval(), mean, std, n_features=N_FEATURES, digest="")


def tiles_of(n_spots: int = N_SPOTS) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n_spots, 3, 8, 8), dtype=np.uint8))


def dataset_of(tiles: torch.Tensor) -> TileDataset:
    """The same tiles one below the other in two images, even and odd ones."""
    parts = []
    for items in (np.arange(0, len(tiles), 2), np.arange(1, len(tiles), 2)):
        image: Any = da.from_array(np.concatenate(tiles.numpy()[items], axis=1), chunks=(3, 12, 8))  # type: ignore[no-untyped-call]
        origins = np.column_stack([8 * np.arange(len(items)), np.zeros(len(items), np.int64)])
        parts.append(
            (items, Boxes(image, origins, 8, mpp=1.0, background=np.zeros(3, np.uint8), overview_digest="", name="A"))
        )
    return TileDataset(parts, 8)


def make_tiles(scale: float = 0.5, batch_size: int = 4) -> EncodedTiles:
    return EncodedTiles(
        dataset_of(tiles_of()),
        SECTIONS,
        np.full(N_FEATURES, scale),
        encoder=tiny_encoder(),
        batch_size=batch_size,
        device=CPU,
    )


@pytest.fixture
def source() -> EncodedTiles:
    return make_tiles()


def all_of(source: InputSource) -> torch.Tensor:
    return torch.cat(list(source.all_inputs())).detach()


def test_cached_features_are_rows() -> None:
    features = np.arange(12.0).reshape(4, 3)
    source: InputSource = CachedFeatures(features, CPU)
    source.begin_epoch()
    assert source.encoder is None
    assert len(source) == 4
    inputs = source.inputs(torch.tensor([2, 0]), randomness())
    assert inputs.dtype == torch.float32
    assert inputs.tolist() == [[6.0, 7.0, 8.0], [0.0, 1.0, 2.0]]
    assert all_of(source).tolist() == features.tolist()


def test_cached_features_are_a_copy() -> None:
    features = np.ones((4, 3), dtype=np.float64)
    source = CachedFeatures(features, CPU)
    features[:] = 7
    assert (all_of(source) == 1).all()


def test_encoded_tiles_are_centred_per_section_and_scaled() -> None:
    """By an independent path: features of the tiles one by one, in numpy."""
    source, encoder = make_tiles(scale=20.0), tiny_encoder()
    with torch.no_grad():
        features = np.concatenate([encoder(tile[None]).numpy() for tile in tiles_of()])
    for code in (0, 1):
        features[code == SECTIONS] -= features[code == SECTIONS].mean(axis=0)
    assert np.abs(features / 20).max() < CLIP
    np.testing.assert_allclose(all_of(source), features / 20, atol=1e-5)


def test_encoded_tiles_are_clipped() -> None:
    wide, narrow = all_of(make_tiles(scale=1.0)), all_of(make_tiles(scale=0.01))
    assert narrow.abs().max() == CLIP
    torch.testing.assert_close(narrow, (wide * 100).clamp(-CLIP, CLIP), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_order_is_kept_whatever_the_batch(batch_size: int) -> None:
    source = make_tiles(batch_size=batch_size)
    assert len(source) == N_SPOTS
    torch.testing.assert_close(all_of(source), all_of(make_tiles()))


def test_training_inputs_are_one_of_the_eight_ways_to_lay_a_tile(source: EncodedTiles) -> None:
    source.begin_epoch()
    index = torch.tensor([7, 2, 4])
    tiles = tiles_of()[index].numpy()
    ways = [np.rot90(flipped, k, (2, 3)) for flipped in (tiles, tiles[..., ::-1]) for k in range(4)]
    encoder, sections = tiny_encoder(), torch.from_numpy(SECTIONS[index.numpy()])
    with torch.no_grad():
        laid = [encoder(torch.from_numpy(way.copy())) for way in ways]
        expected = [((x - source.means[sections]) / 0.5).clamp(-CLIP, CLIP) for x in laid]
        seen = []
        for seed in range(60):
            inputs = source.inputs(index, randomness(seed))
            matches = [i for i, x in enumerate(expected) if torch.allclose(inputs, x, atol=1e-4)]
            assert len(matches) == 1
            seen += matches
    assert set(seen) == set(range(8))


def test_augmentation_follows_its_generator(source: EncodedTiles) -> None:
    index = torch.arange(4)
    first, second = (source.inputs(index, randomness(5)) for _ in range(2))
    assert torch.equal(first, second)
    generator = randomness()
    drawn = [source.inputs(index, generator) for _ in range(12)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_gradient_reaches_the_encoder_of_training_inputs_only(source: EncodedTiles) -> None:
    assert source.encoder is not None
    parameters = list(source.encoder.parameters())
    source.begin_epoch()
    assert all(parameter.grad is None for parameter in parameters)
    source.inputs(torch.arange(5), randomness()).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
    assert not any(inputs.requires_grad for inputs in source.all_inputs())


def test_section_means_follow_the_encoder(source: EncodedTiles) -> None:
    source.begin_epoch()
    before = source.means.clone()
    assert source.encoder is not None
    with torch.no_grad():
        features = source.encode(tiles_of())
        for code in (0, 1):
            torch.testing.assert_close(before[code], features[code == SECTIONS].mean(dim=0))
        for parameter in source.encoder.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(source.means, before, rtol=0, atol=0)
    source.begin_epoch()
    torch.testing.assert_close(source.means, 2 * before)


def test_load_gives_the_encoder_its_parameters(source: EncodedTiles) -> None:
    before = all_of(source)
    state = {f"encoder.{k}": v + 0.5 for k, v in source.encode.module.state_dict().items()}
    source.load({**state, "network.linear.weight": torch.zeros(2, 2)})
    assert not torch.allclose(all_of(source), before)
    for name, value in source.encode.module.state_dict().items():
        assert torch.equal(value, state[f"encoder.{name}"])


def test_load_refuses_another_encoder(source: EncodedTiles) -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*convolution\.weight"):
        source.load({"encoder.other": torch.zeros(1)})


def test_inputs_may_be_read_in_inference_mode_between_training_batches(source: EncodedTiles) -> None:
    with torch.inference_mode():
        evaluated = torch.cat(list(source.all_inputs()))
    source.inputs(torch.arange(4), randomness()).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(all_of(source), evaluated.clone())
