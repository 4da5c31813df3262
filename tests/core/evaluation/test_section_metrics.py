"""One table of all metrics."""

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from agl_sc.core.evaluation import metrics
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.noise_ceiling import RawCounts
from agl_sc.core.evaluation.section_metrics import BEYOND_DEPTH, CEILING, NAMES, SPATIAL, section_metrics

FloatArray = NDArray[np.float64]
SIDE, N_GENES = 12, 5


@pytest.fixture
def section() -> tuple[FloatArray, FloatArray, Lattice, RawCounts]:
    """Counts of smooth genes on a full grid; the prediction is their rate with noise."""
    rng = np.random.default_rng(0)
    fields = np.stack([gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1).ravel() for _ in range(N_GENES)], axis=1)
    rate = np.exp(1.5 + 2 * fields / fields.std())
    values = scipy.sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    counts = RawCounts(values, np.asarray(values.sum(axis=1), dtype=float).ravel() + 50, scipy.sparse.csr_matrix.log1p)
    lattice = Lattice(np.indices((SIDE, SIDE)).reshape(2, -1).T, hexagonal=False)
    return values.log1p().toarray(), np.log1p(rate) + 0.3 * rng.normal(size=rate.shape), lattice, counts


def test_every_metric_has_its_column(section: tuple[FloatArray, FloatArray, Lattice, RawCounts]) -> None:
    measured, predicted, lattice, counts = section
    table = section_metrics(measured, predicted, lattice=lattice, counts=counts)
    assert tuple(table.columns) == NAMES
    assert np.isfinite(table.drop(columns="pearson_between")).all(axis=None)  # which is of several sections
    for name, metric in metrics.METRICS.items():
        np.testing.assert_array_equal(table[name], metric(measured, predicted))
    np.testing.assert_allclose(table["pearson_of_ceiling"], table["pearson"] / table["noise_ceiling"])
    assert (table["fdr"] >= table["p_value"]).all()


def test_what_is_not_known_is_nan(section: tuple[FloatArray, FloatArray, Lattice, RawCounts]) -> None:
    table = section_metrics(*section[:2])
    assert table[[BEYOND_DEPTH, *SPATIAL, *CEILING]].isna().all(axis=None)
    assert table[list(metrics.METRICS)].notna().all(axis=None)


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_alone_is_what_it_is_among_the_others(
    section: tuple[FloatArray, FloatArray, Lattice, RawCounts], *, name: str
) -> None:
    measured, predicted, lattice, counts = section
    together = section_metrics(measured, predicted, lattice=lattice, counts=counts)
    alone = section_metrics(measured, predicted, names=[name], lattice=lattice, counts=counts)
    assert list(alone.columns) == [name]
    np.testing.assert_array_equal(alone[name], together[name])


@pytest.mark.parametrize("side", [0, 1], ids=["measured", "predicted"])
def test_a_constant_gene_is_undefined_and_harms_no_other(
    section: tuple[FloatArray, FloatArray, Lattice, RawCounts], *, side: int
) -> None:
    measured, predicted, lattice, counts = section
    (measured, predicted)[side][:, 1] = 0.0
    table = section_metrics(measured, predicted, lattice=lattice, counts=counts)
    defined = {"mse", "noise_ceiling"} | ({"r2", "variance_ratio", "ssim", "moran_ratio"} if side else set())
    assert {name for name in table if np.isfinite(table[name].to_numpy()[1])} == defined - {"moran_ratio"}
    assert table.drop(index=1, columns="pearson_between").notna().all(axis=None)


def test_spots_without_a_position_are_left_out_of_spatial_metrics_alone(
    section: tuple[FloatArray, FloatArray, Lattice, RawCounts],
) -> None:
    measured, predicted, lattice, _ = section
    cells = lattice.cells.copy()
    cells[[3, 40]] = -1
    kept = np.delete(np.arange(SIDE**2), [3, 40])
    names = ["pearson", "ssim", "p_value"]
    table = section_metrics(measured, predicted, names=names, lattice=Lattice(cells, hexagonal=False))
    without = section_metrics(measured[kept], predicted[kept], names=names, lattice=lattice.take(kept))
    np.testing.assert_array_equal(table[["ssim", "p_value"]], without[["ssim", "p_value"]])
    np.testing.assert_array_equal(table["pearson"], metrics.pearson(measured, predicted))


def test_an_unknown_metric_is_refused(section: tuple[FloatArray, FloatArray, Lattice, RawCounts]) -> None:
    with pytest.raises(
        ValueError, match="metrics='rmse' is not among the metrics; pass a list of some of pearson, spear"
    ):
        section_metrics(*section[:2], names=["pearson", "rmse"])
