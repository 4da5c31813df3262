"""Convolutions on the CPU that take what comes after them in the same pass over memory: the same features up to rounding."""

from collections.abc import Sequence
from functools import cache

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import pad_same
from torch import nn

_KINDS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
}
"""What oneDNN calls an activation, and its settings."""


class Fused(nn.Module):
    """A convolution and the activation after it; on the CPU, where nothing is learned, oneDNN does both at once.

    A depthwise convolution of every second pixel whose padding is larger at one end than at the other copies its input to
    pad it. With a row and a column of zeros in front of its kernel it needs one more pixel at the other end instead, which
    oneDNN takes to be zero without a copy.
    """

    wider: torch.Tensor | None
    """The kernel with zeros in front."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        self.convolution, self.activation = convolution, activation
        self.register_buffer("wider", _wider(convolution), persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Of inputs (n, n_in, y, x)."""
        own = self.convolution
        is_plain = values.device.type == "cpu" and values.dtype == own.weight.dtype == torch.float32
        is_plain = is_plain and not torch.is_autocast_enabled("cpu")
        if not is_plain or torch.is_grad_enabled() or torch.compiler.is_compiling():
            done: torch.Tensor = self.activation(own(values))
            return done
        weight: torch.Tensor = own.weight
        padding: Sequence[int] | str = own.padding
        if self.wider is not None and not any(n % 2 for n in values.shape[2:]):
            weight, padding = self.wider, [(n - 1) // 2 for n in own.kernel_size]
        elif isinstance(own, Conv2dSame):
            values, padding = pad_same(values, list(own.kernel_size), list(own.stride), list(own.dilation)), [0, 0]
        return _convolved(own, self.activation, values, weight=weight, padding=padding)


def can_fuse(convolution: nn.Conv2d, activation: nn.Module) -> bool:
    """Whether :class:`Fused` can take the place of a convolution and the activation after it, on this machine."""
    is_usual = type(convolution) in (nn.Conv2d, Conv2dSame) and convolution.padding_mode == "zeros"
    return is_usual and not isinstance(convolution.padding, str) and type(activation) in _KINDS and _has_onednn()


@cache
def _has_onednn() -> bool:
    """Whether torch was built with what it takes, not everywhere there, and does with it what the layers do."""
    convolution, values = nn.Conv2d(1, 1, 3, stride=2, padding=1), torch.arange(30.0).view(1, 1, 5, 6) - 10
    try:
        with torch.inference_mode():
            done = _convolved(convolution, nn.ReLU6(), values, weight=convolution.weight, padding=(1, 1))
            return torch.allclose(done, convolution(values).clamp(0, 6), atol=1e-4)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False


def _convolved(
    own: nn.Conv2d, activation: nn.Module, values: torch.Tensor, *, weight: torch.Tensor, padding: Sequence[int] | str
) -> torch.Tensor:
    kind, settings = _KINDS[type(activation)]
    done: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(  # what torch.compile makes of the two on the CPU
        values, weight, own.bias, padding, own.stride, own.dilation, own.groups, kind, settings, ""
    )
    return done


def _wider(convolution: nn.Conv2d) -> torch.Tensor | None:
    """The kernel with zeros in front, of a depthwise convolution that pads more at the end; None of any other."""
    is_odd = all(n % 2 and n > 1 for n in convolution.kernel_size)
    is_depthwise = convolution.groups == convolution.in_channels
    if not (isinstance(convolution, Conv2dSame) and is_odd and is_depthwise):
        return None
    if convolution.stride != (2, 2) or convolution.dilation != (1, 1):
        return None
    return nn.functional.pad(convolution.weight.detach(), (1, 0, 1, 0))
