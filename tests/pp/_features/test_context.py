"""Wider fields of view, neighbours and averaged tiles: what they are, within a section, and known to the model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from spatialdata import SpatialData

from agl_sc.model import Model
from agl_sc.pp import embed
from agl_sc.pp._features import embed as _embed
from agl_sc.pp._features.context import Views, ring_means
from agl_sc.tl import TrainConfig, predict, train

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "stages": False}
ALONE: dict[str, Any] = {**TILES, "context": (), "orientations": 1}
ALL: dict[str, Any] = {"context": (2,), "neighbors": 1, "orientations": 4, "maps": "none"}
N_FEATURES = 1280


def features_of(sdata: SpatialData) -> NDArray[np.float32]:
    features: NDArray[np.float32] = sdata["table"].obsm["agl_features"]
    return features


@pytest.fixture(scope="session")
def _wide(_prepared: SpatialData) -> SpatialData:
    sdata = SpatialData(images=dict(_prepared.images), shapes=dict(_prepared.shapes), attrs=_prepared.attrs)
    sdata.tables["table"] = _prepared["table"].copy()
    embed(sdata, **TILES, **ALL)
    return sdata


@pytest.fixture
def wide(_wide: SpatialData) -> SpatialData:
    """The prepared tissue with features of everything there is."""
    sdata = SpatialData(images=dict(_wide.images), shapes=dict(_wide.shapes), attrs=_wide.attrs)
    sdata.tables["table"] = _wide["table"].copy()
    return sdata


def lattice(kind: str, side: int = 6) -> NDArray[np.float64]:
    y, x = np.divmod(np.arange(side * side), side)
    return (
        np.column_stack([x + (y % 2) / 2, y * np.sqrt(3) / 2]) * 50
        if kind == "hexagonal"
        else np.column_stack([x, y]) * 50.0
    )


@pytest.mark.parametrize(("kind", "counts"), [("square", (8, 20)), ("hexagonal", (6, 18))])
def test_rings_hold_the_neighbours_of_a_lattice(kind: str, counts: tuple[int, int]) -> None:
    """Sums over one-hot features count the neighbours of a spot in the middle."""
    centres = lattice(kind, 9)
    jitter = np.random.default_rng(0).normal(0, 1, centres.shape)
    middle = 4 * 9 + 4
    for n_rings, n in zip((1, 2), counts, strict=True):
        means = ring_means(np.eye(81, dtype=np.float32), centres + jitter, n_rings)
        assert (means[middle] > 0).sum() == n
        assert means[middle, middle] == 0
        np.testing.assert_allclose(means.sum(axis=1), 1, rtol=1e-5)


def test_a_spot_on_its_own_keeps_its_features() -> None:
    features = np.arange(8, dtype=np.float32).reshape(4, 2)
    centres = np.array([[0, 0], [0, 10], [10, 0], [900, 900.0]])
    np.testing.assert_array_equal(ring_means(features, centres, 1)[3], features[3])
    np.testing.assert_array_equal(ring_means(features[:1], centres[:1], 1), features[:1])


def test_a_wider_field_is_the_tile_at_a_coarser_scale(tissue: SpatialData, prepared: SpatialData) -> None:
    embed(tissue, **{**ALONE, "context": (2,), "maps": "none"})
    wide = features_of(tissue)
    np.testing.assert_array_equal(wide[:, :N_FEATURES], features_of(prepared))
    embed(tissue, **{**ALONE, "mpp": 2.0})
    np.testing.assert_array_equal(wide[:, N_FEATURES:], features_of(tissue))


def test_neighbours_are_of_the_same_section(tissue: SpatialData, prepared: SpatialData) -> None:
    """Beside the means themselves: a section alone has the features it has among others."""
    embed(tissue, **ALONE, neighbors=1)
    rows = (tissue["table"].obs["section"] == "section_2").to_numpy()
    own, centres = features_of(prepared)[rows], tissue["table"].obsm["spatial"][rows]
    np.testing.assert_allclose(features_of(tissue)[rows, N_FEATURES:], ring_means(own, centres, 1), atol=1e-6)
    together = features_of(tissue)[rows]
    embed(tissue, **ALONE, neighbors=1, shapes_key="section_2")
    np.testing.assert_array_equal(features_of(tissue)[rows], together)


def test_all_of_it_is_finite_and_kept_after_reading_it_back(
    wide: SpatialData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert features_of(wide).shape == (159, 3 * N_FEATURES)
    assert np.isfinite(features_of(wide)).all()
    wide.write(tmp_path / "wide.zarr")
    monkeypatch.setattr(_embed, "encode", lambda *_, **__: pytest.fail("tiles were encoded again"))
    embed(SpatialData.read(tmp_path / "wide.zarr"), **TILES, **ALL)


def test_features_older_than_the_record_of_views_are_kept(
    prepared: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in Views().plain():
        prepared["table"].uns["agl"]["features"].pop(name, None)
    monkeypatch.setattr(_embed, "encode", lambda *_, **__: pytest.fail("tiles were encoded again"))
    embed(prepared, **ALONE)


def test_a_model_makes_the_features_it_was_trained_on(
    *, wide: SpatialData, tissue: SpatialData, config: TrainConfig, tmp_path: Path
) -> None:
    model = train(wide, method="pgl", config=config)
    model.save(tmp_path / "model")
    predict(tissue, Model.load(tmp_path / "model"))
    np.testing.assert_array_equal(features_of(tissue), features_of(wide))
    np.testing.assert_allclose(tissue["table"].layers["agl"], wide["table"].layers["agl"], atol=1e-4, equal_nan=True)


def test_other_views_are_refused_by_name(
    *, wide: SpatialData, prepared: SpatialData, config: TrainConfig, unchanged: Unchanged
) -> None:
    model = train(wide, method="pgl", config=config)
    with (
        unchanged(prepared),
        pytest.raises(
            ValueError, match=r"obsm\[\"agl_features\"\] was made with context='', the model with '2'; delete"
        ),
    ):
        predict(prepared, model)


def test_finetuning_is_for_tiles_alone(wide: SpatialData, config: TrainConfig) -> None:
    match = r"was made with context='2', neighbors=1, orientations=4; run agl_sc.pp.embed\(sdata, context=\(\), orientations=1, maps=.none.\) first"
    with pytest.raises(ValueError, match=match):
        train(wide, method="pgl", finetune=True, config=config)


def test_workers_of_a_cluster_give_the_same_bytes(tissue: SpatialData, wide: SpatialData) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        embed(tissue, **TILES, **ALL, client=client)
    np.testing.assert_array_equal(features_of(tissue), features_of(wide))


def test_by_default_stages_and_three_wider_fields_are_seen_upright_and_upside_down(tissue: SpatialData) -> None:
    """Fields of view come one after the other, each with the encoder's own features first and then its stages'."""
    embed(tissue, tile_px=32, mpp=1.0)
    made_from = tissue["table"].uns["agl"]["features"]
    assert (made_from["context"], made_from["stages"], made_from["orientations"]) == ("2 4 8", True, 2)
    assert made_from["maps"] == "wider"
    features = features_of(tissue)
    assert features.shape == (159, 4 * 2304)
    embed(tissue, **{**ALONE, "mpp": 2.0, "context": (2,), "orientations": 2, "maps": "wider"})
    again = features_of(tissue)[:, N_FEATURES:]
    np.testing.assert_allclose(features[:, 2 * 2304 : 2 * 2304 + N_FEATURES], again, atol=1e-5)
