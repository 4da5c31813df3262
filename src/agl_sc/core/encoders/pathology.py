"""Pathology encoders of the Hugging Face hub: what each takes, what it returns, and on which terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from timm.layers.mlp import SwiGLUPacked
from torch import nn

RGB = tuple[float, float, float]
Embedding = Literal["class token", "class token + mean of patch tokens", "pooled"]

IMAGENET: tuple[RGB, RGB] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF: tuple[RGB, RGB] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPTIMUS: tuple[RGB, RGB] = ((0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517))
_CLIP: tuple[RGB, RGB] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class ConvStem(nn.Module):
    """Patch embedding of CTransPath: two strided convolutions and a pointwise one instead of a linear map."""

    def __init__(
        self, *, img_size: int | tuple[int, int], patch_size: int, in_chans: int, embed_dim: int, **options: Any
    ) -> None:
        del options
        super().__init__()
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 1))
        self.norm = nn.Identity()
        self.patch_size = (patch_size, patch_size)
        y, x = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (y // patch_size, x // patch_size)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Patches (n, y, x, embed_dim) of tiles (n, 3, y, x)."""
        patches: torch.Tensor = self.norm(self.proj(tiles).permute(0, 2, 3, 1))
        return patches


@dataclass(frozen=True, slots=True)
class Card:
    """A pathology encoder as its authors describe it; None is "not stated"."""

    name: str
    """As ``encoder=`` takes it, in any case."""
    repository: str
    """On the Hugging Face hub."""
    input_px: int
    """Side of the tiles it takes, in pixels."""
    scaling: tuple[RGB, RGB]
    """Mean and standard deviation per channel, on pixels in [0, 1]."""
    mpp: tuple[float, ...] | None
    """Microns per pixel of the tiles it was trained on, as printed by the authors; None where they print none, or only
    a magnification."""
    n_features: int
    """Width of the features."""
    embedding: Embedding
    """How features are made of the network's output."""
    licence: str
    """Of the weights."""
    gated: bool
    """Whether access has to be requested."""
    layout: Literal["timm", "dinov2", "conch"] = "timm"
    """Whose names the weights carry: timm's, those of Dinov2 in transformers, or CONCH's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What timm has to be told beside the repository's own configuration."""

    @property
    def maps(self) -> str:
        """What goes in place of tiles where fields of view are asked for by maps: windows as large as its tiles, of these maps."""
        return "windows of feature maps" if "embed_layer" in self.options else "windows of patch tokens"

    @property
    def source(self) -> str:
        """Address of the model card."""
        return f"https://huggingface.co/{self.repository}"


_BOTH: Embedding = "class token + mean of patch tokens"
_NC_ND = "CC-BY-NC-ND-4.0"
_SWIGLU: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
_SCALED: dict[str, Any] = {"init_values": 1e-5}
_UNI2: dict[str, Any] = {
    **_SWIGLU, **_SCALED, "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8, "dynamic_img_size": True,
}  # fmt: skip

# Facts from the model cards and, for mpp, the papers (UNI and H0-mini print only "20x", UNI2-h and CONCH nothing), read
# through LazySlide's model zoo, github.com/bioptimus/releases and the registry of github.com/CraigMyles/raw2features.
CARDS: tuple[Card, ...] = (
    Card("UNI", "MahmoodLab/UNI", 224, IMAGENET, None, 1024, "class token", _NC_ND, gated=True, options={**_SCALED, "dynamic_img_size": True}),
    Card("UNI2-h", "MahmoodLab/UNI2-h", 224, IMAGENET, None, 1536, "class token", _NC_ND, gated=True, options=_UNI2),
    Card("CONCH", "MahmoodLab/CONCH", 448, _CLIP, None, 512, "pooled", _NC_ND, gated=True, layout="conch"),
    Card("Virchow2", "paige-ai/Virchow2", 224, IMAGENET, (2.0, 1.0, 0.5, 0.25), 2560, _BOTH, _NC_ND, gated=True, options=_SWIGLU),
    Card("H-optimus-0", "bioptimus/H-optimus-0", 224, _OPTIMUS, (0.5,), 1536, "class token", "Apache-2.0", gated=True, options={**_SCALED, "dynamic_img_size": False}),
    Card("H-optimus-1", "bioptimus/H-optimus-1", 224, _OPTIMUS, (0.5,), 1536, "class token", _NC_ND, gated=True, options={**_SCALED, "dynamic_img_size": False}),
    Card("Prov-GigaPath", "prov-gigapath/prov-gigapath", 224, IMAGENET, (0.5,), 1536, "class token", "Apache-2.0, research use only", gated=True),
    Card("Phikon-v2", "owkin/phikon-v2", 224, IMAGENET, (0.5,), 1024, "class token", "Owkin non-commercial", gated=False, layout="dinov2"),
    Card("Midnight", "kaiko-ai/midnight", 224, _HALF, (2.0, 1.0, 0.5, 0.25), 3072, _BOTH, "MIT", gated=False, layout="dinov2"),
    Card("H0-mini", "bioptimus/H0-mini", 224, _OPTIMUS, None, 1536, _BOTH, _NC_ND, gated=True, options=_SWIGLU),
    Card("CTransPath", "1aurent/swin_tiny_patch4_window7_224.CTransPath", 224, IMAGENET, None, 768, "pooled", "GPL-3.0", gated=False, options={"embed_layer": ConvStem}),
    Card("Lunit-S8", "1aurent/vit_small_patch8_224.lunit_dino", 224, IMAGENET, (0.5, 0.25), 384, "class token", "Lunit non-commercial", gated=False),
    Card("Lunit-S16", "1aurent/vit_small_patch16_224.lunit_dino", 224, _HALF, (0.5, 0.25), 384, "class token", "Lunit non-commercial", gated=False),
)  # fmt: skip
"""All of them; a row more is an encoder more."""


def card_of(name: str) -> Card | None:
    """The card of an encoder by its name or its repository, in any case."""
    wanted = name.lower().removeprefix("hf-hub:")
    return next((card for card in CARDS if wanted in (card.name.lower(), card.repository.lower())), None)


class ClassAndPatches(nn.Module):
    """A vision transformer whose features are its class token followed by the mean of its patch tokens."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (n, 2 * width); register tokens, between the class token and the patches, are left out."""
        tokens = self.trunk.forward_features(tiles)  # type: ignore[operator]
        n_prefix = int(self.trunk.num_prefix_tokens)  # type: ignore[arg-type]
        return torch.cat([tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)], dim=1)
