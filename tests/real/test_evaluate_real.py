"""Metrics of a prediction on the real sections."""

import time
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from spatialdata import SpatialData

from agl_sc.core.spots.genes import normalize_counts
from agl_sc.io._st import read_st_folder
from agl_sc.pp import split, target_genes
from agl_sc.tl import evaluate


@pytest.fixture(scope="module")
def sdata(data_dir: Path) -> SpatialData:
    """C6 and B4 are test; the prediction of a target is the measured gene, of the first 25 of another section's spots."""
    sdata = read_st_folder(data_dir / "her2st", sections=["C2", "C3", "C6", "B4"])
    split(sdata, test=["C6", "B4"], validation="C3")
    target_genes(sdata, genes=50)
    table = sdata["table"]
    targets = np.flatnonzero(table.var["agl_role"] == "target")
    measured = normalize_counts(table.X, "log1p_cp10k")[:, targets].toarray()
    rng = np.random.default_rng(0)
    unrelated = gaussian_filter(rng.normal(size=(60, 60, 25)), (2, 2, 0))
    columns, rows = (sdata["table"].obsm["spatial"] / 280).astype(int).T
    predicted = measured + rng.normal(size=measured.shape)
    predicted[:, :25] = unrelated[rows % 60, columns % 60]
    table.layers["agl"] = np.full(table.shape, np.nan, dtype=np.float32)
    table.layers["agl"][:, targets] = predicted
    return sdata


def test_every_metric_on_two_sections_in_three_seconds(sdata: SpatialData) -> None:
    start = time.process_time()
    result = evaluate(sdata)
    assert time.process_time() - start < 3
    assert result.groupby("section").size().to_dict() == {"B4": 50, "C6": 50}
    known = result[result["section"] == "C6"].drop(columns=["section", "gene", "n_spots"])
    assert known.drop(columns=["moran_ratio", "pearson_between"]).notna().all(axis=None)


def test_the_noise_ceiling_is_as_high_as_the_depth_of_the_sections_lets_it(sdata: SpatialData) -> None:
    ceiling = evaluate(sdata, metrics=["noise_ceiling"]).groupby("section")["noise_ceiling"].mean()
    assert ceiling["C6"] == pytest.approx(0.82, abs=0.03)
    assert ceiling["B4"] == pytest.approx(0.65, abs=0.05)


def test_p_values_tell_related_genes_from_smooth_fields(sdata: SpatialData) -> None:
    p_values = evaluate(sdata, metrics=["p_value"]).pivot(index="gene", columns="section", values="p_value")
    targets = sdata["table"].var_names[sdata["table"].var["agl_role"] == "target"]
    assert (p_values.loc[targets[25:]] <= 0.01).mean(axis=None) > 0.9
    assert (p_values.loc[targets[:25]] <= 0.05).mean(axis=None) < 0.2
