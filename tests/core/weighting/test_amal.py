"""AMAL's hyper-gradient against an explicit unrolled step, and what it learns."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from agl_sc.core.network.bilevel import Bilevel
from agl_sc.core.numerics.losses import pearson_loss
from agl_sc.core.weighting import Amal

Make = Callable[..., Bilevel]
INDEX = torch.arange(6, 40)


def with_logits(training: Bilevel) -> Amal:
    weighting = Amal(training.problem.n_targets, training.problem.n_genes)
    generator = torch.Generator().manual_seed(4)
    weighting.logits.copy_(0.01 * torch.randn(weighting.logits.shape, generator=generator))
    return weighting


def one_step_ahead(training: Bilevel, logits: torch.Tensor) -> torch.Tensor:
    """Validation loss after one step of plain gradient descent at 0.03, the paper's."""
    problem = training.problem
    at = {k: v.detach().clone().requires_grad_() for k, v in problem.network.named_parameters()}
    batch = training.batch(INDEX, problem.n_genes)
    losses = training.losses(at, batch)
    weights = torch.cat([torch.ones(problem.n_targets, dtype=torch.float64), torch.sigmoid(logits / 0.01)])
    step = torch.autograd.grad(losses @ weights / weights.sum(), list(at.values()), create_graph=True)
    ahead = {k: v - 0.03 * s for (k, v), s in zip(at.items(), step, strict=True)}
    return training.validation_loss(ahead)


def test_hypergradient_is_that_of_an_unrolled_step(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = with_logits(training)
    logits = weighting.logits.double().requires_grad_()
    (expected,) = torch.autograd.grad(one_step_ahead(training, logits), logits)
    found = weighting.hypergradient(training, INDEX)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))
    assert expected.abs().min() > 0


def test_hypergradient_is_that_of_central_differences(make_bilevel: Make) -> None:
    training = make_bilevel()
    weighting = with_logits(training)
    found, eps = weighting.hypergradient(training, INDEX), 1e-4
    for j in (0, 5, 11):
        shift = torch.zeros(12, dtype=torch.float64)
        shift[j] = eps
        ends = [one_step_ahead(training, weighting.logits.double() + sign * shift) for sign in (-1, 1)]
        assert float(found[j]) == pytest.approx(float((ends[1] - ends[0]).detach()) / (2 * eps), rel=1e-3)


def test_searches_every_twentieth_epoch_and_only_with_validation(make_bilevel: Make) -> None:
    training = make_bilevel(dtype=torch.float32)
    weighting = Amal(training.problem.n_targets, training.problem.n_genes)
    moved = []
    for epoch in range(42):
        before = weighting.logits.clone()
        weighting.before_epoch(training, epoch)
        if not torch.equal(before, weighting.logits):
            moved.append(epoch)
    assert moved == [0, 20, 40]
    object.__setattr__(training.problem, "validation", None)
    before = weighting.logits.clone()
    weighting.before_epoch(training, 60)
    assert torch.equal(before, weighting.logits)


def test_first_step_of_a_logit_is_its_sign_times_the_learning_rate(make_bilevel: Make) -> None:
    training = make_bilevel(dtype=torch.float32)
    weighting = Amal(training.problem.n_targets, training.problem.n_genes)
    training.batches = [INDEX]
    found = weighting.hypergradient(training, INDEX)
    weighting.before_epoch(training, 0)
    torch.testing.assert_close(weighting.logits, -0.003 * found.sign().float(), rtol=1e-4, atol=1e-7)


def test_harmful_gene_falls_and_helpful_one_rises(make_bilevel: Make) -> None:
    """One gene is the sum of the targets without noise, the other its opposite, both on the sum of the targets' heads.

    The heads are large and the trunk small, so that the trunk is what a step changes: a step on its own head helps a target
    more than any other gene can.
    """
    training = make_bilevel(dtype=torch.float32, n_auxiliary=2)
    problem = training.problem
    features, targets = training.batch(torch.arange(40), 3).inputs, vars(problem.expression)["values"][:, :3]
    signal = (features @ torch.linalg.lstsq(features, targets).solution).sum(dim=1)
    vars(problem.expression)["values"][:, 3:] = torch.stack([signal, -signal], dim=1)
    with torch.no_grad():
        head = problem.network.head.weight
        head.mul_(5)
        head[3:] = head[:3].sum(dim=0)
        torch.nn.init.normal_(problem.network.linear.weight, std=0.2, generator=torch.Generator().manual_seed(3))
        torch.nn.init.zeros_(problem.network.outer.weight)
    weighting = Amal(problem.n_targets, problem.n_genes)
    for _ in range(15):
        weighting.before_epoch(training, 0)
    weights = weighting.weights()
    assert (weights[:3] == 1).all()
    assert weights[4] < 0.1 < 0.9 < weights[3]
    assert weighting.selected().tolist() == [True] * 4 + [False]


def test_training_loss_is_the_weighted_mean_and_looking_changes_nothing(make_bilevel: Make) -> None:
    training = make_bilevel(dtype=torch.float32)
    weighting = with_logits(training)
    before = training.problem.state()
    weighting.before_epoch(training, 0)
    after = training.problem.state()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in training.problem.network.parameters())
    batch = training.batch(INDEX, training.problem.n_genes)
    predicted = training.problem.network(batch.inputs)
    losses = pearson_loss(predicted, batch.measured, sections=batch.sections)
    expected = np.average(losses.detach().numpy(), weights=weighting.weights())
    assert float(weighting(losses.detach())) == pytest.approx(expected, rel=1e-6)
