"""Features on disk beside a SpatialData, block by block, so that an interrupted run goes on where it stopped."""

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from filelock import FileLock, Timeout

from agl_sc.core.arrays import Float32Array
from agl_sc.core.encoders.encode import BLOCK
from agl_sc.core.writing.staging import note_written

if TYPE_CHECKING:
    from spatialdata import SpatialData


logger = logging.getLogger(__name__)
_ZARR_ERRORS = (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError)
"""What zarr raises for files that are not as it wrote them."""
_OTHER_THINGS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_FULL = {errno.ENOSPC, errno.EDQUOT}
_COMPARED = (
    "zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value",
    "storage_transformers",
)  # fmt: skip
"""What must be the same in the description of an array for it to be one of a cache."""


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

    A block is finished when its features agree with the digest that was written after them. What is there and is no
    such group is made anew; where it cannot be written to, nothing is kept.
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int]) -> None:
        self.path = folder / key
        self.shape = shape
        self._lock = FileLock(folder / f"{key}.lock")
        self._arrays: tuple[Any, Any] | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._acquire()
            self._arrays = self._opened()
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                self._lock.release()
                raise self._full(error) from error
            self._leave_alone(error)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def finished(self) -> Iterator[tuple[int, Float32Array]]:
        """Number and features of every finished block; what is left of any other is deleted."""
        for block in range(self._n_blocks):
            values = None if self._arrays is None else self._read(block, *self._arrays)
            if values is not None:
                yield block, values

    def add(self, block: int, values: Float32Array) -> None:
        """Write a block, then its digest.

        Raises
        ------
        OSError
            The disk is full.
        """
        if self._arrays is None:
            return
        features, digests = self._arrays
        try:
            features[block * BLOCK : (block + 1) * BLOCK] = values
            digests[block] = np.frombuffer(_digest(values), dtype=np.uint8)
        except OSError as error:
            if error.errno in _FULL:
                raise self._full(error) from error
            self._leave_alone(error)
        else:
            note_written(self.path.parent)

    @property
    def _n_blocks(self) -> int:
        return -(-self.shape[0] // BLOCK)

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            logger.warning("Another process computes the features in %s; waiting for it.", self.path)
            self._lock.acquire()

    def _opened(self) -> tuple[Any, Any]:
        """Arrays of features and digests; made anew where what is there is something else."""
        if os.path.lexists(self.path):
            try:
                self._check_descriptions()
                return self._made(self.path)
            except _ZARR_ERRORS as error:
                if isinstance(error, OSError) and not isinstance(error, _OTHER_THINGS):
                    raise
                logger.warning("The features in %s are damaged (%s) and are computed again.", self.path, _first(error))
                _delete(self.path)
        return self._made(self.path)

    def _made(self, store: Any) -> tuple[Any, Any]:
        """The arrays in a store, made where they are missing."""
        import zarr

        group = zarr.open_group(store, mode="a")
        features = group.require_array(
            "features", shape=self.shape, chunks=(BLOCK, self.shape[1]), dtype="float32", compressors=None
        )
        digests = group.require_array(
            "digests", shape=(self._n_blocks, 32), chunks=(1, 32), dtype="uint8", compressors=None
        )
        return features, digests

    def _check_descriptions(self) -> None:
        """Refuse arrays that are not described as this class would describe them."""
        from zarr.storage import MemoryStore

        files: dict[str, Any] = {}
        self._made(MemoryStore(files))
        for name in ("features", "digests"):
            file, chunks = self.path / name / "zarr.json", self.path / name / "c"
            if not os.path.lexists(self.path / name):
                continue  # interrupted before it was made
            if os.path.lexists(chunks) and not chunks.is_dir():
                msg = f"{chunks} is not a folder"
                raise ValueError(msg)
            found = json.loads(file.read_text(encoding="utf-8"))
            wanted = json.loads(files[f"{name}/zarr.json"].to_bytes())
            if not isinstance(found, dict):
                msg = f"{file} is no description of an array"
                raise TypeError(msg)
            odd = [each for each in _COMPARED if found.get(each) != wanted.get(each)]
            if odd:
                msg = f"{odd[0]} of {name} is {found.get(odd[0])!r}"
                raise ValueError(msg)

    def _read(self, block: int, features: Any, digests: Any) -> Float32Array | None:
        """Features of a block, or None where it is not finished."""
        try:
            digest = digests[block]
            if digest.any():
                values: Float32Array = features[block * BLOCK : (block + 1) * BLOCK]
                if _digest(values) == digest.tobytes():
                    return values
        except _ZARR_ERRORS as error:
            logger.warning("Block %d of the features in %s is damaged (%s).", block, self.path, _first(error))
        try:
            for name in ("features", "digests"):
                _delete(self.path / name / "c" / str(block))  # writing over a damaged chunk would read it first
        except OSError as error:
            self._leave_alone(error)
        return None

    def _leave_alone(self, error: Exception) -> None:
        """Go on without what is on disk."""
        logger.warning(
            "The features in %s can be neither used nor written (%s), and are not kept on disk.",
            self.path,
            _first(error),
        )
        self._arrays = None

    def _full(self, error: OSError) -> OSError:
        return OSError(
            f"Features could not be written to {self.path} ({error.strerror or error}); finished blocks are kept: "
            "make room and run again, and it goes on from there."
        )


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _delete(path: Path) -> None:
    """Whatever is at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(values: Float32Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).digest()
