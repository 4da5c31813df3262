"""Fused convolutions return what a convolution and the activation after it return."""

import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

from agl_sc.core.encoders import fused
from agl_sc.core.encoders.fused import Fused, can_fuse

needs_onednn = pytest.mark.skipif(not can_fuse(nn.Conv2d(1, 1, 1), nn.ReLU6()), reason="torch without oneDNN")
ACTIVATIONS = (nn.Identity(), nn.ReLU(), nn.ReLU6())


@needs_onednn
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_fused_returns_the_same(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 10_000)))
    side, stride = data.draw(st.sampled_from([1, 2, 3, 4, 5, 7])), data.draw(st.integers(1, 3))
    same, groups = data.draw(st.booleans()), data.draw(st.sampled_from([1, 2, 6]))
    activation = data.draw(st.sampled_from(ACTIVATIONS))
    kind = Conv2dSame if same else nn.Conv2d
    convolution = kind(6, 6, side, stride=stride, padding=0 if same else side // 2, groups=groups)
    values = 4 * torch.randn(2, 6, data.draw(st.integers(7, 20)), data.draw(st.integers(7, 20)))
    with torch.inference_mode():
        expected = activation(convolution(values))
        found = Fused(convolution, activation)(values.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_no_copy_is_made_to_pad_every_second_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    padded: list[int] = []

    def noted(*given: Any) -> Any:
        padded.append(1)
        return pad_same(*given)

    monkeypatch.setattr("agl_sc.core.encoders.fused.pad_same", noted)
    convolution = Fused(Conv2dSame(4, 4, 3, stride=2, groups=4), nn.ReLU6())
    with torch.inference_mode():
        assert convolution(torch.ones(1, 4, 8, 8)).shape == (1, 4, 4, 4)
        assert not padded
        assert convolution(torch.ones(1, 4, 9, 8)).shape == (1, 4, 5, 4)
        assert padded == [1]


@needs_onednn
@torch.inference_mode()
def test_a_tile_has_the_same_bytes_whatever_else_is_in_its_batch() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        Fused(nn.Conv2d(8, 16, 1), nn.ReLU6()), Fused(Conv2dSame(16, 16, 5, stride=2, groups=16), nn.ReLU6())
    ).to(memory_format=torch.channels_last)
    tiles = torch.randn(8, 8, 32, 32).contiguous(memory_format=torch.channels_last)
    together = network(tiles)
    for n in range(1, 8):
        assert torch.equal(network(tiles[:n].contiguous(memory_format=torch.channels_last)), together[:n])


def test_gradients_flow_where_they_are_wanted() -> None:
    convolution = Fused(nn.Conv2d(3, 4, 3), nn.ReLU())
    convolution(torch.randn(1, 3, 8, 8)).sum().backward()
    weight = convolution.convolution.weight
    assert isinstance(weight, torch.Tensor)
    assert weight.grad is not None


@torch.inference_mode()
def test_other_numbers_go_one_after_the_other() -> None:
    convolution = Fused(nn.Conv2d(3, 4, 3), nn.ReLU()).to(torch.float64)
    values = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(convolution(values), convolution.convolution(values).relu())


@torch.inference_mode()
def test_half_precision_is_kept_to() -> None:
    convolution, values = Fused(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert convolution(values).dtype == torch.bfloat16


@torch.inference_mode()
def test_it_goes_to_other_processes() -> None:
    convolution = Fused(Conv2dSame(4, 4, 3, stride=2, groups=4), nn.ReLU6())
    values = torch.randn(1, 4, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(convolution))(values), convolution(values))


@pytest.mark.parametrize(
    ("convolution", "activation"),
    [
        pytest.param(nn.Conv2d(3, 3, 3, padding="same"), nn.ReLU(), id="padding in words"),
        pytest.param(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.ReLU(), id="reflected"),
        pytest.param(nn.Conv2d(3, 3, 3), nn.SiLU(), id="another activation"),
    ],
)
def test_what_cannot_be_fused(convolution: nn.Conv2d, activation: nn.Module) -> None:
    assert not can_fuse(convolution, activation)


def test_a_torch_without_onednn_fuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        msg = "no such operator"
        raise NotImplementedError(msg)

    fused._has_onednn.cache_clear()
    monkeypatch.setattr(fused, "_convolved", lacking)
    assert not can_fuse(nn.Conv2d(1, 1, 1), nn.ReLU6())
    fused._has_onednn.cache_clear()
