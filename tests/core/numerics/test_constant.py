"""What is constant, and what is divided by then."""

import numpy as np
import pytest

from agl_sc.core.numerics.constant import constant, divisor, varying

COLUMNS = {
    "constant": (np.full(7, 0.1), True, False),
    "one apart": (np.array([0.1] * 6 + [0.1 + 2e-17 + 1e-16]), False, True),
    "zeros": (np.zeros(7), True, False),
    "unknown": (np.array([1.0] * 6 + [np.nan]), False, False),
}


@pytest.mark.parametrize(("values", "same", "different"), COLUMNS.values(), ids=COLUMNS)
def test_a_column_is_constant_varies_or_is_unknown(values: np.ndarray, *, same: bool, different: bool) -> None:
    table = np.column_stack([values, np.arange(7.0)])
    assert constant(table).tolist() == [same, False]
    assert varying(table).tolist() == [different, True]


def test_what_centring_leaves_of_a_constant_is_not_divided_by() -> None:
    values = np.full((1000, 1), 0.1) * np.array([1.0, 7.0])
    left = (values - values.mean(axis=0)).std(axis=0)
    assert divisor(left).tolist() == [1.0, 1.0]
    assert divisor(np.array([1e-9, 2.0])).tolist() == [1e-9, 2.0]
