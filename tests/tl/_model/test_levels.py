"""Levels of sections: predicted where held-out sections show that morphology tells them, and otherwise said not to be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from spatialdata import SpatialData

from agl_sc._model_text import LEVELS, NO_LEVELS
from agl_sc.datasets import toy_tissue
from agl_sc.model import Model
from agl_sc.pp import embed, split
from agl_sc.tl import TrainConfig, train

TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}
N_SECTIONS = 10


LEVEL = np.random.default_rng(5).normal(size=N_SECTIONS)
"""Of what a section has more of than others."""


@pytest.fixture(scope="module")
def many_sections() -> SpatialData:
    """Sections whose tiles all look the more of a kind, the higher the section's level."""
    sdata = toy_tissue(n_sections=N_SECTIONS, n_spots_per_side=6, n_targets=4, n_informative=4, n_auxiliary=20)
    embed(sdata, **TILES)
    split(sdata, validation=0.2, test=0.1)
    table = sdata["table"]
    features, reference = table.obsm["agl_features"], table.uns["agl"]["reference"]["means"]
    kind = 2 * features.std(axis=0) * np.random.default_rng(6).choice([-1, 1], features.shape[1])
    for name, level in zip(sorted(reference), LEVEL, strict=True):
        features[(table.obs["region"] == name).to_numpy()] += (level * kind).astype(np.float32)
        reference[name] = reference[name] + level * kind
    return sdata


def with_levels(sdata: SpatialData, levels: NDArray[np.float64]) -> SpatialData:
    """The same tissue, the counts of half of all genes multiplied by exp(level) in every section."""
    table = sdata["table"].copy()
    regions = table.obs["region"].to_numpy(dtype=str)
    names = sorted(set(regions))
    factor = np.exp(levels)[np.searchsorted(names, regions)]
    half = np.arange(table.n_vars) % 2 == 0
    counts = table.X.toarray() if hasattr(table.X, "toarray") else np.array(table.X)
    table.X = np.round(counts * np.where(half, factor[:, None], 1.0)).astype(np.float32)
    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table}, attrs=sdata.attrs)


@pytest.fixture(scope="module")
def tied(many_sections: SpatialData) -> tuple[SpatialData, Model]:
    sdata = with_levels(many_sections, LEVEL)
    return sdata, train(sdata, config=TrainConfig(batch_size=16, max_epochs=1))


def test_levels_that_follow_morphology_are_predicted(tied: tuple[SpatialData, Model]) -> None:
    sdata, model = tied
    card = model.card["levels"]
    assert card["predicted"]
    assert card["n_units"] == card["n_sections"] == 9
    assert card["error"] < 0.8
    assert LEVELS in repr(model)
    table = sdata["table"]
    gene = next(name for name in model.targets if table.var_names.get_loc(name) % 2 == 0)
    test = table.obs["agl_split"] == "test"
    own = table[test].obs["region"].iloc[0]
    sections = sorted(set(table.obs["region"]))
    level = (LEVEL - LEVEL.mean())[sections.index(own)]
    values = table[:, gene].layers["agl"].ravel()
    away = values[test.to_numpy()].mean() - values[~test.to_numpy()].mean()
    assert np.sign(away) == np.sign(level)


def test_they_are_saved_and_one_spot_has_them_too(tied: tuple[SpatialData, Model], tmp_path: Path) -> None:
    sdata, model = tied
    table = sdata["table"]
    reference, regions = table.uns["agl"]["reference"]["means"], table.obs["region"].to_numpy(dtype=str)
    whole = model.predict(table.obsm["agl_features"], regions, reference)
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    alone = np.vstack([again.predict(table.obsm["agl_features"][[i]], regions[[i]], reference) for i in (0, 50, 200)])
    assert alone.tobytes() == whole[[0, 50, 200]].tobytes()


def test_levels_that_follow_nothing_are_not(many_sections: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
    levels = np.random.default_rng(3).permutation(np.linspace(-1.5, 1.5, N_SECTIONS))
    sdata = with_levels(many_sections, levels)
    with caplog.at_level("INFO"):
        model = train(sdata, config=TrainConfig(batch_size=16, max_epochs=1))
    assert not model.card["levels"]["predicted"]
    assert model.card["levels"]["error"] > 0.8
    assert model.levels is None
    assert NO_LEVELS in repr(model)
    assert f"Levels of sections are {NO_LEVELS}." in caplog.text


def test_few_sections_say_nothing_of_levels(trained: tuple[SpatialData, Model]) -> None:
    assert trained[1].card["levels"] == {"predicted": False, "n_sections": 2, "n_units": 2}
