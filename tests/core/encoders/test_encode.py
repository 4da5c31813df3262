"""Blocks come out the same however the work is divided."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dask.array
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from agl_sc.core.encoders import encode as module
from agl_sc.core.encoders.encode import Recipe, Workers, block_rows, encoded_blocks, pick_device, precision_of
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.tiles.reader import Boxes, read_boxes, tile_batches

N_BOXES, SIDE = 75, 12


class Tiny(nn.Module):
    """A convolution whose features depend on which way a tile lies."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 5, 5, stride=3)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.convolution(tiles).relu().amax(dim=(2, 3))
        return features


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)


@pytest.fixture
def boxes() -> Boxes:
    """All over an image of 9 chunks, some beyond its border."""
    randomness = np.random.default_rng(0)
    image: Any = dask.array.from_array(  # type: ignore[no-untyped-call]
        randomness.integers(0, 256, (3, 90, 80), dtype=np.uint8), chunks=(3, 32, 30)
    )
    origins = randomness.integers(-5, 78, (N_BOXES, 2))
    return Boxes(image, origins, SIDE, 1.0, np.array([240, 230, 220], dtype=np.uint8), "", "image")


def recipe(**options: Any) -> Recipe:
    encoder = Encoder("tiny", Tiny().eval(), (0.7, 0.6, 0.5), (0.2, 0.3, 0.4), n_features=5, digest="")
    return Recipe(encoder, SIDE, **{"batch_size": 4, "device": "cpu", **options})


def one_by_one(how: Recipe, boxes: Boxes) -> NDArray[np.float32]:
    """Features of every box, in the order of the boxes."""
    features = np.empty((N_BOXES, 5), dtype=np.float32)
    with torch.inference_mode():
        for index, tile in read_boxes(boxes, 1):
            features[index] = how.encoder(torch.from_numpy(tile))
    return features


def test_blocks_hold_every_box_once_and_lie_together(boxes: Boxes) -> None:
    rows = block_rows(boxes)
    assert [len(each) for each in rows] == [16, 16, 16, 16, 11]
    assert sorted(np.concatenate(rows)) == list(range(N_BOXES))
    assert boxes.origins[rows[0], 0].max() < 32
    assert boxes.origins[rows[-1], 0].min() >= 64


def test_features_are_those_of_the_tiles(boxes: Boxes) -> None:
    rows, expected = block_rows(boxes), one_by_one(recipe(), boxes)
    for block, features in encoded_blocks(recipe(), boxes, range(5)):
        np.testing.assert_allclose(features, expected[rows[block]], atol=1e-5)


def test_a_block_is_the_same_bytes_alone(boxes: Boxes) -> None:
    together = dict(encoded_blocks(recipe(), boxes, range(5)))
    assert sorted(together) == list(range(5))
    for block, features in together.items():
        ((_, alone),) = encoded_blocks(recipe(), boxes, [block])
        np.testing.assert_array_equal(alone, features)


def test_a_block_is_the_same_bytes_in_whatever_order_tiles_are_read(
    boxes: Boxes, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = dict(encoded_blocks(recipe(), boxes, range(5)))
    read = tile_batches

    def shuffled(*args: Any) -> Iterator[Any]:
        batches = list(read(*args))
        for i in np.random.default_rng(1).permutation(len(batches)):
            yield batches[i]

    monkeypatch.setattr(module, "tile_batches", shuffled)
    again = dict(encoded_blocks(recipe(), boxes, range(5)))
    assert again.keys() == together.keys()
    for block, features in together.items():
        np.testing.assert_array_equal(again[block], features)


def test_features_of_eight_orientations_do_not_depend_on_which_way_a_tile_lies(boxes: Boxes) -> None:
    size = boxes.image.shape[2]
    mirrored = replace(
        boxes,
        image=boxes.image[:, :, ::-1],
        origins=np.column_stack([boxes.origins[:, 0], size - SIDE - boxes.origins[:, 1]]),
    )

    def features(how: Recipe, where: Boxes) -> NDArray[np.float32]:
        rows = block_rows(where)
        result = np.empty((N_BOXES, 5), dtype=np.float32)
        for block, values in encoded_blocks(how, where, range(5)):
            result[rows[block]] = values
        return result

    plain = features(recipe(), boxes), features(recipe(), mirrored)
    averaged = features(recipe(orientations=8), boxes), features(recipe(orientations=8), mirrored)
    assert np.abs(plain[0] - plain[1]).max() > 0.1
    np.testing.assert_allclose(*averaged, atol=1e-5)


@pytest.mark.parametrize("orientations", [2, 4, 8])
def test_features_are_the_mean_over_orientations(boxes: Boxes, orientations: int) -> None:
    read = [(int(index[0]), tile[0]) for index, tile in read_boxes(boxes, 1)]
    tiles = torch.from_numpy(np.stack([tile for _, tile in sorted(read, key=lambda pair: pair[0])]))
    half = [tiles, tiles.flip(2, 3)]
    quarter = [each.flip(3).transpose(2, 3) for each in half]
    mirrored = [each.flip(3) for each in (*half, *quarter)]
    ways = [*half, *quarter, *mirrored][:orientations]
    with torch.inference_mode():
        expected = torch.stack([recipe().encoder(way) for way in ways]).mean(dim=0)
    rows = block_rows(boxes)
    for block, features in encoded_blocks(recipe(orientations=orientations), boxes, range(5)):
        np.testing.assert_allclose(features, expected[rows[block]], atol=1e-5)


def test_the_device_asked_for_is_taken() -> None:
    assert pick_device("meta") == torch.device("meta")
    assert pick_device(None).type in {"cpu", "cuda", "mps"}


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "precision"),
    [("cpu", True, "float32"), ("mps", True, "float32"), ("cuda", True, "bfloat16"), ("cuda:1", False, "float16")],
)
def test_cuda_computes_in_half_precision(
    *, device: str, has_bfloat16: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has_bfloat16)
    assert precision_of(device) == precision


def test_features_are_computed_in_the_precision_of_the_device(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, here on the CPU; averages over ways are taken in full precision."""
    full = dict(encoded_blocks(recipe(), boxes, range(5)))
    monkeypatch.setattr(module, "_dtype", lambda _: torch.bfloat16)
    for orientations in (1, 2):
        for block, features in encoded_blocks(recipe(orientations=orientations), boxes, range(5)):
            assert features.dtype == np.float32
            if orientations == 1:
                assert (features == torch.from_numpy(features).bfloat16().float().numpy()).all()
                np.testing.assert_allclose(features, full[block], atol=0.05)
                assert not np.array_equal(features, full[block])


@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")  # of torch on Python 3.13.0
def test_a_compiled_encoder_sees_every_batch_in_one_size(boxes: Boxes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 and 11 tiles in batches of 6: the last ones are filled up, and their features are the same."""
    sizes: list[int] = []
    options: list[dict[str, Any]] = []
    compiler = torch.compile

    def compiled(network: nn.Module, **given: Any) -> Any:
        options.append(given)
        network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return compiler(network, backend="eager", **given)

    monkeypatch.setattr(torch, "compile", compiled)
    plain = dict(encoded_blocks(recipe(batch_size=6), boxes, range(5)))
    assert not sizes
    for block, features in encoded_blocks(recipe(batch_size=6, compiled=True), boxes, range(5)):
        np.testing.assert_allclose(features, plain[block], atol=1e-6)
    assert options == [{"dynamic": False}]
    assert set(sizes) == {6}


def test_blocks_of_another_precision_are_refused(boxes: Boxes) -> None:
    match = r"Features in bfloat16 cannot be made on device 'cpu', which computes in float32; name a device="
    with pytest.raises(ValueError, match=match):
        next(encoded_blocks(recipe(precision="bfloat16"), boxes, range(5)))
    assert len(list(encoded_blocks(recipe(precision="float32"), boxes, range(5)))) == 5


class Cluster:
    """What a client says of its workers, each of which has its own device."""

    def __init__(self, *devices: str) -> None:
        self.devices = {f"tcp://{i}": device for i, device in enumerate(devices)}

    def run(self, function: Any, device: str | None) -> dict[str, Any]:
        return {worker: function(device or own) for worker, own in self.devices.items()}


def test_workers_have_to_compute_in_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: True)
    assert precision_of(None, Cluster("cuda", "cuda")) == "bfloat16"
    assert precision_of("cpu", Cluster("cuda", "cpu")) == "float32"
    match = r"in one precision \(tcp://0: bfloat16, tcp://1: float32\); pass device='cpu'"
    with pytest.raises(ValueError, match=match):
        precision_of(None, Cluster("cuda", "cpu"))
    with pytest.raises(ValueError, match=r"in one precision \(there are none\)"):
        precision_of(None, Cluster())


def test_workers_give_the_same_bytes(boxes: Boxes) -> None:
    distributed = pytest.importorskip("distributed")
    here = dict(encoded_blocks(recipe(), boxes, range(5)))
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        workers = Workers(client, recipe())
        there = dict(workers.encoded_blocks(boxes, [0, 2, 3, 4]))
        assert sorted(there) == [0, 2, 3, 4]
        for block, features in there.items():
            np.testing.assert_array_equal(features, here[block])
        lazy = boxes.image.map_blocks(fail, dtype=np.uint8)
        with pytest.raises(OSError, match="this chunk is gone"):
            list(workers.encoded_blocks(replace(boxes, image=lazy), range(5)))


def fail(chunk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    del chunk
    msg = "this chunk is gone"
    raise OSError(msg)
