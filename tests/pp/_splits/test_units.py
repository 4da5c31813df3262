"""Units dealt to folds, and what is said of patients."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_sc.pp._splits.units import deal, draw, patient_of, straddling


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=30), st.integers(2, 6), st.integers(0, 99))
def test_units_are_dealt_whole_and_evenly(sizes: list[int], n_folds: int, seed: int) -> None:
    units = np.repeat(np.arange(len(sizes)).astype(str), sizes)
    n_folds = min(n_folds, len(sizes))
    fold_of = deal(units, np.zeros(len(units), dtype=str), n_folds=n_folds, generator=np.random.default_rng(seed))
    assert pd.Series(fold_of).groupby(units).nunique().max() == 1
    filled = np.bincount(fold_of, minlength=n_folds)
    assert (filled > 0).all()
    assert np.ptp(filled) <= max(sizes)  # largest first: no fold is ahead by more than one unit


def test_every_fold_gets_its_share_of_every_stratum() -> None:
    strata = np.repeat(["A", "B", "C"], [100, 50, 9])
    units = np.arange(159).astype(str)
    fold_of = deal(units, strata, n_folds=5, generator=np.random.default_rng(0))
    counts = pd.crosstab(strata, fold_of).to_numpy()
    assert (np.ptp(counts, axis=1) <= 1).all()
    assert np.ptp(counts.sum(axis=0)) <= 1


def test_units_of_one_size_are_dealt_at_random() -> None:
    units = np.arange(12).astype(str)
    dealt = {
        tuple(deal(units, np.zeros(12, dtype=str), n_folds=3, generator=np.random.default_rng(seed)))
        for seed in (0, 0, 1, 2)
    }
    assert len(dealt) == 3


def test_draw_takes_whole_units_nearest_to_the_shares() -> None:
    units = np.repeat(np.arange(50).astype(str), 4)
    assigned = draw(units, test=0.2, validation=0.1, generator=np.random.default_rng(0))
    assert {name: int((assigned == name).sum()) for name in ("test", "validation")} == {"test": 40, "validation": 20}
    assert straddling(units, assigned) == {}


def test_straddling_names_the_sets() -> None:
    units = np.array(["A", "A", "A", "B", "B", "C", "C"])
    assigned = np.array(["test", "train", "unused", "unused", "train", "validation", "test"])
    assert straddling(units, assigned) == {"A": ["train", "test"], "C": ["validation", "test"]}


def test_patients_are_named_for_every_spot() -> None:
    table = AnnData(obs=pd.DataFrame({"section": ["C2", "C3", "C3"]}, index=list("abc")))
    with pytest.raises(KeyError, match=r"no column 'patient' \(its columns are section\); add one, e.g. table.obs"):
        patient_of(table)
    table.obs["patient"] = [1, 2, 2]
    assert patient_of(table).tolist() == ["1", "2", "2"]
    table.obs["patient"] = pd.Categorical(["A", None, None])
    with pytest.raises(ValueError, match=r"missing for 2 spots \(of C3\); name the patient of every spot"):
        patient_of(table)
