"""Arguments that can be, and those that cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from agl_sc.core.arguments import (
    LARGEST_SEED,
    check_choice,
    check_flag,
    check_name,
    check_names,
    check_scales,
    check_seed,
    is_number,
    is_whole,
)


@pytest.mark.parametrize("value", [0, 3, -1, np.int64(3), np.uint8(1), 10**30])
def test_whole_numbers(value: Any) -> None:
    assert is_whole(value)
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, np.bool_(True), np.array([False])[0]])
def test_flags(value: Any) -> None:
    check_flag("refit", value)


@pytest.mark.parametrize("value", [1, 0, None, "yes", [], np.array([True]), np.array([True, False]), object], ids=repr)
def test_what_is_truthy_is_no_flag(value: Any) -> None:
    with pytest.raises(TypeError, match=r"refit=.* is a .*, not True or False; pass one of these\."):
        check_flag("refit", value)


@pytest.mark.parametrize("value", [0.5, np.float32(1), float("nan")])
def test_numbers_that_are_not_whole(value: Any) -> None:
    assert not is_whole(value)
    assert is_number(value)


@pytest.mark.parametrize("value", [True, None, "1", [], 1j, np.arange(1), object], ids=repr)
def test_no_numbers(value: Any) -> None:
    assert not is_whole(value)
    assert not is_number(value)


@pytest.mark.parametrize("seed", [0, 7, np.int64(7), LARGEST_SEED])
def test_seeds(seed: Any) -> None:
    check_seed(seed)
    np.random.default_rng(seed)


@pytest.mark.parametrize("seed", [-1, 0.0, True, None, "0", float("nan"), LARGEST_SEED + 1, [0]], ids=repr)
def test_no_seeds(seed: Any) -> None:
    with pytest.raises(ValueError, match=r"seed=.* is not a whole number from 0 to 4294967295; 0 is usual\.$"):
        check_seed(seed)


@pytest.mark.parametrize(
    "value", [None, "a", "", [], ["a"], ("a",), {"a"}, np.array(["a"]), pd.Series(["a"])], ids=repr
)
def test_names(value: Any) -> None:
    check_names("sections", value)


@pytest.mark.parametrize(
    ("check", "value", "message"),
    [
        (check_names, 3, "what=3 is a int, not a name or a list of names"),
        (check_names, b"a", "what=b'a' is a bytes, not"),
        (check_names, {"a": 1}, "is a dict, not"),
        (check_names, iter(["a"]), "is a list_iterator, not"),
        (check_names, ["a", None], r"what holds None, a NoneType; pass names\.$"),
        (check_names, [101.0], r"what holds 101\.0, a float; pass names, such as '101'\.$"),
        (check_name, Path("a"), "is a PosixPath, not a name; pass a string, or None"),
        (check_name, ["a"], "is a list, not a name"),
    ],
)
def test_no_names(check: Callable[[str, Any], None], value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check("what", value)


def test_choices() -> None:
    check_choice("by", "spot", ("spot", "block"))
    for value in ("Spot", None, ["spot"], np.array(["spot", "block"]), pd.Series(["spot"])):
        with pytest.raises(ValueError, match=r"(?s)by=.*'spot', 'block'\.$"):
            check_choice("by", value, ("spot", "block"))


@pytest.mark.parametrize("value", [None, 0.5, 1, np.float32(0.5), {"a": 0.5}, {}], ids=repr)
def test_scales(value: Any) -> None:
    check_scales(value)


@pytest.mark.parametrize("value", ["0.5", {"a": "0.5"}, {"a": None}, [0.5], True], ids=repr)
def test_no_scales(value: Any) -> None:
    with pytest.raises(TypeError, match=r"image_mpp=.* is a \w+, not a number of microns per pixel"):
        check_scales(value)
