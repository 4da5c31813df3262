"""Tiles at other scales are those that embedding at these scales gives."""

import numpy as np
import pytest
from spatialdata import SpatialData

from agl_sc import datasets, pp
from agl_sc._sdata.study import Address, Study
from agl_sc.pp._features import other_scales
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._features.other_scales import at_other_scales


@pytest.fixture
def sdata() -> SpatialData:
    sdata = datasets.toy_tissue(n_sections=2, n_spots_per_side=6)
    pp.embed(sdata, tile_px=32, mpp=2.0, context=(2,), orientations=2)
    return sdata


def embedded(sdata: SpatialData, mpp: float) -> np.ndarray:
    pp.embed(sdata, tile_px=32, mpp=mpp, context=(), orientations=1, maps="none", key_added="other")
    return np.asarray(sdata["table"].obsm["other_features"])


def test_they_are_those_of_tiles_at_that_scale(sdata: SpatialData) -> None:
    rows = np.arange(sdata["table"].n_obs)[::2]
    found = at_other_scales(Study.of(sdata), rows, (-1.0, 1.0), tiles=FeatureRequest())
    assert set(found.rows.tolist()) <= set(rows.tolist())
    assert len(np.unique(found.rows)) == len(rows)
    for step in (-1.0, 1.0):
        own, expected = found.steps == step, embedded(sdata, 2.0 * 2.0**step)
        np.testing.assert_allclose(found.features[own], expected[found.rows[own]], rtol=1e-3, atol=1e-3)


def test_a_scale_that_the_image_does_not_have_is_left_out(sdata: SpatialData) -> None:
    found = at_other_scales(Study.of(sdata), np.arange(8), (-6.0, 1.0), tiles=FeatureRequest())
    assert set(found.steps.tolist()) == {1.0}
    none = at_other_scales(Study.of(sdata), np.arange(8), (-6.0,), tiles=FeatureRequest())
    assert not len(none.rows)


def test_they_are_made_once(sdata: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    study, rows = Study.of(sdata), np.arange(sdata["table"].n_obs)
    first = at_other_scales(study, rows, (1.0,), tiles=FeatureRequest())
    monkeypatch.setattr(other_scales, "encode", lambda *_, **__: pytest.fail("encoded again"))
    second = at_other_scales(study, rows, (1.0,), tiles=FeatureRequest())
    np.testing.assert_array_equal(first.features, second.features)


def test_tiles_of_many_spots_are_about_120(sdata: SpatialData) -> None:
    many = datasets.toy_tissue(n_sections=3, n_spots_per_side=9)
    pp.embed(many, tile_px=32, mpp=2.0, context=(), orientations=1, stages=False)
    found = at_other_scales(Study.of(many), np.arange(many["table"].n_obs), (1.0,), tiles=FeatureRequest())
    regions = many["table"].obs["region"].to_numpy()[found.rows]
    assert np.unique(regions, return_counts=True)[1].tolist() == [40, 40, 40]


def test_by_maps_they_are_nearer_to_maps_than_tiles_without_surroundings() -> None:
    """One pass of a larger tile each."""
    sdata = datasets.toy_tissue(n_sections=1, n_spots_per_side=6)
    for maps in ("all", "none"):
        pp.embed(sdata, tile_px=64, mpp=2.0, context=(), orientations=1, maps=maps, key_added=maps)
    found = at_other_scales(
        Study.of(sdata, Address(), "all"), np.arange(sdata["table"].n_obs), (0.0,), tiles=FeatureRequest()
    )
    by_maps, tiles = (np.asarray(sdata["table"].obsm[f"{maps}_features"]) for maps in ("all", "none"))
    from_maps, between = (np.linalg.norm(each - by_maps, axis=1) for each in (found.features, tiles))
    assert np.median(from_maps / between) < 0.8
