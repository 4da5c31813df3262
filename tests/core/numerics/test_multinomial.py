"""The list-wise loss against scipy, what leaves it as it is, and counts that say nothing."""

import numpy as np
import pytest
import torch
from scipy import stats

from agl_sc.core.numerics.losses import poisson_loss
from agl_sc.core.numerics.multinomial import multinomial_loss

N_SPOTS, N_GENES = 12, 3
GENERATOR = torch.Generator().manual_seed(0)
RATES = torch.randn(N_SPOTS, N_GENES, generator=GENERATOR, dtype=torch.float64)
COUNTS = torch.poisson(3 * torch.rand(N_SPOTS, N_GENES, generator=GENERATOR, dtype=torch.float64), generator=GENERATOR)
LOG_LIBRARY = torch.randn(N_SPOTS, generator=GENERATOR, dtype=torch.float64) + 5
SECTIONS = torch.arange(N_SPOTS) % 2


def test_it_is_the_likelihood_of_a_multinomial() -> None:
    found = multinomial_loss(RATES, COUNTS, log_library=LOG_LIBRARY, sections=SECTIONS)
    for gene in range(N_GENES):
        likelihood, arrangements = 0.0, 0.0
        for code in range(2):
            counts = COUNTS[code == SECTIONS, gene].numpy()
            shares = torch.softmax((RATES[:, gene] + LOG_LIBRARY)[code == SECTIONS], dim=0).numpy()
            likelihood += stats.multinomial.logpmf(counts, counts.sum(), shares)
            arrangements += stats.multinomial.logpmf(counts, counts.sum(), np.ones(len(counts)) / len(counts))
            arrangements += counts.sum() * np.log(len(counts))  # of counts among spots, which no rate changes
        expected = (arrangements - likelihood) / float(COUNTS[:, gene].sum())
        assert float(found[gene]) == pytest.approx(expected)


def test_the_gradient_is_that_of_poisson_at_the_level_that_fits_the_sum() -> None:
    rates = RATES.clone().requires_grad_()
    level = COUNTS.sum(dim=0).log() - (RATES + LOG_LIBRARY[:, None]).logsumexp(dim=0)
    (poisson,) = torch.autograd.grad(poisson_loss(rates + level, COUNTS, log_library=LOG_LIBRARY).sum(), rates)
    (found,) = torch.autograd.grad(multinomial_loss(rates, COUNTS, log_library=LOG_LIBRARY).sum(), rates)
    torch.testing.assert_close(found, poisson * N_SPOTS / COUNTS.sum(dim=0))


def test_levels_of_sections_do_not_matter() -> None:
    shift = torch.tensor([300.0, -300.0], dtype=torch.float64)[SECTIONS][:, None]
    found = multinomial_loss(RATES + shift, COUNTS, log_library=LOG_LIBRARY, sections=SECTIONS)
    torch.testing.assert_close(found, multinomial_loss(RATES, COUNTS, log_library=LOG_LIBRARY, sections=SECTIONS))
    whole = multinomial_loss(RATES, COUNTS, log_library=LOG_LIBRARY)
    assert not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize("sections", [None, SECTIONS], ids=["one section", "two"])
def test_derivatives(sections: torch.Tensor | None) -> None:
    rates = RATES[:6].clone().requires_grad_()

    def loss(at: torch.Tensor) -> torch.Tensor:
        own = None if sections is None else sections[:6]
        return multinomial_loss(at, COUNTS[:6], log_library=LOG_LIBRARY[:6], sections=own)

    assert torch.autograd.gradcheck(loss, (rates,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, (rates,))


def test_a_gene_without_counts_in_a_section_or_anywhere_adds_nothing() -> None:
    counts = COUNTS.clone()
    counts[SECTIONS == 1, 0] = 0
    counts[:, 1] = 0
    rates = RATES.clone().requires_grad_()
    found = multinomial_loss(rates, counts, log_library=LOG_LIBRARY, sections=SECTIONS)
    own = SECTIONS == 0
    alone = multinomial_loss(RATES[own], counts[own], log_library=LOG_LIBRARY[own])
    assert float(found[0].detach()) == pytest.approx(float(alone[0]))
    assert found[1] == 0
    (gradient,) = torch.autograd.grad(found.sum(), rates)
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 1] == 0).all()
    assert (gradient[SECTIONS == 1, 0] == 0).all()


def test_equal_counts_ask_for_equal_shares() -> None:
    """Ties are no ranking: the loss is least where all expected counts are the same."""
    counts = torch.full((N_SPOTS, 1), 2.0, dtype=torch.float64)
    even = multinomial_loss(-LOG_LIBRARY[:, None], counts, log_library=LOG_LIBRARY)
    assert float(even) == pytest.approx(np.log(N_SPOTS))
    assert float(multinomial_loss(RATES[:, :1], counts, log_library=LOG_LIBRARY)) > float(even)
