import numpy as np
import torch

from agl_sc.core.weighting import Uncertainty


def test_variances_approach_the_losses() -> None:
    """The optimum of exp(-s) L + s is s = log L."""
    weighting = Uncertainty(2, 4)
    losses = torch.tensor([0.5, 0.9, 2.0, 4.0])
    optimizer = torch.optim.Adam(weighting.trained(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        weighting(losses).backward()
        optimizer.step()
    torch.testing.assert_close(weighting.log_variance.detach().exp(), losses, rtol=1e-2, atol=0.0)
    np.testing.assert_allclose(weighting.weights(), 0.5 / losses.numpy(), rtol=2e-2)
    assert weighting.weights().max() == 1
    assert weighting.selected().all()


def test_starts_as_the_mean_of_the_losses() -> None:
    losses = torch.tensor([0.5, 0.9, 2.0])
    assert torch.equal(Uncertainty(1, 3)(losses), losses.mean())
    assert (Uncertainty(1, 3).weights() == 1).all()


def test_loss_is_attenuated_and_pays_for_it() -> None:
    weighting = Uncertainty(1, 2)
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([0.0, 1.0]))
    expected = (0.5 + 3.0 * np.exp(-1) + 1.0) / 2
    np.testing.assert_allclose(weighting(torch.tensor([0.5, 3.0])).item(), expected, rtol=1e-6)
