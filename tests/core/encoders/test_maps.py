"""Which encoders have maps, and that features of their means are the encoder's own."""

import pytest
import timm
import torch
from torch import nn

from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import Layer, maps_of
from agl_sc.core.encoders.pathology import ClassAndPatches
from agl_sc.core.encoders.stages import WithStages, n_outputs

LOCAL = ["test_resnet", "tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_050"]


def encoder(name: str, *, stages: bool = False, input_px: int | None = None) -> Encoder:
    torch.manual_seed(0)
    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=0).eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # some begin with zeros, so that whole branches are silent
            nn.init.ones_(part.weight)
    module = WithStages(module).eval() if stages else module
    return Encoder(name, module, (0.5,) * 3, (0.5,) * 3, n_features=n_outputs(module), digest="", input_px=input_px)


@pytest.mark.parametrize("stages", [False, True])
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "mobilenetv3_small_050"])
@torch.inference_mode()
def test_features_of_the_means_over_a_whole_tile_are_the_encoders_own(name: str, *, stages: bool) -> None:
    network = encoder(name, stages=stages)
    maps = maps_of(network)
    assert maps is not None
    tiles = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    values = maps(network.scale(tiles))
    pairs = zip(values, maps.layers, strict=True)
    means = [torch.cat([v, v * v], 1).mean((2, 3)) if layer.squares else v.mean((2, 3)) for v, layer in pairs]
    torch.testing.assert_close(maps.features(means), network(tiles), rtol=1e-4, atol=1e-4)
    assert maps.n_features == network(tiles).shape[1]


@pytest.mark.parametrize(
    ("name", "local"),
    [("test_resnet", True), ("tf_efficientnet_lite0", True), ("test_convnext", True), ("seresnet18", False),
     ("mobilenetv3_small_050", False)],
)  # fmt: skip
def test_networks_that_see_far_away_get_windows_of_the_size_of_tiles(name: str, *, local: bool) -> None:
    maps = maps_of(encoder(name))
    assert maps is not None
    assert maps.local is local
    assert (maps.window_px, maps.halo_px, maps.core_px) == ((576, 32, 512) if local else (224, 32, 160))


@torch.inference_mode()
def test_a_transformer_has_its_normalised_patch_tokens() -> None:
    network = encoder("test_vit", input_px=160)
    trunk = network.module
    maps = maps_of(network)
    assert maps is not None
    assert (maps.local, maps.window_px, maps.halo_px, maps.layers) == (False, 160, 32, (Layer(64, 16),))
    tiles = torch.rand(2, 3, 160, 160)
    tokens = trunk.forward_features(tiles)[:, trunk.num_prefix_tokens :]  # type: ignore[operator]
    (values,) = maps(tiles)
    torch.testing.assert_close(values.flatten(2).transpose(1, 2), tokens)
    torch.testing.assert_close(maps.features([values.mean((2, 3))]), tokens.mean(1))


def test_of_class_token_and_patches_the_patches_have_maps() -> None:
    plain = encoder("test_vit", input_px=160)
    both = Encoder("both", ClassAndPatches(plain.module), (0.5,) * 3, (0.5,) * 3, 128, digest="", input_px=160)
    maps = maps_of(both)
    assert maps is not None
    assert maps.n_features == 64


class Pooled(nn.Module):
    """The largest value of every channel, which is no mean."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 4, stride=4)

    def forward_intermediates(self, tiles: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.convolution(tiles), []

    def forward_head(self, last: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return last.amax(dim=(2, 3))


class Unpadded(Pooled):
    """Maps that are smaller than the tile by more than their stride."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 5, stride=4)

    def forward_head(self, last: torch.Tensor, *, pre_logits: bool) -> torch.Tensor:
        assert pre_logits
        return last.mean(dim=(2, 3))


@pytest.mark.parametrize("module", [Pooled(), Unpadded(), nn.Conv2d(3, 4, 1)], ids=lambda m: type(m).__name__)
def test_what_has_no_maps_whose_means_are_features_has_none(module: nn.Module) -> None:
    assert maps_of(Encoder("odd", module.eval(), (0.5,) * 3, (0.5,) * 3, 4, digest="")) is None
