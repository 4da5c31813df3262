"""Folded networks have the same features, and fewer layers."""

import pytest
import timm
import torch
from torch import nn

from agl_sc.core.encoders.folded import folded
from agl_sc.core.encoders.stages import WithStages


def randomised(module: nn.Module) -> nn.Module:
    """As if trained: normalisation that does something."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var, part.bias.data, part.running_mean):
                assert values is not None
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
    return module.eval()


def n_normalisations(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [("test_resnet", 0), ("test_efficientnet", 0), ("mobilenetv3_small_050", 0), ("tf_efficientnet_lite0", 0)],
)
@torch.inference_mode()
def test_features_are_the_same_up_to_rounding(name: str, left: int) -> None:
    module = randomised(WithStages(timm.create_model(name, pretrained=False, num_classes=0)))
    new = folded(module)
    assert n_normalisations(module) > 0
    assert n_normalisations(new) == left
    tiles = torch.randn(2, 3, 64, 64)
    expected = module(tiles)
    torch.testing.assert_close(new(tiles), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_folded_network_may_be_moved_and_passed_outside_of_inference() -> None:
    new = folded(randomised(timm.create_model("test_resnet", pretrained=False, num_classes=0)))
    tiles = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    assert torch.isfinite(new.to(memory_format=torch.channels_last)(tiles)).all()


class Twice(nn.Module):
    """What the convolution returns goes past the normalisation too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.normalisation = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        values = self.convolution(tiles)
        features: torch.Tensor = (values + self.normalisation(values)).mean((2, 3))
        return features


class Shared(nn.Module):
    """One normalisation after two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.normalisation = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        maps = [self.normalisation(convolution(tiles)).mean((2, 3)) for convolution in (self.one, self.other)]
        return torch.cat(maps, dim=1)


@pytest.mark.parametrize("module", [Twice(), Shared(), nn.Conv2d(3, 4, 3)], ids=lambda m: type(m).__name__)
@torch.inference_mode()
def test_what_cannot_be_folded_stays_as_it_is(module: nn.Module) -> None:
    module = randomised(module)
    tiles = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(folded(module)(tiles), module(tiles))
    assert n_normalisations(folded(module)) == n_normalisations(module)
