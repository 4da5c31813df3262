"""Gradient cosine similarity against gradients taken gene by gene."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch

from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.weighting.cosine import GradientCosine

Make = Callable[..., Bilevel]
INDEX = torch.arange(7, 40)


def gene_by_gene(training: Bilevel) -> torch.Tensor:
    """Of gradients with respect to the shared representation, one backward pass per gene."""
    problem, network = training.problem, training.problem.network
    batch = training.batch(INDEX, problem.n_genes)
    with torch.no_grad():
        hidden = network.trunk(batch.inputs)
    hidden.requires_grad_()
    losses = problem.objective.of_batch(hidden, network.head.weight, network.head.bias, batch=batch)
    gradients = torch.stack([torch.autograd.grad(loss, hidden, retain_graph=True)[0].reshape(-1) for loss in losses])
    towards = gradients[: problem.n_targets].sum(dim=0)
    return torch.stack([torch.nn.functional.cosine_similarity(g, towards, dim=0) for g in gradients])


@pytest.mark.parametrize("loss", ["pearson", "mse", "poisson", "negative_binomial", "multinomial"])
def test_cosines_equal_those_of_gradients_gene_by_gene(
    make_bilevel: Make, loss: Literal["pearson", "mse", "poisson", "negative_binomial", "multinomial"]
) -> None:
    training = make_bilevel(loss=loss)
    found = GradientCosine(3, 15).cosines(training, INDEX)
    torch.testing.assert_close(found, gene_by_gene(training), rtol=1e-9, atol=1e-12)
    assert (found < -0.1).any()
    assert (found > 0.1).any()


def test_disagreeing_genes_weigh_nothing_and_targets_one(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = GradientCosine(3, 15)
    expected = gene_by_gene(training).clamp(min=0)
    expected[:3] = 1
    weighting.before_update(training, INDEX)
    torch.testing.assert_close(weighting.current, expected)
    assert (weighting.current[3:] == 0).any()
    losses = torch.linspace(0.5, 1.5, 15, dtype=torch.float64)
    torch.testing.assert_close(weighting(losses), losses @ expected / expected.sum())
    assert weighting.selected().all()


def test_weights_are_means_over_the_updates_of_an_epoch(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = GradientCosine(3, 15)
    assert (weighting.weights() == 1).all()
    weighting.before_update(training, INDEX[20:])
    weighting.before_epoch(training, 1)
    seen = []
    for index in (INDEX[:15], INDEX[15:]):
        weighting.before_update(training, index)
        seen.append(weighting.current.numpy().copy())
    np.testing.assert_allclose(weighting.weights(), (seen[0] + seen[1]) / 2, rtol=1e-6)
    assert not np.allclose(seen[0], seen[1])


def test_a_batch_in_which_nothing_varies_has_finite_weights(make_bilevel: Make) -> None:
    training = make_bilevel()
    vars(training.problem.expression)["values"][:] = 1.0
    found = GradientCosine(3, 15).cosines(training, INDEX)
    assert (found == 0).all()
