"""Values that are made once for all that share them, and forgotten where they take too much room."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from agl_sc.core.linear.closed_form import LowRank
from agl_sc.core.once import NOT_SHARED, Once, size_of


def asked(once: Once, *keys: str, n_bytes: int = 8) -> list[str]:
    """Keys that were made, in order."""
    made: list[str] = []

    def make(key: str) -> np.ndarray[Any, Any]:
        made.append(key)
        return np.zeros(n_bytes, dtype=np.uint8)

    for key in keys:
        once.of(key, partial(make, key))
    return made


def test_a_value_is_made_by_the_first_that_asks_and_is_the_same_object_then() -> None:
    once = Once()
    assert asked(once, "a", "b", "a", "b", "a") == ["a", "b"]
    assert once.of("c", object) is once.of("c", object)


def test_what_was_not_asked_for_longest_goes_first() -> None:
    assert asked(Once(2 * 8), "a", "b", "a", "c", "a", "b") == ["a", "b", "c", "b"]


def test_what_is_larger_than_the_room_is_made_every_time() -> None:
    assert asked(Once(7), "a", "a") == ["a", "a"]


def test_nothing_is_kept_and_nothing_is_read_where_nothing_is_shared() -> None:
    once = Once(NOT_SHARED)
    assert asked(once, "a", "a", n_bytes=0) == ["a", "a"]
    assert once.digest(object()) == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.5, 0),
        (np.zeros(3), 24),
        ((np.zeros(3), np.zeros(1), None), 32),
        (LowRank(np.zeros((2, 3)), np.zeros((3, 4))), 48 + 96),
        (pd.DataFrame({"a": np.zeros(5)}), pd.DataFrame({"a": np.zeros(5)}).memory_usage().sum()),
    ],
)
def test_arrays_are_counted_wherever_they_are(value: object, expected: int) -> None:
    assert size_of(value) == expected


def test_digests_tell_values_types_shapes_and_places_apart() -> None:
    values = np.arange(6.0)
    sparse = scipy.sparse.csr_matrix(np.eye(3))
    different = [
        (values,), (values.astype(np.float32),), (values.reshape(2, 3),), (values.reshape(3, 2),), (values, None),
        (None, values), (sparse,), (scipy.sparse.csr_matrix(np.eye(3)[::-1]),), (scipy.sparse.csr_matrix((3, 3)),),
        (scipy.sparse.csr_matrix((3, 4)),), (LowRank(values[:, None], values[None]),), (1,), (2,),
    ]  # fmt: skip
    once = Once()
    assert len({once.digest(*each) for each in different}) == len(different)
    assert once.digest(values, sparse) == once.digest(values.copy(), sparse.copy())
    assert once.digest(np.asfortranarray(values.reshape(2, 3))) == once.digest(values.reshape(2, 3))
