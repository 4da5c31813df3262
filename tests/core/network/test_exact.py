"""The network without rounding: as torch computes it, and the same bytes however the spots are divided."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_sc.core.network.exact import ExactLayer, ExactNetwork, softplus
from agl_sc.core.network.network import Network


def network_of(n_features: int, *, rank: int = 5, hidden: int = 12, n_genes: int = 7, scale: float = 1.0) -> Network:
    torch.manual_seed(0)
    network = Network(n_features, n_genes, rank=rank, hidden=hidden).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=scale * max(parameter.shape) ** -0.5)
    return network


def features_of(n_spots: int, n_features: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.clip(np.random.default_rng(0).normal(size=(n_spots, n_features)), -3, 3)


@pytest.mark.parametrize("n_features", [1, 40, 3000])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_it_is_the_network(n_features: int, scale: float) -> None:
    network, features = network_of(n_features, scale=scale), features_of(50, n_features)
    with torch.inference_mode():
        expected = network.double()(torch.from_numpy(features)).numpy()
    found = ExactNetwork.of(network.float().state_dict())(features)
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())


NETWORK = ExactNetwork.of(network_of(333, rank=11, hidden=29, n_genes=17).state_dict())
FEATURES = features_of(70, 333)
WHOLE = NETWORK(FEATURES)


@given(st.lists(st.integers(0, 69), min_size=1, max_size=70))
@settings(max_examples=60, deadline=None)
def test_a_spot_is_the_same_whichever_others_are_with_it(rows: list[int]) -> None:
    assert NETWORK(FEATURES[rows]).tobytes() == WHOLE[rows].tobytes()


def test_a_spot_is_the_same_whatever_the_order_in_which_its_features_are_summed() -> None:
    """So that neither the library nor the number of its threads matters: sums are exact."""
    layer = ExactLayer.of(np.random.default_rng(1).normal(size=(9, 333)), bound=3.0, n_bits=20)
    order = np.random.default_rng(2).permutation(333)
    turned = ExactLayer(layer.weight[order], layer.bias, layer.step, layer.bound)
    assert turned(FEATURES[:, order]).tobytes() == layer(FEATURES).tobytes()
    one_by_one = np.zeros((70, 9))
    for inputs, weight in zip((np.rint(FEATURES / layer.step) * layer.step).T, layer.weight, strict=True):
        one_by_one += np.outer(inputs, weight)
    assert one_by_one.tobytes() == layer(FEATURES).tobytes()


def test_outputs_keep_within_their_bound() -> None:
    weight = np.random.default_rng(1).normal(size=(9, 30))
    layer = ExactLayer.of(weight, np.full(9, -2.0), bound=3.0)
    worst = layer(-3.0 * np.sign(weight))  # every output at its own worst input
    assert np.abs(worst).max() == pytest.approx(layer.bound)


def test_rows_with_nan_are_nan_and_others_are_not_touched() -> None:
    features = FEATURES.copy()
    features[3] = np.nan
    found = NETWORK(features)
    assert np.isnan(found[3]).all()
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), np.delete(WHOLE, 3, axis=0))


def test_no_spots_and_weights_of_zero() -> None:
    assert NETWORK(FEATURES[:0]).shape == (0, 17)
    layer = ExactLayer.of(np.zeros((2, 3)), np.array([1.0, 2.0]), bound=3.0)
    np.testing.assert_array_equal(layer(np.ones((1, 3))), [[1.0, 2.0]])


def test_softplus_is_that_of_torch() -> None:
    values = np.array([-800.0, -3.0, 0.0, 2.0, 40.0])
    expected = torch.nn.functional.softplus(torch.from_numpy(values), threshold=100).numpy()
    np.testing.assert_allclose(softplus(values), expected, rtol=1e-12)
