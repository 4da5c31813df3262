"""Slot names come from one word."""

import pytest

from agl_sc._sdata.keys import Keys

NAMES = {
    "layer": "{}",
    "uns": "{}",
    "features": "{}_features",
    "split": "{}_split",
    "role": "{}_role",
    "prior_rank": "{}_prior_rank",
    "weight": "{}_weight",
    "selected": "{}_selected",
}


@pytest.mark.parametrize("key_added", ["agl", "run2"])
def test_every_slot_is_named_after_key_added(key_added: str) -> None:
    keys = Keys(key_added)
    assert {slot: getattr(keys, slot) for slot in NAMES} == {s: name.format(key_added) for s, name in NAMES.items()}
    assert keys.metric("pearson") == f"{key_added}_pearson"


def test_the_default_is_agl() -> None:
    assert Keys() == Keys("agl")


def test_two_analyses_share_no_column() -> None:
    first, second = Keys("agl"), Keys("other")
    assert not {getattr(first, slot) for slot in NAMES} & {getattr(second, slot) for slot in NAMES}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "2nd", "a-b", "."])
def test_a_name_that_could_not_be_stored_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"key_added='.*' is not a plain name; use letters"):
        Keys(name)
