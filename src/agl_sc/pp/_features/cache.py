"""Features on disk beside a SpatialData, block by block, so that an interrupted run goes on where it stopped."""

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from filelock import FileLock, Timeout

from agl_sc.core.arrays import Float32Array
from agl_sc.core.encoders.encode import BLOCK

if TYPE_CHECKING:
    from spatialdata import SpatialData


logger = logging.getLogger(__name__)


def cache_folder(sdata: "SpatialData") -> Path | None:
    """``STORE.agl_features``, beside the zarr store of a SpatialData that has one on a disk that can be written to.

    Beside and not inside: spatialdata deletes and rewrites what is inside when the object is written again.
    """
    if not isinstance(sdata.path, Path):
        return None
    store = sdata.path.resolve()
    if not os.access(store.parent, os.W_OK):
        logger.warning("%s cannot be written to: features are not kept on disk while they are computed.", store.parent)
        return None
    return store.with_name(f"{store.name}.agl_features")


class FeatureCache:
    """Finished blocks of one set of tiles in a zarr group, held by one process at a time.

    A block is finished when its features agree with the digest that was written after them.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int]) -> None:
        self.path = folder / key
        self.shape = shape
        self._lock = FileLock(folder / f"{key}.lock")

    def __enter__(self) -> Self:
        import zarr

        self.path.parent.mkdir(exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another process computes the features in %s; waiting for it.", self.path)
            self._lock.acquire()
        n_rows, n_features = self.shape
        group = zarr.open_group(self.path, mode="a")
        self._features: Any = group.require_array(
            "features", shape=self.shape, chunks=(BLOCK, n_features), dtype="float32", compressors=None
        )
        self._digests: Any = group.require_array(
            "digests", shape=(-(-n_rows // BLOCK), 32), chunks=(1, 32), dtype="uint8", compressors=None
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def finished(self) -> Iterator[tuple[int, Float32Array]]:
        """Number and features of every finished block."""
        digests = self._digests[:]
        for block in np.flatnonzero(digests.any(axis=1)).tolist():
            values = self._features[block * BLOCK : (block + 1) * BLOCK]
            if _digest(values) == digests[block].tobytes():
                yield block, values

    def add(self, block: int, values: Float32Array) -> None:
        """Write a block, then its digest."""
        try:
            self._features[block * BLOCK : (block + 1) * BLOCK] = values
            self._digests[block] = np.frombuffer(_digest(values), dtype=np.uint8)
        except OSError as error:
            msg = (
                f"Features could not be written to {self.path} ({error.strerror or error}); finished blocks are kept: "
                "make room and run again, and it goes on from there."
            )
            raise OSError(msg) from error


def _digest(values: Float32Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
