"""What a configuration from elsewhere may ask for."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from agl_sc.core.encoders.bounds import check_configuration, check_scaling, read_configuration
from agl_sc.core.encoders.load import load_encoder

TRANSFORM = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "input_size": [3, 32, 32]}
GOOD: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 0,
    "model_args": {"img_size": 32, "depth": 1, "embed_dim": 192, "num_heads": 3},
    "pretrained_cfg": TRANSFORM,
}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = timm.create_model(
        GOOD["architecture"], pretrained=False, num_classes=0, **GOOD["model_args"]
    ).state_dict()
    return state


def folder(path: Path, config: Any, weights: dict[str, torch.Tensor]) -> str:
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


def test_a_configuration_within_limits(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    encoder = load_encoder(folder(tmp_path, GOOD, weights))
    assert (encoder.input_px, encoder.n_features, encoder.std) == (32, 192, (0.2, 0.2, 0.2))


def changed(part: str, **changes: Any) -> dict[str, Any]:
    return {**GOOD, part: {**GOOD[part], **changes}} if part else {**GOOD, **changes}


BAD: list[Any] = [
    (changed("model_args", img_size=10**6), r"img_size is 1000000 in .*config\.json, not a size from 0 to 4096"),
    (changed("model_args", img_size=[32, 10**9]), "img_size is "),
    (changed("model_args", img_size="32"), "img_size is '32'"),
    (changed("model_args", embed_dim=10**9), "embed_dim is 1000000000 .* 16384"),
    (changed("model_args", depth=-1), "depth is -1"),
    (changed("pretrained_cfg", input_size=[3, 32, 99999]), "input_size is"),
    (changed("pretrained_cfg", mean=[0.5]), r"mean is \[0\.5\] in .*, not three numbers"),
    (changed("pretrained_cfg", std=[0, 1, 1]), r"std is \[0, 1, 1\]"),
    (changed("pretrained_cfg", std="big"), "std is 'big'"),
    (changed("pretrained_cfg", mean=[math.nan] * 3), "mean is"),
    (changed("pretrained_cfg", mean=[1e30] * 3), "mean is"),
    (changed("", pretrained_cfg=[1]), r"holds \[1\] where settings belong"),
    (changed("", model_args="x"), "holds 'x' where settings belong"),
    (changed("model_args", checkpoint_path="/etc/passwd"), "sets 'checkpoint_path', which is not for a file to say"),
    (changed("model_args", pretrained=True), "sets 'pretrained'"),
    (changed("model_args", qwertz=1), "make no timm architecture 'vit_tiny_patch16_224'"),
    (changed("model_args", num_heads=0), "make no timm architecture"),
    (changed("model_args", num_heads=7), "make no timm architecture"),
    (changed("", architecture=5), "names no timm architecture"),
    (changed("", architecture="hf-hub:anyone/x"), "names no timm architecture"),
    ("{", "is not JSON"),
    ("[]", "is not an object of settings"),
    ("[" * 100_000, "is not JSON"),
]


@pytest.mark.parametrize(("config", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_what_no_encoder_needs_is_refused_before_it_is_made(
    tmp_path: Path, weights: dict[str, torch.Tensor], *, config: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(folder(tmp_path, config, weights))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["image_size", "hidden_size", "num_hidden_layers", "patch_size", "num_attention_heads"]
)
def test_sizes_of_transformers_are_bounded_too(name: str) -> None:
    check_configuration({name: 14, "mlp_ratio": 4.0}, "config.json")
    with pytest.raises(ValueError, match=f"{name} is 1000000000000 in config.json, not a size"):
        check_configuration({name: 10**12}, "config.json")


def test_scaling_of_three_channels() -> None:
    check_scaling((0.485, 0.456, 0.406), [0.229, 0.224, 0.225], "x")
    check_scaling(None, None, "x")
    odd: list[Any] = [[1, 1], [True] * 3, [math.inf] * 3, 1.0, {}]
    for std in odd:
        with pytest.raises(ValueError, match=r"std is .* in x, not three numbers"):
            check_scaling(None, std, "x")


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        read_configuration(tmp_path / "config.json")
