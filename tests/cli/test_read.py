"""``read`` makes a store of files of every kind, and from there to a figure no line of Python is needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import spatialdata
from PIL import Image
from spatialdata import SpatialData
from tests.cli.conftest import QUICK
from tests.cli.section_files import write_h5ad, write_ome_zarr, write_outs, write_tiff
from tests.io.hd_files import write_cells, write_hd
from typer.testing import Result

from agl_sc._sdata.predictions import predicted_of
from agl_sc._sdata.study import Study

Run = Callable[..., Result]


def _done(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def _is_drawn(path: Path) -> None:
    with Image.open(path) as figure:
        assert figure.format == "PNG"
        assert np.ptp(np.asarray(figure.convert("L"))) > 100


def test_story_of_two_visium_folders(run: Run, tissue: SpatialData, tmp_path: Path) -> None:
    folders = [f"{name}={write_outs(tissue, name, tmp_path / name / 'outs')}" for name in ("section_1", "section_2")]
    read, figure = tmp_path / "read.zarr", tmp_path / "figure.png"
    found = _done(
        run(
            "read",
            "visium",
            *folders,
            "--patient",
            "section_1=P",
            "--patient",
            "section_2=Q",
            "--output",
            read,
            "--json",
        )
    )
    assert found["tables"] == {"table": [106, 24]}
    table = spatialdata.read_zarr(read)["table"]
    assert table.obs.groupby("section", observed=True)["patient"].first().to_dict() == {
        "section_1": "P",
        "section_2": "Q",
    }
    split = ["--by", "section", "--test", "section_2", "--validation", "0.3"]
    _done(
        run("train", read, *split, *QUICK, "--output", tmp_path / "model", "--write", tmp_path / "out.zarr", "--json")
    )
    gene = spatialdata.read_zarr(tmp_path / "out.zarr")["table"].var.query("agl_role == 'target'").index[0]
    _done(run("plot", tmp_path / "out.zarr", gene, "--section", "section_2", "--output", figure, "--json"))
    _is_drawn(figure)


def test_counts_of_another_name_are_read_as_the_refusal_says(run: Run, tissue: SpatialData, tmp_path: Path) -> None:
    folder = write_outs(tissue, "section_1", tmp_path / "A")
    (folder / "filtered_feature_bc_matrix").rename(folder / "raw_feature_bc_matrix")
    refused = run("read", "visium", folder, "--output", tmp_path / "a.zarr")
    assert "name one of its counts with counts_file= (raw_feature_bc_matrix)" in refused.stderr
    _done(
        run(
            "read",
            "visium",
            folder,
            "--counts-file",
            "raw_feature_bc_matrix",
            "--output",
            tmp_path / "a.zarr",
            "--json",
        )
    )


@pytest.mark.parametrize(("name", "write"), [("slide.tif", write_tiff), ("slide.ome.zarr", write_ome_zarr)])
def test_story_of_a_bare_slide(
    run: Run, name: str, write: Callable[..., Path], *, tissue: SpatialData, results: Path, tmp_path: Path
) -> None:
    slide = write(tissue, "section_3", tmp_path / name)
    out, figure = tmp_path / "out.zarr", tmp_path / "figure.png"
    found = _done(
        run("predict", slide, "--model", results / "model", "--output", out, "--h5ad", tmp_path / "out.h5ad", "--json")
    )
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert written.n_obs == found["n_obs"]
    assert "spatial" in written.obsm
    assert found["n_spots"] == found["n_obs"] > 30
    sdata = spatialdata.read_zarr(out)
    assert sdata["table"].n_vars == 0
    predicted = predicted_of(Study.of(sdata), "model")
    assert np.isfinite(predicted.values).all()
    _done(run("plot", out, predicted.genes[0], "--output", figure, "--json"))
    _is_drawn(figure)


def test_story_of_an_h5ad(run: Run, *, tissue: SpatialData, results: Path, tmp_path: Path) -> None:
    file = write_h5ad(tissue, "section_3", tmp_path / "brain.h5ad")
    read, out, figure = tmp_path / "read.zarr", tmp_path / "out.zarr", tmp_path / "figure.png"
    _done(run("read", "h5ad", file, "--technology", "visium", "--patient", "P", "--output", read, "--json"))
    _done(run("predict", read, results / "model", "--output", out, "--json"))
    table = spatialdata.read_zarr(out)["table"]
    gene = table.var_names[np.isfinite(table.layers["agl"]).all(axis=0)][0]
    _done(run("plot", out, gene, "--difference", "--output", figure, "--json"))
    _is_drawn(figure)


def test_slides_are_read_with_what_the_options_say(run: Run, tissue: SpatialData, tmp_path: Path) -> None:
    slide = write_tiff(tissue, "section_1", tmp_path / "slide.tif")
    options = ["--spacing-um", "150", "--lattice", "square", "--patient", "P"]
    _done(run("read", "slide", f"A={slide}", *options, "--output", tmp_path / "out.zarr", "--json"))
    sdata = spatialdata.read_zarr(tmp_path / "out.zarr")
    x = np.unique(sdata["table"].obsm["spatial"][:, 0])
    np.testing.assert_allclose(np.diff(x), 150)
    assert set(sdata["table"].obs["patient"]) == {"P"}
    assert list(sdata.images) == ["A_image"]
    refused = run("read", "slide", slide, "--image-mpp", "2", "--output", tmp_path / "other.zarr")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "contradicts" in refused.stderr
    assert "--distrust-file" in run("read", "slide", "--help").stdout


def test_sections_of_one_name_are_refused(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    refused = run("read", "slide", tmp_path / "a/s.tif", tmp_path / "b/s.tif", "--output", tmp_path / "out.zarr")
    assert refused.exit_code == 2
    assert "would both be section 's'; name them, as in A1=" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["visium-hd", "none"], "The folder 'none' does not exist"),
        (["st", "none"], "The folder 'none' does not exist"),
        (["h5ad", "none.h5ad"], "none.h5ad does not exist"),
        (["hest", "none"], "none"),
        (["slide", "none.svs"], "The slide 'none.svs' does not exist"),
        (
            ["visium", "none", "--image", "B=x.tif"],
            "--image B=x.tif names no section; write --image NAME=x.tif, where NAME is none",
        ),
        (["visium", "none", "--patient", "A", "--patient", "B"], "--patient A is not NAME=PATIENT"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(run: Run, *, arguments: list[str], said: str, tmp_path: Path) -> None:
    refused = run("read", *arguments, "--output", tmp_path / "out.zarr")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert said in refused.stderr


def test_a_model_is_named_once(run: Run, store: Path, tmp_path: Path) -> None:
    refused = run("predict", store, "--output", tmp_path / "out.zarr")
    assert "The model is named nowhere; name its folder once, such as --model my_model" in refused.stderr
    refused = run("predict", store, "a", "--model", "b", "--output", tmp_path / "out.zarr")
    assert "The model is named twice, as a and as --model b" in refused.stderr


def test_bins_of_visium_hd(run: Run, tmp_path: Path) -> None:
    """Genes alone, symbols that repeat are told, and a side that is not there is refused with those that are."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (200, 200, 3)).astype(np.uint8)
    counts = rng.poisson(3, (64, 5))
    kinds = ["Gene Expression"] * 4 + ["Antibody Capture"]
    image = write_hd(tmp_path / "S1/outs", pixels, counts, symbols=["A", "B", "A", "C", "CD3"], kinds=kinds)
    args = ["read", "visium-hd", tmp_path / "S1/outs", "--image", image, "--output", tmp_path / "hd.zarr", "--json"]
    refused = run(*args, "--bin", "2")
    assert refused.exit_code == 2
    assert "has no bins of 2 um; those of these sides are there: 8; pass one with --bin" in refused.stderr
    (tmp_path / "S1/outs/segmented_outputs").mkdir()
    write_cells(tmp_path / "S1/outs/segmented_outputs", counts, symbols=["A", "B", "A", "C", "CD3"], kinds=kinds)
    assert _done(run(*args))["tables"] == {"square_008um": [64, 4]}
    table = spatialdata.read_zarr(tmp_path / "hd.zarr")["square_008um"]
    assert table.var_names.tolist() == ["A", "B", "A-1", "C"]
    np.testing.assert_array_equal(table.X.toarray(), counts[:, :4])
    assert table.obs["region"].iloc[0] == "S1_square_008um"


def test_damaged_folder_of_visium_hd_is_named(run: Run, tmp_path: Path) -> None:
    image = write_hd(tmp_path / "S1", np.zeros((200, 200, 3), np.uint8), np.ones((64, 1)), symbols=["A"])
    (tmp_path / "S1/feature_slice.h5").write_bytes(b"")
    refused = run("read", "visium-hd", tmp_path / "S1", "--image", image, "--output", tmp_path / "hd.zarr")
    assert refused.exit_code == 2
    assert f"'{tmp_path / 'S1'}' cannot be read by spatialdata_io.visium_hd" in refused.stderr
