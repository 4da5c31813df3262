"""Features of the stages: mean and spread of every map, beside the encoder's own features."""

import pytest
import timm
import torch

from agl_sc.core.encoders.load import load_encoder
from agl_sc.core.encoders.stages import WithStages, has_stages, n_outputs

CONVOLUTIONAL = ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"]


def network(name: str) -> torch.nn.Module:
    module: torch.nn.Module = timm.create_model(name, pretrained=False, num_classes=0).eval()
    return module


def tiles() -> torch.Tensor:
    return torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@torch.no_grad()
def test_own_features_come_first_then_means_then_spreads(name: str) -> None:
    module = network(name)
    wrapped = WithStages(module)
    maps: list[torch.Tensor] = module.forward_intermediates(tiles(), intermediates_only=True)  # type: ignore[operator]
    own = n_outputs(module)
    features = wrapped(tiles())
    assert features.shape == (2, wrapped.num_features)
    torch.testing.assert_close(features[:, :own], module(tiles()))
    n_maps = (wrapped.num_features - own) // 2
    torch.testing.assert_close(features[:, own : own + n_maps], torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1))
    spreads = torch.cat([m.std(dim=(2, 3), correction=0) for m in maps], dim=1)
    torch.testing.assert_close(features[:, own + n_maps :], spreads, atol=1.1e-3, rtol=1e-3)


def test_a_flat_tile_has_a_finite_gradient() -> None:
    wrapped = WithStages(network("resnet18"))
    wrapped(torch.zeros(1, 3, 64, 64)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in wrapped.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("name", "expected"), [*((name, True) for name in CONVOLUTIONAL), ("vit_tiny_patch16_224", False)]
)
def test_stages_are_those_of_networks_whose_maps_shrink(name: str, *, expected: bool) -> None:
    assert has_stages(network(name)) is expected


def test_the_offline_encoder_with_stages_is_another_encoder() -> None:
    plain, staged = load_encoder("efficientnet_lite0"), load_encoder("efficientnet_lite0", stages=True)
    assert (plain.n_features, staged.n_features) == (1280, 2304)
    assert plain.digest != staged.digest
    pixels = torch.full((1, 3, 64, 64), 200, dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(staged(pixels)[:, :1280], plain(pixels))
