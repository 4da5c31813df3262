from typing import get_args

import numpy as np
import pytest
import torch

from agl_sc.core.choices import Choices
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.weighting import (
    Amal,
    AuxiLearn,
    Fixed,
    LearnedCutoff,
    Uncertainty,
    Weighting,
    method_spec,
    weighting_for,
)
from agl_sc.core.weighting.cosine import GradientCosine
from agl_sc.core.weighting.gate import n_active

N_TARGETS, N_GENES = 3, 23


def weights_of(method: Method, cutoff: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return method_spec(method).gene_weights(cutoff, n_targets=N_TARGETS, n_genes=N_GENES)


@pytest.mark.parametrize("method", get_args(Method))
def test_targets_weigh_one_and_auxiliary_genes_what_the_method_says(method: Method) -> None:
    weights = weights_of(method, 0.25)
    assert weights.shape == (N_GENES,)
    assert (weights[:N_TARGETS] == 1).all()
    auxiliary = weights[N_TARGETS:]
    if method in ("pgl", "denoiser"):
        assert (auxiliary == 0).all()
    elif method == "fixed_k":
        assert auxiliary.tolist() == [1.0] * 5 + [0.0] * 15
    elif method == "dkgsb":
        rank = np.arange(20) / 19
        soft = 1 / (1 + np.exp(-(0.25 - rank) / 0.01))
        active = n_active(0.25, 20)
        assert 5 < active < 20
        np.testing.assert_allclose(auxiliary[:active], soft[:active])
        assert (auxiliary[active:] == 0).all()
    else:
        assert (auxiliary == 1).all()


def test_dkgsb_at_a_cutoff_of_0_is_none_and_next_to_it_the_soft_edge() -> None:
    none, next_to_it = (weights_of("dkgsb", cutoff)[N_TARGETS:] for cutoff in (0.0, 1e-9))
    assert (none == 0).all()
    assert next_to_it[0] == pytest.approx(0.5)


@pytest.mark.parametrize(("cutoff", "k"), [(0.0, 0), (0.05, 1), (0.5, 10), (1.0, 20)])
def test_fixed_k_takes_a_share_of_the_auxiliary_genes(cutoff: float, k: int) -> None:
    assert weights_of("fixed_k", cutoff).sum() == N_TARGETS + k
    assert Fixed(N_TARGETS, weights_of("fixed_k", cutoff)).n_active == N_TARGETS + k


def test_loss_is_the_mean_over_active_genes() -> None:
    weights = weights_of("dkgsb", 0.25)
    weighting = Fixed(N_TARGETS, weights)
    assert N_TARGETS < weighting.n_active == N_TARGETS + n_active(0.25, 20) < N_GENES
    losses = torch.linspace(0.1, 2.0, weighting.n_active)
    expected = np.average(losses.numpy(), weights=weights[: weighting.n_active])
    assert float(weighting(losses)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("target_weight", [1.0, 10.0, 300.0])
def test_target_weight_is_the_weight_of_a_target_among_auxiliary_genes_of_one(target_weight: float) -> None:
    """The share of the targets in the loss is its derivative by a common factor on their losses."""
    weighting = Fixed(N_TARGETS, weights_of("target_weight", 1.0), target_weight=target_weight)
    losses = torch.ones(N_GENES).requires_grad_()
    (share,) = torch.autograd.grad(weighting(losses), losses)
    total = N_TARGETS * target_weight + N_GENES - N_TARGETS
    assert float(share[:N_TARGETS].sum()) == pytest.approx(N_TARGETS * target_weight / total, rel=1e-5)
    assert float(share[-1]) == pytest.approx(1 / total, rel=1e-5)
    assert (weighting.weights() == 1).all()


KINDS: dict[Method, type[Weighting]] = {
    "uncertainty": Uncertainty, "auxilearn": AuxiLearn, "amal": Amal, "cosine": GradientCosine, "dkgsb": LearnedCutoff
}  # fmt: skip


@pytest.mark.parametrize("method", get_args(Method))
def test_weighting_of_a_method_while_searching_and_after(method: Method) -> None:
    sizes = {"n_targets": N_TARGETS, "n_genes": N_GENES}
    choices = Choices(1.0, 4, cutoff=0.25, n_epochs=0, target_weight=2.0)
    found = weighting_for(method_spec(method), choices, config=TrainConfig(), search=method == "dkgsb", **sizes)
    assert type(found) is KINDS.get(method, Fixed)
    after = weighting_for(method_spec(method), choices, config=TrainConfig(), search=False, **sizes)
    assert type(after) is (Fixed if method == "dkgsb" else KINDS.get(method, Fixed))
    if isinstance(after, Fixed):
        np.testing.assert_array_equal(after.weights(), weights_of(method, 0.25))
        assert after.active[0] == 2
