"""A worker that dies costs its blocks, not the call."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from types import SimpleNamespace
from typing import Any

import dask.array
import numpy as np
import pytest
import torch
from torch import nn

from agl_sc.core.encoders import encode as module
from agl_sc.core.encoders.encode import BLOCK, Recipe, Workers, encoded_blocks
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.tiles.reader import Boxes

SIDE = 8


def recipe() -> Recipe:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    return Recipe(Encoder("tiny", network, (0.5,) * 3, (0.5,) * 3, n_features=4, digest=""), SIDE, device="cpu")


def boxes(n_boxes: int) -> Boxes:
    randomness = np.random.default_rng(0)
    pixels = randomness.integers(0, 256, (3, 64, 64), dtype=np.uint8)
    image: Any = dask.array.from_array(pixels, chunks=(3, 32, 32))  # type: ignore[no-untyped-call]
    origins = randomness.integers(0, 56, (n_boxes, 2))
    return Boxes(image, origins, SIDE, 1.0, np.array([240, 230, 220], dtype=np.uint8), "", "image")


class Future:
    """A double that computes at once, or tells a loss."""

    def __init__(self, value: Any, error: Exception | None) -> None:
        self.value, self.error = value, error

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class Client:
    """A double of ``dask.distributed.Client`` whose workers die now and then."""

    def __init__(self, fails: Callable[[int, list[int]], Exception | None]) -> None:
        self.fails = fails
        self.n_submitted, self.n_shared, self.n_cancelled, self.asked = 0, 0, 0, list[list[int]]()

    def nthreads(self) -> dict[str, int]:
        return {"a": 1, "b": 1}

    def scatter(self, value: Any, *, broadcast: bool, hash: bool) -> Any:
        assert broadcast
        assert not hash
        self.n_shared += 1
        return value

    def wait_for_workers(self, n_workers: int, timeout: float) -> None:
        assert n_workers == 1
        assert timeout > 0

    def submit(self, function: Callable[..., Any], *args: Any, pure: bool) -> Future:
        assert not pure
        part: list[int] = args[2]
        self.n_submitted += 1
        self.asked.append(part)
        error = self.fails(self.n_submitted, part)
        return Future(None if error else function(*args), error)

    def cancel(self, futures: Sequence[Future]) -> None:
        self.n_cancelled += len(futures)


def losses() -> list[Exception]:
    comm, scheduler = (pytest.importorskip(name) for name in ("distributed.comm.core", "distributed.scheduler"))
    client = pytest.importorskip("distributed.client")
    killed = scheduler.KilledWorker("task", SimpleNamespace(address="tcp://gone"), 3)
    return [
        client.FutureCancelledError("x", "already forgotten"),
        CancelledError(),
        TimeoutError(),
        killed,
        comm.CommClosedError("gone"),
    ]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("number", range(5))
def test_only_lost_blocks_are_computed_again(number: int, caplog: pytest.LogCaptureFixture) -> None:
    error = losses()[number]
    client = Client(lambda submitted, _: error if submitted in (2, 3, 6, 9) else None)
    with caplog.at_level(logging.WARNING):
        there = dict(Workers(client, recipe()).encoded_blocks(boxes(120), range(8)))
    here = dict(encoded_blocks(recipe(), boxes(120), range(8)))
    assert there.keys() == here.keys()
    assert all(np.array_equal(there[block], here[block]) for block in here)
    assert client.asked == [*([block] for block in range(8)), [1], [2], [5], [1]]
    assert caplog.text.count("Workers were lost") == 2
    assert "3 blocks of tiles are not computed yet" in caplog.text


@pytest.mark.usefixtures("small_blocks")
def test_what_is_lost_again_and_again_is_told_after_a_few_times() -> None:
    client = Client(lambda _, part: CancelledError("already forgotten") if 5 in part else None)
    workers = Workers(client, recipe())
    found: dict[int, Any] = {}
    with pytest.raises(
        ConnectionError, match=r"lost 4 times over the same tiles \(already forgotten\); look into their logs"
    ):
        found.update(kept(workers, found))
    assert sorted(found) == [0, 1, 2, 3, 4, 6, 7]
    assert client.n_submitted == 8 + 3


def kept(workers: Workers, found: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """The blocks, put aside as they come."""
    for block, values in workers.encoded_blocks(boxes(120), range(8)):
        found.setdefault(block, values)
        yield block, values


@pytest.mark.usefixtures("small_blocks")
def test_an_error_of_the_work_itself_is_not_tried_again() -> None:
    client = Client(lambda submitted, _: OSError("this chunk is gone") if submitted == 3 else None)
    with pytest.raises(OSError, match="this chunk is gone"):
        list(Workers(client, recipe()).encoded_blocks(boxes(120), range(8)))
    assert client.n_submitted == 8
    assert client.n_cancelled == 6


@pytest.mark.usefixtures("small_blocks")
def test_no_blocks_ask_nothing_of_the_workers() -> None:
    client = Client(lambda *_: None)
    assert list(Workers(client, recipe()).encoded_blocks(boxes(120), [])) == []
    assert client.n_submitted == 0


@pytest.mark.skipif("AGL_SC_SLOW" not in os.environ, reason="starts workers twice; set AGL_SC_SLOW")
def test_all_workers_killed_in_the_middle() -> None:
    distributed = pytest.importorskip("distributed")
    n_blocks = 12
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        blocks = Workers(client, recipe()).encoded_blocks(boxes(n_blocks * BLOCK), range(n_blocks))
        found = dict([next(blocks)])
        for worker in client.run(os.getpid).values():
            os.kill(worker, signal.SIGKILL)
        found |= dict(blocks)
    here = dict(encoded_blocks(recipe(), boxes(n_blocks * BLOCK), range(n_blocks)))
    assert all(np.array_equal(found[block], here[block]) for block in range(n_blocks))
