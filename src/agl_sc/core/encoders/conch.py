"""CONCH's image tower under the names of its weights: timm's vision transformer, and a query that attends to its tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

TRUNK: dict[str, Any] = {
    "img_size": 448, "patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4,
}  # fmt: skip
"""What timm is told, as in ``conch_ViT-B-16.json`` of github.com/mahmoodlab/CONCH."""
N_FEATURES = 512
_N_HEADS = 8
_OF_TEXTS = (
    "text.", "text_decoder.", "logit_scale", "visual.proj_contrast", "visual.attn_pool_caption.", "visual.ln_caption.",
)  # fmt: skip
"""Beginnings of the names of what texts are read, written and compared with."""


class AttentionPool(nn.Module):
    """One learned query that attends to the tokens of a tile."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, N_FEATURES))
        self.attn = nn.MultiheadAttention(N_FEATURES, _N_HEADS, kdim=width, vdim=width, batch_first=True)
        self.ln_q = nn.LayerNorm(N_FEATURES)
        self.ln_k = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features (n, 512) of tokens (n, n_tokens, width)."""
        tokens = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), 1, -1)
        attended: torch.Tensor = self.attn(query, tokens, tokens, need_weights=False)[0]
        return attended[:, 0]


class ImageTower(nn.Module):
    """From tiles to the features that the authors recommend for images alone, before the projection to texts."""

    num_features = N_FEATURES

    def __init__(self, trunk: VisionTransformer) -> None:
        super().__init__()
        self.trunk = trunk
        self.attn_pool_contrast = AttentionPool(trunk.num_features)
        self.ln_contrast = nn.LayerNorm(N_FEATURES)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (n, 512) of scaled tiles (n, 3, y, x)."""
        features: torch.Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(tiles)))
        return features


def conch_module(state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build the image tower of CONCH (Lu et al., 2024, Nature Medicine 30, 863-874) with its weights.

    Features are those of ``encode_image(..., proj_contrast=False, normalize=False)`` in the authors' package.

    Parameters
    ----------
    state
        Of the whole model; what belongs to texts is left out, everything else has to fit.

    Raises
    ------
    ValueError
        The weights are not those of CONCH.
    """
    given = {name: tensor for name, tensor in state.items() if not name.startswith(_OF_TEXTS)}
    tower = ImageTower(VisionTransformer(num_classes=0, **TRUNK))
    own = {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}
    odd = sorted(own.keys() ^ given.keys()) or [name for name in own if own[name].shape != given[name].shape]
    if odd:
        msg = f"The weights are not those of CONCH (e.g. {odd[0]!r}); take pytorch_model.bin of huggingface.co/MahmoodLab/CONCH."
        raise ValueError(msg)
    tower.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in given.items()})
    return tower
