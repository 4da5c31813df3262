"""Encoders from files of the user: a state dict, or a folder laid out as on the hub; no pickled code runs."""

import pickle
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from agl_sc.core.encoders.bounds import read_configuration
from agl_sc.core.encoders.conch import conch_module
from agl_sc.core.encoders.dinov2 import dinov2_module
from agl_sc.core.encoders.pathology import Card

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_MISFITS = (ArithmeticError, AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
"""What torch and timm raise for sizes and names that do not belong together."""
_TRANSFORM = ("mean", "std", "input_size", "fixed_input_size")


def folder_module(folder: Path, card: Card | None) -> nn.Module:
    """The network of a folder with weights and, but for CONCH, ``config.json``.

    Parameters
    ----------
    folder
        As ``hf download`` leaves it.
    card
        Of the encoder it holds, where it is one of the pathology encoders.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is not None and card is not None and card.layout == "conch":
        return conch_module(read_state(weights))
    if weights is None or not (folder / "config.json").is_file():
        msg = f"{folder} is not an encoder: it needs config.json and one of {', '.join(_WEIGHTS)}; copy the whole repository from the hub."
        raise FileNotFoundError(msg)
    config = read_configuration(folder / "config.json")
    if card is not None and card.layout == "dinov2":
        try:
            return dinov2_module(config, read_state(weights))
        except _MISFITS as error:
            msg = f"{folder} is not {card.name} ({_first(error)}); copy the whole repository {card.repository} from the hub."
            raise ValueError(msg) from error
    if not isinstance(config.get("architecture"), str) or not timm.is_model(config["architecture"]):
        msg = f"{folder / 'config.json'} names no timm architecture; pass encoder='ARCHITECTURE@{weights}'."
        raise ValueError(msg)
    options = {**(config.get("model_args") or {}), **(card.options if card else {})}
    given = config.get("pretrained_cfg") or {}
    transform = {name: given[name] for name in _TRANSFORM if name in given}
    return file_module(config["architecture"], weights, options=options, transform=transform)


def file_module(
    architecture: str, weights: Path, *, options: dict[str, Any] | None = None, transform: dict[str, Any] | None = None
) -> nn.Module:
    """The network of a timm architecture with the weights of a file; a classifier in it is left out.

    Parameters
    ----------
    architecture
        timm name.
    weights
        safetensors, or a state dict that ``torch.save`` wrote.
    options
        What timm is told beside the name.
    transform
        Entries of timm's ``pretrained_cfg`` that differ from the architecture's own.
    """
    options = {**(options or {}), "num_classes": 0}
    try:
        module: nn.Module = timm.create_model(
            architecture, pretrained=False, pretrained_cfg_overlay=transform or {}, **options
        )
    except _MISFITS as error:
        msg = f"The settings beside {weights} make no timm architecture {architecture!r} ({_first(error)}); copy the whole repository from the hub."
        raise ValueError(msg) from error
    classifier = f"{module.pretrained_cfg['classifier']}."  # type: ignore[index]
    state = {name: tensor for name, tensor in read_state(weights).items() if not name.startswith(classifier)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        own = module.state_dict()
        odd = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
        msg = f"{weights} does not fit the timm architecture {architecture!r} (e.g. {odd[0]!r}); name the one it was written for."
        raise ValueError(msg) from error
    return module


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_state(weights: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file or of a state dict, by name."""
    try:
        if weights.suffix == ".safetensors":
            return load_file(weights)
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        msg = f"{weights} cannot be read as weights alone ({str(error).splitlines()[0]}); write it with safetensors.torch.save_file."
        raise ValueError(msg) from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)  # as training code wraps it
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        msg = f"{weights} is not a state dict (names to tensors); write it with torch.save(module.state_dict(), path)."
        raise ValueError(msg)
    return state
