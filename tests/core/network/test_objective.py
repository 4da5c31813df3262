"""Losses of a batch in pieces are those of the batch, and what a batch leaves out adds nothing."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats

from agl_sc.core.config import LossName
from agl_sc.core.network.objective import Batch, Objective
from agl_sc.core.numerics.losses import pearson_loss

N_SPOTS, N_GENES, N_SECTIONS, RANK = 30, 7, 4, 3
SECTIONS = torch.arange(N_SPOTS) % 3 * 2 - torch.arange(N_SPOTS) % 3 // 2  # 0, 2 and 3; nothing of 1
LOSSES = get_args(LossName)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(name: LossName, panels: torch.Tensor | None = None) -> Objective:
    return Objective(name, panels, draw(N_SECTIONS, N_GENES, seed=1) - 3, draw(N_GENES, seed=2))


def batch(name: LossName, rows: torch.Tensor, sections: torch.Tensor = SECTIONS, *, n_genes: int = N_GENES) -> Batch:
    counts = torch.poisson(2 * draw(N_SPOTS, N_GENES, seed=3).exp(), generator=torch.Generator().manual_seed(4))
    measured = draw(N_SPOTS, N_GENES, seed=3) if name in ("pearson", "mse") else counts
    library = draw(N_SPOTS, seed=5) + 4
    return Batch(
        draw(N_SPOTS, RANK)[rows], measured[rows, :n_genes], sections[rows], torch.unique(sections), library[rows]
    )


HEAD = draw(N_GENES, RANK, seed=6), draw(N_GENES, seed=7)
EVERYTHING = torch.arange(N_SPOTS)
PIECES = {
    "even": (10, 20),
    "uneven": (1, 17, 19),
    "one without spots": (12, 12),
    "one without a section": (1, 2),
}
PANELS = torch.ones(N_SECTIONS, N_GENES, dtype=torch.bool)
PANELS[2, 4], PANELS[0, 1], PANELS[:, 6] = False, False, False


@pytest.mark.parametrize("cuts", PIECES.values(), ids=PIECES)
@pytest.mark.parametrize("panels", [None, PANELS], ids=["all genes", "panels"])
@pytest.mark.parametrize("n_sections", [1, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_pieces_together_have_the_losses_of_the_batch(
    *, name: LossName, n_sections: int, panels: torch.Tensor | None, cuts: tuple[int, ...]
) -> None:
    of = objective(name, None if name == "pearson" else panels)
    sections = SECTIONS if n_sections == 3 else torch.full_like(SECTIONS, 2)
    hidden = draw(N_SPOTS, RANK, seed=8).requires_grad_()
    whole = of.of_batch(hidden, *HEAD, batch=batch(name, EVERYTHING, sections))
    parts = [
        of.parts(hidden[rows], *HEAD, batch=batch(name, rows, sections))
        for rows in torch.tensor_split(EVERYTHING, cuts)
    ]
    together = of.losses(torch.stack(parts))
    assert whole.shape == (N_GENES,)
    torch.testing.assert_close(together, whole, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(v.square().sum(), hidden)[0] for v in (together, whole)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert gradients[0].abs().sum() > 0


def test_pearson_is_taken_within_sections_and_averaged() -> None:
    of, everything = objective("pearson"), batch("pearson", EVERYTHING)
    predicted = everything.inputs @ HEAD[0].T + HEAD[1]
    found = of.of_batch(everything.inputs, *HEAD, batch=everything)
    for gene in range(N_GENES):
        within = [
            stats.pearsonr(predicted[rows, gene], everything.measured[rows, gene]).statistic
            for rows in (code == SECTIONS for code in (0, 2, 3))
        ]
        assert float(found[gene]) == pytest.approx(1 - np.mean(within))
    assert not torch.allclose(found, pearson_loss(predicted, everything.measured), atol=1e-3)


@pytest.mark.parametrize("name", ["mse", "poisson", "negative_binomial", "multinomial"])
def test_what_a_section_has_not_measured_does_not_count(name: LossName) -> None:
    everything = batch(name, EVERYTHING)
    hidden = draw(N_SPOTS, RANK, seed=8)
    found = objective(name, PANELS).of_batch(hidden, *HEAD, batch=everything)
    rows = torch.arange(N_SPOTS)[SECTIONS != 2]
    without = objective(name).of_batch(hidden[rows], *HEAD, batch=batch(name, rows))
    full = objective(name).of_batch(hidden, *HEAD, batch=everything)
    assert found[4] == pytest.approx(float(without[4]))
    assert found[4] != pytest.approx(float(full[4]), rel=1e-3)
    torch.testing.assert_close(found[[0, 2, 3, 5]], full[[0, 2, 3, 5]])
    assert found[6] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_the_leading_genes_are_those_among_all(name: LossName) -> None:
    of = objective(name, None if name == "pearson" else PANELS)
    hidden = draw(N_SPOTS, RANK, seed=8)
    few = of.of_batch(hidden, HEAD[0][:5], HEAD[1][:5], batch=batch(name, EVERYTHING, n_genes=5))
    torch.testing.assert_close(few, of.of_batch(hidden, *HEAD, batch=batch(name, EVERYTHING))[:5])


def test_likelihood_takes_the_share_of_the_section_and_the_library() -> None:
    everything, hidden = batch("poisson", EVERYTHING), draw(N_SPOTS, RANK, seed=8)
    of = objective("poisson")
    log_mean = hidden @ HEAD[0].T + HEAD[1] + of.log_share[SECTIONS] + everything.log_library[:, None]
    expected = -stats.poisson.logpmf(everything.measured, log_mean.exp()).mean(axis=0)
    np.testing.assert_allclose(of.of_batch(hidden, *HEAD, batch=everything), expected, rtol=1e-9)


@pytest.mark.parametrize("n_pieces", [1, 3])
def test_a_batch_in_which_all_genes_are_constant_has_loss_one_and_no_gradient(n_pieces: int) -> None:
    everything = batch("pearson", EVERYTHING)
    hidden = draw(N_SPOTS, RANK, seed=8).requires_grad_()
    of = objective("pearson")
    constant = everything.measured * 0 + 2
    parts = [
        of.parts(
            hidden[rows],
            *HEAD,
            batch=Batch(hidden, constant[rows], SECTIONS[rows], everything.present, everything.log_library),
        )
        for rows in torch.tensor_split(EVERYTHING, n_pieces)
    ]
    losses = of.losses(torch.stack(parts))
    assert (losses == 1).all()
    (gradient,) = torch.autograd.grad(losses.sum(), hidden)
    assert (gradient == 0).all()
