"""What several trainings have in common is made once: values kept by what they were made from."""

import hashlib
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.sparse

MOST_BYTES = 2**31
"""What is kept at most: the decompositions of a study of some thousand spots for its training spots and for all."""

Value = TypeVar("Value")


class Once:
    """Values by what they were made from, those asked for last, as many as take ``most_bytes``.

    They are handed out as they are, to be read and not written to.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._kept: dict[Hashable, Any] = {}

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What was made for this key, or is made now."""
        if not self.most_bytes:
            return make()
        value: Value = self._kept.pop(key) if key in self._kept else make()
        self._kept[key] = value  # the last ones were asked for last
        room = self.most_bytes
        for each in reversed(list(self._kept)):
            room -= max(1, size_of(self._kept[each]))
            if room < 0:
                del self._kept[each]
        return value

    def digest(self, *values: Any) -> str:
        """SHA-256 of arrays, sparse matrices, dataclasses of them, and plain values; empty where nothing is kept."""
        sha = hashlib.sha256()
        for value in values if self.most_bytes else ():
            _add(sha, value)
        return sha.hexdigest() if self.most_bytes else ""


NOT_SHARED = 0
"""Bytes of what is kept for others where there are none."""


def size_of(value: Any) -> int:
    """Bytes of the arrays in a value."""
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if isinstance(value, tuple):
        return sum(map(size_of, value))
    if is_dataclass(value):
        return sum(size_of(getattr(value, each.name)) for each in fields(value))
    return int(value.memory_usage().sum()) if isinstance(value, pd.DataFrame) else 0


def _add(sha: Any, value: Any) -> None:
    if isinstance(value, np.ndarray):
        sha.update(f"{value.dtype}{value.shape}".encode())
        sha.update(np.ascontiguousarray(value).data)
    elif scipy.sparse.issparse(value):
        for part in (value.shape, value.data, value.indices, value.indptr):
            _add(sha, part)
    elif is_dataclass(value):
        for each in fields(value):
            _add(sha, getattr(value, each.name))
    else:
        sha.update(repr(value).encode())
