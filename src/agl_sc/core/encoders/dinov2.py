"""Weights of Dinov2 as transformers names them, in timm's vision transformer."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

_RENAMED = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "encoder.layer.": "blocks.",
    "attention.output.dense.": "attn.proj.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in.": "mlp.fc1.",
    "mlp.weights_out.": "mlp.fc2.",
    "layernorm.": "norm.",
}


def dinov2_module(config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> nn.Module:
    """Build the network that ``config.json`` describes, with its weights; features are the class token.

    Parameters
    ----------
    config
        Of a ``Dinov2Model`` of transformers.
    state
        Its weights.
    """
    gated = bool(config["use_swiglu_ffn"])
    # The gated perceptron is 2/3 as wide, rounded up to 8, and timm counts both of its halves.
    hidden = int(config["hidden_size"] * config["mlp_ratio"])
    hidden = 2 * ((hidden * 2 // 3 + 7) // 8 * 8) if gated else hidden
    options: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if gated else {}
    module = VisionTransformer(
        img_size=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=hidden / config["hidden_size"],
        init_values=1.0,
        num_classes=0,
        dynamic_img_size=True,
        **options,
    )
    module.load_state_dict(timm_names(state))
    return module


def timm_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Entries under timm's names; queries, keys and values become one matrix."""
    renamed: dict[str, torch.Tensor] = {}
    for old, tensor in state.items():
        if old.endswith("mask_token") or ".attention.attention.key." in old or ".attention.attention.value." in old:
            continue
        if ".attention.attention.query." in old:
            parts = [state[old.replace(".query.", f".{part}.")] for part in ("query", "key", "value")]
            new, tensor = old.replace("attention.attention.query.", "attn.qkv."), torch.cat(parts)
        else:
            new = old
        for theirs, ours in _RENAMED.items():
            new = new.replace(theirs, ours)
        renamed[new] = tensor
    return renamed
