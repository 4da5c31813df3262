"""Features on disk: resumed to the same bytes, never mistaken, one writer at a time."""

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from filelock import FileLock
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from agl_sc.core.encoders import encode as encoding
from agl_sc.core.encoders.load import Encoder, load_encoder
from agl_sc.pp import embed
from agl_sc.pp._features import cache as _cache
from agl_sc.pp._features import embed as _embed

TILES: dict[str, Any] = {
    "tile_px": 32,
    "mpp": 1.0,
    "batch_size": 8,
    "shapes_key": ["section_1"],
    "context": (),
    "orientations": 1,
    "stages": False,
}
N_BLOCKS = 4
"""Of 16 tiles: the section has 53 spots."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (encoding, _cache, _embed):
        monkeypatch.setattr(module, "BLOCK", 16)


@pytest.fixture(scope="session")
def expected(_tissue: SpatialData) -> NDArray[np.float32]:
    """Features of the tissue that is in no store."""
    sdata = SpatialData.init_from_elements({**dict(_tissue.images), **dict(_tissue.shapes)}, attrs=_tissue.attrs)
    sdata.tables["table"] = _tissue["table"].copy()
    embed(sdata, **TILES)
    features: NDArray[np.float32] = sdata["table"].obsm["agl_features"]
    return features


@pytest.fixture
def store(tissue: SpatialData, tmp_path: Path) -> Path:
    path = tmp_path / "tissue.zarr"
    tissue.write(path)
    return path


def features_of(store: Path, **options: Any) -> NDArray[np.float32]:
    """Read the store anew and embed it."""
    sdata = SpatialData.read(store)
    embed(sdata, **{**TILES, **options})
    features: NDArray[np.float32] = sdata["table"].obsm["agl_features"]
    return features


def groups(store: Path) -> list[Path]:
    return sorted(path for path in store.with_name("tissue.zarr.agl_features").iterdir() if path.is_dir())


def count(monkeypatch: pytest.MonkeyPatch, *, interrupt_at: int | None = None) -> list[int]:
    """Sizes of the blocks that are encoded from now on; an interrupt before block ``interrupt_at``."""
    sizes: list[int] = []
    encode = encoding._features

    def counted(recipe: encoding.Recipe, tiles: Any, device: Any) -> Any:
        if len(sizes) == interrupt_at:
            raise KeyboardInterrupt
        sizes.append(len(tiles))
        return encode(recipe, tiles, device)

    monkeypatch.setattr(encoding, "_features", counted)
    return sizes


def test_nothing_is_kept_for_an_object_in_memory(tissue: SpatialData) -> None:
    assert _cache.cache_folder(tissue) is None


def test_a_store_is_embedded_to_the_same_bytes(store: Path, expected: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(features_of(store), expected)
    assert len(groups(store)) == 1


def test_an_interrupted_run_goes_on_where_it_stopped(store: Path, expected: NDArray[np.float32]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        done = count(patch, interrupt_at=2)
        with pytest.raises(KeyboardInterrupt):
            features_of(store)
        assert len(done) == 2
    with pytest.MonkeyPatch.context() as patch:
        done = count(patch)
        np.testing.assert_array_equal(features_of(store), expected)
        assert (len(done), sum(done)) == (N_BLOCKS - 2, 53 - 32)
    with pytest.MonkeyPatch.context() as patch:
        done = count(patch)
        np.testing.assert_array_equal(features_of(store), expected)
        assert not done


@pytest.mark.parametrize(
    "changes",
    [{"tile_px": 40}, {"mpp": 1.5}, {"image_mpp": 0.97}, {"orientations": 2}, {"compile": True}],
    ids=["tile_px", "mpp", "image_mpp", "orientations", "compile"],
)
def test_other_tiles_use_nothing_of_it(store: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    features_of(store)
    done = count(monkeypatch)
    features_of(store, **changes)
    assert sum(done) == 53
    assert len(groups(store)) == 2


def test_other_weights_use_nothing_of_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features_of(store)
    other = load_encoder("efficientnet_lite0")
    next(other.module.parameters()).data.mul_(1.001)
    encoder = Encoder("x", other.module, other.mean, other.std, other.n_features, "another digest")
    monkeypatch.setattr(_embed, "load_encoder", lambda _, **__: encoder)
    done = count(monkeypatch)
    features_of(store)
    assert sum(done) == 53


def test_another_precision_uses_nothing_of_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of features that a GPU made and a CPU goes on with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_dtype", lambda _: torch.bfloat16)
        half = features_of(store)
    done = count(monkeypatch)
    full = features_of(store)
    assert sum(done) == 53
    assert len(groups(store)) == 2
    assert not np.array_equal(half, full, equal_nan=True)


def test_a_wider_field_takes_the_tiles_own_features_from_it(
    store: Path, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    features_of(store)
    done = count(monkeypatch)
    features = features_of(store, context=(2,), neighbors=1, maps="none")
    assert sum(done) == 53
    np.testing.assert_array_equal(features[:, :1280], expected)


def test_a_damaged_block_is_computed_again(
    store: Path, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    features_of(store)
    features = zarr.open_group(groups(store)[0])["features"]
    features[3, 5] = 7.0  # type: ignore[index]
    done = count(monkeypatch)
    np.testing.assert_array_equal(features_of(store), expected)
    assert done == [16]


@pytest.mark.parametrize("fault", ["corrupt", "missing"])
def test_a_bad_chunk_is_named_and_what_is_finished_stays(
    *, tissue: SpatialData, tmp_path: Path, expected: NDArray[np.float32], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the finest of two levels; the coarser one is read before all else. With the chunk back the run goes on."""
    for module in (encoding, _cache, _embed):
        monkeypatch.setattr(module, "BLOCK", 4)
    finest = tissue["section_1_image"]["scale0"]["image"]
    tissue.images["section_1_image"] = Image2DModel.parse(
        finest.data, dims=finest.dims, scale_factors=[2], chunks=(3, 256, 256), transformations=get_transformation(finest, get_all=True)
    )  # fmt: skip
    tissue.write(store := tmp_path / "tissue.zarr")
    chunk = store / "images" / "section_1_image" / "s0" / "c" / "0" / "1" / "1"
    whole = chunk.read_bytes()
    chunk.write_bytes(b"no chunk") if fault == "corrupt" else chunk.unlink()
    says = "cannot be decoded" if fault == "corrupt" else "is not in its zarr store"
    message = rf"Chunk \(row 1, column 1\) of image 'section_1_image' \(level 0\) {says}"
    with pytest.MonkeyPatch.context() as patch:
        finished = count(patch)
        with pytest.raises(OSError, match=message):
            features_of(store)
    assert 0 < sum(finished) < 53
    chunk.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        done = count(patch)
        np.testing.assert_allclose(features_of(store), expected, atol=2e-4)
        assert sum(done) == 53 - sum(finished)


def test_a_full_disk_is_told_and_what_is_finished_stays(store: Path, expected: NDArray[np.float32]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        written: list[Any] = []
        write = zarr.Array.__setitem__

        def full(array: Any, selection: Any, value: Any) -> None:
            if len(written) == 5:  # two blocks with their digests, and the features of the third
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written.append(selection)
            write(array, selection, value)

        patch.setattr(zarr.Array, "__setitem__", full)
        message = r"could not be written to .*agl_features/\w+ \(No space left on device\); finished blocks are kept"
        with pytest.raises(OSError, match=message):
            features_of(store)
    with pytest.MonkeyPatch.context() as patch:
        done = count(patch)
        np.testing.assert_array_equal(features_of(store), expected)
        assert len(done) == N_BLOCKS - 2


def test_a_second_process_waits_for_the_first(
    store: Path, expected: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    features_of(store)
    result: list[NDArray[np.float32]] = []
    lock = FileLock(f"{groups(store)[0]}.lock")
    with caplog.at_level(logging.WARNING), lock:
        second = threading.Thread(target=lambda: result.append(features_of(store)))
        second.start()
        second.join(timeout=5)
        assert second.is_alive()
        assert "Another process computes the features in" in caplog.text
    second.join(timeout=60)
    np.testing.assert_array_equal(result[0], expected)


def test_a_process_that_died_holds_nothing(store: Path, expected: NDArray[np.float32]) -> None:
    features_of(store)
    hold = f"import filelock, sys; filelock.FileLock({f'{groups(store)[0]}.lock'!r}).acquire(); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGKILL)
    np.testing.assert_array_equal(features_of(store), expected)


def test_a_place_that_cannot_be_written_to_is_no_obstacle(
    *, store: Path, expected: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(features_of(store), expected)
    assert "cannot be written to: features are not kept on disk" in caplog.text
    assert not store.with_name("tissue.zarr.agl_features").exists()


def test_it_survives_that_the_object_is_written_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdata = SpatialData.read(store)
    embed(sdata, **TILES)
    sdata.delete_element_from_disk("table")
    sdata.write_element("table")
    again = SpatialData.read(store)
    assert "agl_features" in again["table"].obsm
    del again["table"].obsm["agl_features"]
    done = count(monkeypatch)
    embed(again, **TILES)
    assert not done
