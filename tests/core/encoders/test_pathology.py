"""The table of pathology encoders, and how each is built and read."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from agl_sc import pp
from agl_sc.core.encoders.dinov2 import dinov2_module
from agl_sc.core.encoders.load import Encoder
from agl_sc.core.encoders.maps import maps_of
from agl_sc.core.encoders.pathology import CARDS, ClassAndPatches, ConvStem, card_of

ARCHITECTURES = {
    "UNI": "vit_large_patch16_224",
    "UNI2-h": "vit_giant_patch14_224",
    "H-optimus-0": "vit_giant_patch14_reg4_dinov2",
    "H-optimus-1": "vit_giant_patch14_reg4_dinov2",
    "Lunit-S8": "vit_small_patch8_224",
    "Lunit-S16": "vit_small_patch16_224",
}


def test_every_card_is_whole() -> None:
    assert {card.name for card in CARDS} == {
        *("UNI", "UNI2-h", "CONCH", "Virchow2", "H-optimus-0", "H-optimus-1", "Prov-GigaPath", "Phikon-v2"),
        *("Midnight", "H0-mini", "CTransPath", "Lunit-S8", "Lunit-S16"),
    }
    for card in CARDS:
        assert card.repository.count("/") == 1
        assert card.input_px % 32 == 0
        assert all(0 < value < 1 for part in card.scaling for value in part)
        assert card.mpp is None or all(0.2 <= mpp <= 2 for mpp in card.mpp)
        assert card.licence


def test_cards_are_found_by_name_and_repository_in_any_case() -> None:
    card = card_of("uni2-H")
    assert card is not None
    assert card.repository == "MahmoodLab/UNI2-h"
    assert card_of("hf-hub:mahmoodlab/UNI2-h") is card
    assert card_of("resnet18") is None


def test_the_table_shows_them_all() -> None:
    table = pp.encoders()
    assert list(table.index) == [card.name for card in CARDS]
    assert table.loc["Virchow2", "n_features"] == 2560
    assert table.loc["UNI", "mpp"] is None
    assert table.loc["UNI", "source"] == "https://huggingface.co/MahmoodLab/UNI"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_timm_accepts_the_options_and_gives_the_width(name: str) -> None:
    card = card_of(name)
    assert card is not None
    with torch.device("meta"):
        module = timm.create_model(ARCHITECTURES[name], pretrained=False, num_classes=0, **card.options)
    assert module.num_features == card.n_features
    assert isinstance(module, VisionTransformer) == (card.maps == "windows of patch tokens")


def test_ctranspath_runs_on_its_own_stem() -> None:
    module = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, embed_layer=ConvStem)
    stem = module.patch_embed
    assert isinstance(stem, ConvStem)
    assert [tuple(p.shape) for p in stem.parameters() if p.ndim == 4] == [(12, 3, 3, 3), (24, 12, 3, 3), (96, 24, 1, 1)]
    with torch.inference_mode():
        assert module.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 768)


def test_registers_are_left_out_of_the_mean() -> None:
    trunk = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=1, img_size=32, reg_tokens=3
    ).eval()
    with torch.inference_mode():
        tokens = trunk.forward_features(torch.ones(1, 3, 32, 32))  # type: ignore[operator]
        features = ClassAndPatches(trunk)(torch.ones(1, 3, 32, 32))
    assert tokens.shape == (1, 1 + 3 + 4, 192)
    torch.testing.assert_close(features, torch.cat([tokens[:, 0], tokens[:, 4:].mean(dim=1)], dim=1))


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_dinov2_gives_what_transformers_gives(
    *, gated: bool, dinov2: Callable[[bool], tuple[dict[str, Any], dict[str, torch.Tensor]]]
) -> None:
    module = dinov2_module(*dinov2(gated)).eval()
    tiles = torch.cos(torch.arange(3 * 28 * 28, dtype=torch.float32) * 0.01).reshape(1, 3, 28, 28)
    with torch.inference_mode():
        features = ClassAndPatches(module)(tiles)[0]
    torch.testing.assert_close(features, torch.tensor(TRANSFORMERS[gated]), rtol=1e-4, atol=1e-4)


# Of transformers 4.46.3, Dinov2Model on the same weights: class token, then the mean of the patch tokens.
TRANSFORMERS = {
    False: [
        *(-0.83124, 0.23236, -0.82258, -0.67875, 0.13051, -0.43, 1.59279, 1.08299),
        *(-0.83661, 0.23165, -0.89011, -0.70258, 0.13055, -0.43394, 1.53686, 1.03896),
    ],
    True: [
        *(0.09689, -1.12103, -1.36302, -1.28742, 0.13406, -0.28038, 1.9166, 0.96356),
        *(0.09454, -1.14936, -1.35151, -1.31042, 0.13414, -0.27538, 1.896, 0.93241),
    ],
}


@pytest.mark.parametrize(
    ("name", "architecture"), [("Lunit-S16", "vit_small_patch16_224"), ("CTransPath", "swin_tiny_patch4_window7_224")]
)
def test_what_the_table_says_of_maps_holds(name: str, architecture: str) -> None:
    card = card_of(name)
    assert card is not None
    module = timm.create_model(architecture, pretrained=False, num_classes=0, **card.options).eval()
    maps = maps_of(Encoder(name, module, *card.scaling, card.n_features, digest="", input_px=card.input_px))
    assert maps is not None
    assert (maps.local, maps.window_px, maps.n_features) == (False, card.input_px, card.n_features)
    assert pp.encoders().loc[name, "maps"] == card.maps
