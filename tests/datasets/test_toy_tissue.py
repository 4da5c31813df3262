"""The toy tissue as a user sees it: layout, truth, determinism, and that it can be learned but not trivially."""

import itertools
import logging
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import spatialdata
import torch
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from agl_sc import datasets
from agl_sc._sdata.geometry import check_mpp, spot_pitch_px
from agl_sc.core.encoders.load import load_encoder
from agl_sc.datasets import toy_tissue
from agl_sc.datasets._toy_counts import ROLES

FloatArray = NDArray[np.float64]
SMALL: dict[str, Any] = {"n_spots_per_side": 7, "n_targets": 3, "n_informative": 4, "n_auxiliary": 13}
TINY: dict[str, Any] = {"n_sections": 1, "n_spots_per_side": 6, "n_targets": 1, "n_informative": 0, "n_auxiliary": 1}


@pytest.fixture(scope="module")
def small() -> SpatialData:
    return toy_tissue(**SMALL)


@pytest.fixture(scope="module")
def full() -> SpatialData:
    return toy_tissue()


def pixels(sdata: SpatialData, section: str = "section_1") -> NDArray[np.uint8]:
    element = sdata[f"{section}_image"]
    # an image of one level comes back from zarr as a plain array
    level = element["scale0"]["image"] if "scale0" in getattr(element, "children", ()) else element
    return np.asarray(level)


def counts(sdata: SpatialData) -> FloatArray:
    dense: FloatArray = sdata["table"].X.toarray().astype(np.float64)
    return dense


def normalised(table: AnnData) -> FloatArray:
    """log1p CP10k, centred per section."""
    raw = table.X.toarray().astype(np.float64)
    expression = np.log1p(raw / raw.sum(axis=1, keepdims=True) * 1e4)
    for section in table.obs["section"].unique():
        rows = (table.obs["section"] == section).to_numpy()
        expression[rows] -= expression[rows].mean(axis=0)
    return np.asarray(expression)


def fields(table: AnnData) -> FloatArray:
    return np.asarray(table.obs.filter(regex=r"^truth_field_\d$").to_numpy(dtype=float))


def columns(table: AnnData, role: str) -> NDArray[np.intp]:
    return np.asarray(table.var_names.get_indexer(table.uns["truth"]["targets" if role == "target" else role]))


def test_all_lists_the_public_functions() -> None:
    assert datasets.__all__ == ["hest1k", "toy_tissue"]


def test_default_sizes(full: SpatialData) -> None:
    table = full["table"]
    truth = table.uns["truth"]
    assert {name: len(truth[name]) for name in ("targets", "informative", "distractor", "invisible", "noise")} == {
        "targets": 20,
        "informative": 80,
        "distractor": 100,
        "invisible": 100,
        "noise": 100,
    }
    assert table.n_vars == 400
    assert table.obs["section"].value_counts().between(350, 450).all()
    assert pixels(full).shape[0] == 3
    assert 2100 <= pixels(full).shape[1] == pixels(full).shape[2] <= 2400


def test_one_patient_per_section() -> None:
    table = toy_tissue(n_sections=3, **SMALL)["table"]
    pairs = table.obs[["section", "patient"]].drop_duplicates().astype(str).to_numpy().tolist()
    assert pairs == [[f"section_{i}", f"patient_{i}"] for i in (1, 2, 3)]


def test_table_holds_raw_sparse_counts(small: SpatialData) -> None:
    matrix = small["table"].X
    assert matrix.format == "csr"
    assert (matrix.data > 0).all()
    assert (matrix.data == np.round(matrix.data)).all()


def test_truth_names_partition_the_genes(small: SpatialData) -> None:
    table = small["table"]
    truth = table.uns["truth"]
    named = list(
        itertools.chain(*(truth[name] for name in ("targets", "informative", "distractor", "invisible", "noise")))
    )
    assert sorted(named) == sorted(table.var_names)
    for role in ROLES:
        assert (table.var["truth_role"].iloc[columns(table, role)] == role).all()


def test_gene_names_and_order_tell_nothing(full: SpatialData) -> None:
    table = full["table"]
    assert list(table.var_names[:2]) == ["G0001", "G0002"]
    positions = columns(table, "informative")
    assert abs(positions.mean() - 200) < 4 * 400 / np.sqrt(12 * 80)
    assert len(np.unique(positions // 100)) == 4


def test_prior_descends_from_informative_to_unhelpful(full: SpatialData) -> None:
    table = full["table"]
    truth = table.uns["truth"]
    best_first = [*truth["informative"], *truth["distractor"], *truth["invisible"], *truth["noise"]]
    assert (np.diff(table.var.loc[best_first, "truth_prior"]) < 0).all()
    assert table.var.loc[truth["targets"], "truth_prior"].isna().all()


def test_cutoff_star_selects_exactly_the_informative_genes(full: SpatialData) -> None:
    truth = full["table"].uns["truth"]
    rank = np.arange(380) / 379
    assert truth["k_star"] == 80
    assert (rank <= truth["cutoff_star"]).sum() == 80


@pytest.mark.parametrize(
    ("n_informative", "n_auxiliary", "cutoff"),
    [
        pytest.param(0, 6, 0.0, id="none helps"),
        pytest.param(6, 6, 1.0, id="all help"),
        pytest.param(0, 0, 0.0, id="no auxiliary gene"),
        pytest.param(1, 1, 0.5, id="a single one"),
    ],
)
def test_cutoff_star_at_the_limits(n_informative: int, n_auxiliary: int, cutoff: float) -> None:
    sdata = toy_tissue(
        n_sections=1, n_spots_per_side=6, n_targets=2, n_informative=n_informative, n_auxiliary=n_auxiliary
    )
    assert sdata["table"].uns["truth"]["cutoff_star"] == cutoff
    assert sdata["table"].uns["truth"]["k_star"] == n_informative
    assert sdata["table"].n_vars == 2 + n_auxiliary


def test_unhelpful_genes_are_shared_out_to_the_last_one() -> None:
    truth = toy_tissue(**{**TINY, "n_informative": 2, "n_auxiliary": 7})["table"].uns["truth"]
    assert [len(truth[name]) for name in ("distractor", "invisible", "noise")] == [2, 2, 1]


def test_says_what_it_drew(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="agl_sc.datasets"):
        sdata = toy_tissue(**TINY)
    assert f"1 sections with {sdata['table'].n_obs} spots and 2 genes" in caplog.text


def test_zarr_round_trip(small: SpatialData, tmp_path: Path) -> None:
    small.write(tmp_path / "toy.zarr")
    back = spatialdata.read_zarr(tmp_path / "toy.zarr")
    before, after = small["table"], back["table"]
    np.testing.assert_array_equal(pixels(back, "section_2"), pixels(small, "section_2"))
    assert (before.X != after.X).nnz == 0
    assert before.uns["truth"].keys() == after.uns["truth"].keys()
    for name, value in before.uns["truth"].items():
        np.testing.assert_array_equal(after.uns["truth"][name], value)
    np.testing.assert_array_equal(fields(after), fields(before))
    np.testing.assert_array_equal(after.var["truth_prior"], before.var["truth_prior"])


def test_h5ad_round_trip_without_unhelpful_genes(tmp_path: Path) -> None:
    table = toy_tissue(**{**TINY, "n_targets": 2, "n_auxiliary": 0})["table"]
    table.write_h5ad(tmp_path / "toy.h5ad")
    truth = anndata.read_h5ad(tmp_path / "toy.h5ad").uns["truth"]
    assert len(truth["noise"]) == 0
    assert list(truth["targets"]) == list(table.uns["truth"]["targets"])


@pytest.mark.parametrize("section", ["section_1", "section_2"])
def test_pitch_is_that_of_visium(full: SpatialData, section: str) -> None:
    centres = full["table"].obsm["spatial"][(full["table"].obs["section"] == section).to_numpy()]
    mpp = full.attrs["agl_sc"]["image_mpp"][f"{section}_image"]
    assert full.attrs["agl_sc"]["technology"][section] == "visium"
    assert spot_pitch_px(centres, "visium") * mpp == pytest.approx(100.0)
    assert full[section]["radius"].to_numpy() * 2 * mpp == pytest.approx(55.0)


@pytest.mark.parametrize("n_spots_per_side", [6, 9])
def test_scale_holds_for_small_sections(n_spots_per_side: int) -> None:
    sdata = toy_tissue(n_sections=4, n_spots_per_side=n_spots_per_side, n_targets=1, n_informative=0, n_auxiliary=0)
    table = sdata["table"]
    for section in table.obs["section"].cat.categories:
        centres = table.obsm["spatial"][(table.obs["section"] == section).to_numpy()]
        assert check_mpp(1.0, centres, "visium", name=section) == 1.0


def test_stain_shift_runs_from_the_first_to_the_last_section() -> None:
    plain, shifted = toy_tissue(**SMALL), toy_tissue(stain_shift=0.4, **SMALL)
    np.testing.assert_array_equal(counts(plain), counts(shifted))
    red = [[pixels(s, section)[0].mean() for section in ("section_1", "section_2")] for s in (plain, shifted)]
    assert red[1][0] > red[0][0] + 2
    assert red[1][1] < red[0][1] - 2


def test_depth_shift_runs_from_the_first_to_the_last_section() -> None:
    plain, shifted = toy_tissue(**SMALL), toy_tissue(depth_shift=0.5, **SMALL)
    np.testing.assert_array_equal(pixels(plain), pixels(shifted))
    first = (plain["table"].obs["section"] == "section_1").to_numpy()
    ratio = np.log(counts(shifted).sum(axis=1) / counts(plain).sum(axis=1))
    assert np.median(ratio[first]) == pytest.approx(-0.5, abs=0.1)
    assert np.median(ratio[~first]) == pytest.approx(0.5, abs=0.1)


def test_same_seed_same_bytes(small: SpatialData) -> None:
    again = toy_tissue(**SMALL)
    assert pixels(small).tobytes() == pixels(again).tobytes()
    assert counts(small).tobytes() == counts(again).tobytes()
    assert small["table"].obs.equals(again["table"].obs)


def test_another_seed_is_another_tissue(small: SpatialData) -> None:
    other = toy_tissue(seed=1, **SMALL)
    assert (pixels(small) != pixels(other)).mean() > 0.1
    assert set(small["table"].uns["truth"]["targets"]) != set(other["table"].uns["truth"]["targets"])


def test_sections_differ_and_do_not_depend_on_their_number(small: SpatialData) -> None:
    alone = toy_tissue(n_sections=1, **SMALL)
    assert pixels(alone).tobytes() == pixels(small).tobytes()
    assert counts(alone).tobytes() == counts(small)[: alone["table"].n_obs].tobytes()
    assert (pixels(small, "section_1") != pixels(small, "section_2")).mean() > 0.1


def test_global_generator_is_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    expected = np.random.random(3)  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    toy_tissue(**TINY)
    np.testing.assert_array_equal(np.random.random(3), expected)  # noqa: NPY002


def test_targets_are_the_most_variable_genes_that_are_often_detected(full: SpatialData) -> None:
    table = full["table"]
    detected = (counts(full) > 0).mean(axis=0)
    variance = np.where(detected > 0.3, normalised(table).var(axis=0), 0)
    chosen = np.argsort(-variance)[:20]
    assert np.isin(chosen, columns(table, "target")).mean() >= 0.9


def test_dispersion_prior_prefers_informative_genes(full: SpatialData) -> None:
    import scanpy as sc

    table = full["table"]
    auxiliary = table[:, (table.var["truth_role"] != "target").to_numpy()].copy()
    sc.pp.normalize_total(auxiliary, target_sum=1e4)
    sc.pp.log1p(auxiliary)
    score = sc.pp.highly_variable_genes(auxiliary, flavor="seurat", inplace=False)["dispersions_norm"].to_numpy()
    first = auxiliary.var["truth_role"].to_numpy()[np.argsort(-score)[:80]]
    assert (first == "informative").mean() > 0.6


def tile_features(sdata: SpatialData, rows: NDArray[np.intp]) -> FloatArray:
    """Features of 224 px tiles at 0.5 um per pixel, centred within sections."""
    encoder = load_encoder("efficientnet_lite0")
    table = sdata["table"]
    sections = table.obs["section"].astype(str).to_numpy()
    images = {section: pixels(sdata, section) for section in np.unique(sections)}
    batches = []
    for chunk in np.array_split(rows, max(len(rows) // 32, 1)):
        corners = np.round(table.obsm["spatial"][chunk] - 56).astype(int)
        tiles = [images[sections[i]][:, y : y + 112, x : x + 112] for i, (x, y) in zip(chunk, corners, strict=True)]
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(tiles)).float()
            batches.append(encoder(torch.nn.functional.interpolate(batch, size=224, mode="bilinear")).numpy())
    features = np.concatenate(batches).astype(np.float64)
    for section in np.unique(sections):
        features[sections[rows] == section] -= features[sections[rows] == section].mean(axis=0)
    return features


def test_image_predicts_targets_of_another_section_but_not_perfectly(full: SpatialData) -> None:
    table = full["table"]
    rng = np.random.default_rng(0)
    in_first = (table.obs["section"] == "section_1").to_numpy()
    train = rng.choice(np.flatnonzero(in_first), 140, replace=False)
    test = rng.choice(np.flatnonzero(~in_first), 100, replace=False)
    features = tile_features(full, np.concatenate([train, test]))
    features /= (features[:140].std(axis=0) + 1e-6) * np.sqrt(features.shape[1])
    kernel = features @ features[:140].T
    expression = normalised(table)
    predicted = kernel[140:] @ np.linalg.solve(kernel[:140] + 20.0 * np.eye(140), expression[train])
    pearson = np.array([np.corrcoef(predicted[:, gene], expression[test, gene])[0, 1] for gene in range(table.n_vars)])
    mean = {role: pearson[columns(table, role)].mean() for role in ROLES}
    assert 0.08 < mean["target"] < 0.6
    assert mean["informative"] > mean["target"] + 0.05
    assert mean["distractor"] > 0.15
    assert abs(mean["invisible"]) < 0.15
    assert abs(mean["noise"]) < 0.05


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        pytest.param(
            {"n_sections": 0}, ValueError, r"^n_sections=0 is out of range; it must be at least 1\.$", id="sections"
        ),
        pytest.param({"n_spots_per_side": 5}, ValueError, r"^n_spots_per_side=5 .* at least 6\.$", id="spots"),
        pytest.param({"n_targets": 0}, ValueError, r"^n_targets=0 .* at least 1\.$", id="targets"),
        pytest.param({"n_auxiliary": -1}, ValueError, r"^n_auxiliary=-1 .* at least 0\.$", id="auxiliary"),
        pytest.param({"n_informative": 381}, ValueError, r"between 0 and 380 \(n_auxiliary\)\.$", id="informative"),
        pytest.param({"n_informative": -1}, ValueError, r"^n_informative=-1 .* between 0 and 380", id="negative"),
        pytest.param({"seed": -1}, ValueError, r"^seed=-1 .* at least 0\.$", id="seed"),
        pytest.param({"stain_shift": float("nan")}, ValueError, r"^stain_shift=nan .* between -2 and 2\.$", id="nan"),
        pytest.param({"depth_shift": 3}, ValueError, r"^depth_shift=3 .* between -2 and 2\.$", id="depth"),
        pytest.param({"n_sections": 2.0}, TypeError, r"^n_sections=2.0 is not a whole number", id="float"),
        pytest.param({"n_targets": True}, TypeError, r"^n_targets=True is not a whole number", id="bool"),
        pytest.param({"seed": None}, TypeError, r"^seed=None is not a whole number", id="no seed"),
        pytest.param({"stain_shift": "0.1"}, TypeError, r"^stain_shift='0.1' is not a number", id="text"),
    ],
)
def test_bad_argument_is_refused(argument: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        toy_tissue(**argument)


def test_numpy_integers_are_welcome() -> None:
    numpy_sizes: dict[str, Any] = {name: np.int64(value) for name, value in TINY.items()}
    np.testing.assert_array_equal(counts(toy_tissue(**numpy_sizes)), counts(toy_tissue(**TINY)))
