"""Batch normalisation folded into the convolution before it, and both fused with what follows: the same features up to rounding."""

import copy
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from agl_sc.core.encoders.fused import Fused, can_fuse
from agl_sc.core.encoders.several import Several

_SIDE_PX = 96
_SAME = 1e-3
_KINDS = (nn.BatchNorm2d, BatchNormAct2d)


def folded(module: nn.Module, input_px: int | None = None) -> nn.Module:
    """A copy of a network on the CPU in which convolutions do what the batch normalisation after them did.

    The module itself where it is of several encoders, where there is nothing to fold, or where the copy's features are others, as when what a convolution
    returns goes elsewhere too.

    Parameters
    ----------
    module
        In evaluation mode; takes scaled tiles (n, 3, y, x).
    input_px
        Side of the tiles it takes, in pixels; None where it takes any.
    """
    if isinstance(module, Several) or not any(type(part) in _KINDS for part in module.modules()):
        return module
    side = input_px or _SIDE_PX
    tile = torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(0))
    new = copy.deepcopy(module)
    with torch.no_grad():  # inference tensors could not be used outside of it
        before = module(tile)
        for convolution, normalisation in _pairs(new, tile):
            _fold(new, convolution, normalisation)
        differences = (before - new(tile)).abs()
    return new if bool(differences.max() <= _SAME * before.abs().max()) else module


def _pairs(module: nn.Module, tile: torch.Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the normalisations that take what they return, each called once."""
    returned: list[tuple[str, torch.Tensor]] = []
    taken: list[tuple[str, torch.Tensor]] = []
    handles = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            handles.append(part.register_forward_hook(_noted(returned, name)))
        elif type(part) in _KINDS:
            handles.append(part.register_forward_pre_hook(_noted(taken, name)))
    module(tile)
    for handle in handles:
        handle.remove()
    came_from = {id(tensor): name for name, tensor in returned}
    calls = [name for name, _ in (*returned, *taken)]
    pairs = [(came_from[id(tensor)], name) for name, tensor in taken if id(tensor) in came_from]
    return [pair for pair in pairs if all(calls.count(name) == 1 for name in pair)]


def _noted(into: list[tuple[str, torch.Tensor]], name: str) -> Any:
    """A hook that keeps what a module returns, or what it takes where it is called before."""

    def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | None = None) -> None:
        into.append((name, inputs[0] if output is None else output))

    return hook


def _fold(module: nn.Module, convolution: str, normalisation: str) -> None:
    old = module.get_submodule(normalisation)
    new: nn.Conv2d = fuse_conv_bn_eval(module.get_submodule(convolution), old)  # type: ignore[assignment, arg-type, type-var]
    after = getattr(old, "act", nn.Identity())
    is_fused = can_fuse(new, after)
    module.set_submodule(convolution, Fused(new, after) if is_fused else new)
    module.set_submodule(normalisation, nn.Identity() if is_fused else after)
