"""Which encoders may be loaded because a file names them: those that need neither the network nor somebody's files."""

from pathlib import Path

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from agl_sc.core.encoders.load import OFFLINE, SECOND_OFFLINE
from agl_sc.core.encoders.pathology import card_of
from agl_sc.core.encoders.several import names_of

_HUB = "hf-hub:"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def is_harmless(name: str) -> bool:
    """Whether loading an encoder by this name asks no place that the user has not asked before, and reads no other files.

    The offline encoders, encoders of :func:`agl_sc.pp.encoders`, and names of the hub and of timm whose weights are in the
    local cache; not paths, for a file that names them may come from another machine.
    """
    names = names_of(name)
    if len(names) > 1:
        return all(map(is_harmless, names))
    if name in (OFFLINE, SECOND_OFFLINE) or (card_of(name) is not None and not Path(name).exists()):
        return True
    if name.startswith(_HUB):
        repository, _, revision = name.removeprefix(_HUB).partition("@")
        return _is_cached(repository, revision or None)
    if "@" in name or Path(name).exists() or Path(name).is_absolute():
        return False
    return not timm.is_model(name) or _weights_are_here(name)  # an unknown name is refused without being looked up


def _weights_are_here(name: str) -> bool:
    """Whether timm's weights of an architecture are in one of its caches."""
    settings = timm.get_pretrained_cfg(name)
    repository, address = getattr(settings, "hf_hub_id", None), getattr(settings, "url", None)
    if repository and _is_cached(repository, None):
        return True
    return bool(address) and (Path(torch.hub.get_dir()) / "checkpoints" / Path(str(address)).name).is_file()


def _is_cached(repository: str, revision: str | None) -> bool:
    try:
        return any(isinstance(try_to_load_from_cache(repository, file, revision=revision), str) for file in _WEIGHTS)
    except HFValidationError:
        return False
