"""Planted expression: each role follows its own fields, and library sizes tell nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from agl_sc.datasets._toy_counts import ROLES, GeneLaw, draw_counts, draw_law

FloatArray = NDArray[np.float64]
N_SPOTS = 600


@pytest.fixture(scope="module")
def law() -> GeneLaw:
    return draw_law(np.random.default_rng(0), dict.fromkeys(ROLES, 60), 5)


@pytest.fixture(scope="module")
def fields() -> FloatArray:
    """Five visible fields and an invisible one."""
    return np.random.default_rng(1).standard_normal((N_SPOTS, 6))


@pytest.fixture(scope="module")
def counts(law: GeneLaw, fields: FloatArray) -> FloatArray:
    return drawn(law, fields)


def drawn(law: GeneLaw, fields: FloatArray, *, seed: int = 2, depth_offset: float = 0.0) -> FloatArray:
    rng = np.random.default_rng(seed)
    matrix = draw_counts(rng, law, visible=fields[:, :5], invisible=fields[:, 5], depth_offset=depth_offset)
    return np.asarray(matrix.toarray(), dtype=np.float64)


def normalised(counts: FloatArray) -> FloatArray:
    return np.asarray(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))


def explained(expression: FloatArray, predictors: FloatArray) -> FloatArray:
    """R squared of every gene on the predictors by least squares."""
    design = np.column_stack([predictors, np.ones(len(predictors))])
    residual = expression - design @ np.linalg.lstsq(design, expression, rcond=None)[0]
    return np.asarray(1 - residual.var(axis=0) / expression.var(axis=0))


def curved(fields: FloatArray, own: list[int]) -> FloatArray:
    """Fields, their products, and waves across two of them."""
    terms = [fields[:, own]] + [fields[:, [i]] * fields[:, [j]] for i in own for j in own if i <= j]
    for angle in np.arange(0, np.pi, np.pi / 6) if own == [3, 4] else []:
        across = fields[:, 3] * np.cos(angle) + fields[:, 4] * np.sin(angle)
        terms += [np.column_stack([np.sin(w * across), np.cos(w * across)]) for w in (0.8, 1.6)]
    return np.concatenate(terms, axis=1)


def of_role(law: GeneLaw, name: str) -> NDArray[np.bool_]:
    return np.asarray(law.role == ROLES.index(name))


@pytest.mark.parametrize(
    ("role", "own"),
    [("target", [0, 1, 2]), ("informative", [0, 1, 2]), ("distractor", [3, 4]), ("invisible", [5]), ("noise", [])],
)
def test_each_role_follows_its_fields_alone(
    law: GeneLaw, fields: FloatArray, counts: FloatArray, *, role: str, own: list[int]
) -> None:
    genes = normalised(counts)[:, of_role(law, role)]
    others = [field for field in range(6) if field not in own]
    assert explained(genes, fields[:, others]).mean() < 0.03
    if own:
        shuffled = np.random.default_rng(0).permutation(curved(fields, own))
        chance = explained(genes, shuffled).mean()
        assert np.quantile(explained(genes, curved(fields, own)), 0.1) > 2 * chance + 0.03


def test_informative_genes_are_less_noisy_than_targets(law: GeneLaw, fields: FloatArray, counts: FloatArray) -> None:
    clean, noisy = (
        np.median(explained(normalised(counts)[:, of_role(law, role)], curved(fields, [0, 1, 2])))
        for role in ("informative", "target")
    )
    assert clean > noisy + 0.1


def test_targets_vary_most(law: GeneLaw, counts: FloatArray) -> None:
    chosen = np.argsort(-normalised(counts).var(axis=0))[:60]
    assert of_role(law, "target")[chosen].mean() > 0.85


def test_library_sizes_tell_nothing_about_the_fields(fields: FloatArray, counts: FloatArray) -> None:
    depth = np.log(counts.sum(axis=1, keepdims=True))
    squares = np.column_stack([fields, fields**2])
    assert explained(depth, squares)[0] < 0.06


def test_expected_totals_are_those_of_the_abundances(law: GeneLaw, counts: FloatArray) -> None:
    depth = np.exp(0.35**2 / 2)
    for role in ROLES:
        mine = of_role(law, role)
        assert counts[:, mine].sum(axis=1).mean() / law.abundance[mine].sum() == pytest.approx(depth, rel=0.1)


def test_counts_are_overdispersed(law: GeneLaw, counts: FloatArray) -> None:
    noise = counts[:, of_role(law, "noise")]
    assert (noise.var(axis=0) > 1.5 * noise.mean(axis=0)).mean() > 0.9


def test_depth_offset_scales_the_library(law: GeneLaw, fields: FloatArray, counts: FloatArray) -> None:
    shallow = drawn(law, fields, depth_offset=-1.0)
    assert np.median(np.log(shallow.sum(axis=1) / counts.sum(axis=1))) == pytest.approx(-1.0, abs=0.02)


def test_counts_are_whole_and_deterministic(law: GeneLaw, fields: FloatArray, counts: FloatArray) -> None:
    assert (counts == np.round(counts)).all()
    assert (counts >= 0).all()
    assert counts.tobytes() == drawn(law, fields).tobytes()
    assert counts.tobytes() != drawn(law, fields, seed=3).tobytes()


def test_signal_has_the_planted_size(law: GeneLaw) -> None:
    length = np.sqrt(np.square(law.loadings).sum(axis=0))
    for role, signal in (("target", 0.65), ("informative", 0.8), ("noise", 0.0)):
        np.testing.assert_allclose(length[of_role(law, role)], signal, atol=1e-12)


def test_each_third_of_the_informative_genes_tells_of_one_field(law: GeneLaw) -> None:
    linear = np.abs(law.loadings[:3, of_role(law, "informative")])
    np.testing.assert_array_equal(linear.reshape(3, 3, 20).mean(axis=2).argmax(axis=0), [2, 1, 0])
    assert (linear.max(axis=0) > 0.1).all()


def test_genes_are_drawn_in_blocks_up_to_a_transcriptome() -> None:
    law = draw_law(np.random.default_rng(0), dict.fromkeys(ROLES, 3600), 5)
    matrix = draw_counts(np.random.default_rng(1), law, visible=np.zeros((20, 5)), invisible=np.zeros(20))
    assert matrix.shape == (20, 18000)
    assert matrix.format == "csr"
    assert (np.asarray(matrix.mean(axis=0)) > 0).mean() > 0.99


def test_roles_may_be_empty() -> None:
    law = draw_law(np.random.default_rng(0), {**dict.fromkeys(ROLES, 0), "target": 2}, 5)
    matrix = draw_counts(np.random.default_rng(1), law, visible=np.zeros((7, 5)), invisible=np.zeros(7))
    assert matrix.shape == (7, 2)
    assert matrix.sum() > 0
