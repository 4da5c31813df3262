"""Limits of what a configuration from elsewhere may ask for, checked before anything of its size is made."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST_PX = 4096
"""Side of the tiles that an encoder takes, in pixels."""
_SIDES = ("img_size", "image_size", "input_size", "fixed_input_size", "test_input_size")
_AT_MOST = {
    "patch_size": 1024, "embed_dim": 16_384, "hidden_size": 16_384, "depth": 256, "num_hidden_layers": 256,
    "num_heads": 256, "num_attention_heads": 256, "mlp_ratio": 64, "reg_tokens": 1024, "num_features": 65_536,
}  # fmt: skip
_NOT_OF_A_FILE = {
    "cache_dir", "checkpoint_path", "exportable", "no_jit", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "scriptable",
}  # fmt: skip
"""What timm is told beside the architecture's own settings, such as which other files to load."""
_LARGEST_SCALE = 1000.0


def read_configuration(file: Path) -> dict[str, Any]:
    """Settings of an encoder from ``config.json``, within limits.

    Raises
    ------
    ValueError
        It is no JSON object, or asks for more than an encoder of images needs.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        msg = f"{file} is not JSON ({error}); copy the whole repository from the hub."
        raise ValueError(msg) from error
    check_configuration(config, file)
    return dict(config)


def check_configuration(config: Any, source: object) -> None:
    """Refuse a configuration whose sizes or scales are none of an image encoder's.

    Parameters
    ----------
    config
        Of an encoder as timm, or transformers, reads it.
    source
        Where it comes from, for the message.

    Raises
    ------
    ValueError
        A size is too large or not positive, or mean and spread are not three finite numbers each.
    """
    if not isinstance(config, Mapping):
        msg = f"{source} is not an object of settings; copy the whole repository from the hub."
        raise ValueError(msg)
    parts = {"": config, **{name: config.get(name) or {} for name in ("model_args", "pretrained_cfg")}}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            msg = f"{source} holds {part!r} where settings belong; copy the whole repository from the hub."
            raise ValueError(msg)
        odd = sorted(_NOT_OF_A_FILE & set(part)) if name == "model_args" else []
        if odd:
            msg = f"{source} sets {odd[0]!r}, which is not for a file to say; take it out, or use another encoder."
            raise ValueError(msg)
        _check_sizes(part, source)
        check_scaling(part.get("mean"), part.get("std"), source)


def _check_sizes(part: Mapping[str, Any], source: object) -> None:
    limits = {**dict.fromkeys(_SIDES, LARGEST_PX), **_AT_MOST}
    for name in limits.keys() & part.keys():
        given = part[name]
        values = given if isinstance(given, list | tuple) else [given]
        for value in values:
            if isinstance(value, bool | None) or (_is_number(value) and 0 <= value <= limits[name]):
                continue
            msg = f"{name} is {given!r} in {source}, not a size from 0 to {limits[name]}; correct it, or use another encoder."
            raise ValueError(msg)


def check_scaling(mean: Any, std: Any, source: object) -> None:
    """Refuse mean and spread per channel that are not three finite numbers each, the spread above 0."""
    for name, values, least in (("mean", mean, -_LARGEST_SCALE), ("std", std, 1e-6)):
        if values is None:
            continue
        if not (
            isinstance(values, list | tuple)
            and len(values) == 3
            and all(_is_number(v) and least <= v <= _LARGEST_SCALE for v in values)
        ):
            msg = f"{name} is {values!r} in {source}, not three numbers from {least:g} to {_LARGEST_SCALE:g}; correct it, or use another encoder."
            raise ValueError(msg)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
