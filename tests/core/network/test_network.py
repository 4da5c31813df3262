"""Trunk and head, and how a closed-form start is loaded into them."""

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray
from tests.core.spots.dense_calibration import calibrate

from agl_sc.core.linear.closed_form import LowRank
from agl_sc.core.network.network import Network, calibration, load_closed_form, network_from
from agl_sc.core.spots import expression

FloatArray = NDArray[np.float64]

N_GENES = 30


def solution_and_network(rank: int = 5) -> tuple[LowRank, Network, FloatArray]:
    rng = np.random.default_rng(0)
    start = LowRank(rng.normal(size=(12, rank)), rng.normal(size=(rank, N_GENES)))
    new = rng.normal(size=(9, 12))
    torch.manual_seed(0)
    network = Network(12, N_GENES, rank=rank, hidden=16)
    return start, network, new


def randomised(network: Network) -> Network:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return network.eval()


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_closed_form_is_loaded_exactly(mode: str) -> None:
    start, network, new = solution_and_network()
    load_closed_form(randomised(network), start)
    network.train(mode == "train")
    with torch.no_grad():
        predicted = network(torch.from_numpy(new.astype(np.float32))).numpy()
    np.testing.assert_allclose(predicted, start.predict(new), atol=1e-5)


def test_hidden_layer_learns_from_the_closed_form_start() -> None:
    start, network, new = solution_and_network()
    load_closed_form(network, start)
    network(torch.from_numpy(new.astype(np.float32))).square().sum().backward()
    assert network.outer.weight.grad is not None
    assert (network.outer.weight.grad.abs().sum(dim=0) > 0).any()


def test_hidden_layer_starts_without_a_say() -> None:
    network = Network(12, N_GENES, rank=5).eval()
    inputs = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(2 * inputs) - network(inputs), network(inputs) - network(0 * inputs))


def test_leading_genes_only() -> None:
    _, network, _ = solution_and_network()
    randomised(network)
    inputs = torch.ones(3, 12)
    torch.testing.assert_close(network(inputs, 7), network(inputs)[:, :7])
    assert network(inputs, 7).shape == (3, 7)


@pytest.mark.parametrize("n_genes", [None, 7, 1])
def test_network_from_a_state_dict_with_its_head_cut(n_genes: int | None) -> None:
    _, network, new = solution_and_network()
    inputs = torch.from_numpy(new.astype(np.float32))
    again = network_from(randomised(network).state_dict(), slice(n_genes))
    assert not again.training
    torch.testing.assert_close(again(inputs), network(inputs)[:, :n_genes], rtol=0, atol=1e-5)


def test_network_from_does_not_share_memory_with_the_state() -> None:
    _, network, _ = solution_and_network()
    again = network_from(network.state_dict())
    with torch.no_grad():
        again.linear.weight.add_(1)
    assert not torch.allclose(again.linear.weight, network.linear.weight)


def test_calibration_by_blocks_is_that_of_all_genes(monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, new = solution_and_network()
    inputs = torch.from_numpy(new.astype(np.float32))
    measured = np.random.default_rng(1).poisson(1.0, size=(len(new), N_GENES)).astype(np.float32)
    predicted = randomised(network)(inputs).detach().double().numpy()
    monkeypatch.setattr(expression, "BLOCK_BYTES", 8 * len(new) * 7)
    slope, intercept = calibration(network, inputs, scipy.sparse.csr_matrix(measured))
    expected = calibrate(predicted, measured.astype(float))
    np.testing.assert_allclose(slope, expected[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(intercept, expected[1], rtol=1e-4, atol=1e-6)
    assert (slope > 0).any()
