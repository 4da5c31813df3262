"""Metrics on the lattice against scikit-image and squidpy, and what they say of planted predictions."""

import numpy as np
import pytest
from anndata import AnnData
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity
from squidpy.gr import spatial_autocorr

from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.spatial_metrics import moran_ratio, morans_i, ssim

FloatArray = NDArray[np.float64]
SIDE = 16


def lattice_of(*, hexagonal: bool = False, side: int = SIDE) -> Lattice:
    return Lattice(np.indices((side, side)).reshape(2, -1).T, hexagonal)


@pytest.fixture
def pair() -> tuple[FloatArray, FloatArray]:
    """Three genes, smooth plus noise, on a full square grid; (256, 3) each."""
    rng = np.random.default_rng(0)
    fields = np.stack([gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.5) for _ in range(3)], axis=-1)
    measured = (fields / fields.std()).reshape(-1, 3) * [1.0, 3.0, 0.1] + [0.0, 5.0, 1.0]
    return measured + 0.3 * measured.std(axis=0) * rng.normal(size=measured.shape), measured


def test_ssim_equals_scikit_image_on_a_full_grid(pair: tuple[FloatArray, FloatArray]) -> None:
    expected = [
        structural_similarity(m.reshape(SIDE, SIDE), p.reshape(SIDE, SIDE), data_range=np.ptp(m))  # type: ignore[no-untyped-call]
        for m, p in zip(pair[0].T, pair[1].T, strict=True)
    ]
    np.testing.assert_allclose(ssim(*pair, lattice_of()), expected, rtol=1e-12)


def test_ssim_does_not_count_holes_nor_what_lies_in_them(pair: tuple[FloatArray, FloatArray]) -> None:
    """A hole far from every counted window changes nothing."""
    kept = np.ones(SIDE**2, dtype=bool)
    kept[[0, 5 * SIDE + 5]] = False
    images = [side[:, 0].reshape(SIDE, SIDE).copy() for side in pair]
    for image in images:
        image[0, 0], image[5, 5] = image[0, 1], image[4, 5]
    _, similarity = structural_similarity(*images, data_range=np.ptp(pair[0][kept, 0]), full=True)  # type: ignore[no-untyped-call]
    inner = similarity[3:-3, 3:-3]
    expected = (inner.sum() - inner[2, 2]) / (inner.size - 1)
    value = ssim(pair[0][kept], pair[1][kept], lattice_of().take(kept))[0]
    assert value == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("hexagonal", [False, True], ids=["square", "hexagonal"])
def test_ssim_falls_with_noise_and_is_one_for_the_truth(
    pair: tuple[FloatArray, FloatArray], *, hexagonal: bool
) -> None:
    measured, lattice = pair[0], lattice_of(hexagonal=hexagonal)
    noise = np.random.default_rng(1).normal(size=measured.shape) * measured.std(axis=0)
    values = np.stack([ssim(measured, measured + level * noise, lattice) for level in (0.0, 0.5, 2.0)])
    np.testing.assert_allclose(values[0], 1)
    assert (np.diff(values, axis=0) < 0).all()


def test_a_section_smaller_than_the_window_has_no_ssim() -> None:
    values = np.random.default_rng(0).normal(size=(36, 2))
    assert np.isnan(ssim(values, values, lattice_of(side=6))).all()


def test_morans_i_is_squidpys(pair: tuple[FloatArray, FloatArray]) -> None:
    graph = lattice_of().graph()
    table = AnnData(pair[0], obsp={"spatial_connectivities": graph})
    expected = spatial_autocorr(table, mode="moran", corr_method=None, copy=True)["I"].reindex(table.var_names)
    np.testing.assert_allclose(morans_i(pair[0], graph), expected, rtol=1e-6)


def test_moran_ratio_tells_a_smoothed_prediction(pair: tuple[FloatArray, FloatArray]) -> None:
    measured, smooth = pair
    assert (moran_ratio(measured, smooth, lattice_of()) > 1.02).all()
    np.testing.assert_allclose(moran_ratio(measured, 2 * measured + 1, lattice_of()), 1)


def test_moran_ratio_needs_autocorrelation_to_keep(pair: tuple[FloatArray, FloatArray]) -> None:
    chequered = np.indices((SIDE, SIDE)).sum(axis=0).reshape(-1, 1) % 2.0
    assert np.isnan(moran_ratio(chequered, pair[1][:, :1], lattice_of())).all()


def test_spots_without_neighbours_have_no_morans_i() -> None:
    apart = Lattice(np.column_stack([np.zeros(8, dtype=int), np.arange(0, 16, 2)]), hexagonal=False)
    values = np.random.default_rng(0).normal(size=(8, 1))
    assert np.isnan(morans_i(values, apart.graph())).all()
