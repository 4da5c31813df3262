"""A trained network in arithmetic without rounding, so that a spot comes out the same whichever others are with it.

A matrix product of a numerical library adds up in an order that depends on how many rows it is given, on where a row
stands, and on the processor: the last digits differ. Here the inputs of every layer are rounded to multiples of a power of
two, and its weights to multiples of another, which are so coarse that all products and all partial sums are whole numbers of
units below 2^53. Double precision holds these exactly, and exact sums are the same in any order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.special
import torch

from agl_sc.core.arrays import FloatArray
from agl_sc.core.spots.scaling import CLIP

_EXACT_BITS = 53
"""Whole numbers up to 2^53 are exact in double precision."""
_FEATURE_BITS, _BITS = 20, 28
"""Units that the range of features, and of what the network makes of them, is divided into, as powers of two: of many
features the weights need more of the 53 bits."""


@dataclass(frozen=True, slots=True)
class ExactLayer:
    """A linear layer whose sums are exact."""

    weight: FloatArray
    """Rounded, (n_inputs, n_outputs)."""
    bias: FloatArray
    """(n_outputs,)."""
    step: float
    """Inputs are rounded to multiples of this."""
    bound: float
    """On the absolute value of every output, where inputs keep within theirs."""

    @classmethod
    def of(cls, weight: FloatArray, bias: FloatArray | None = None, *, bound: float, n_bits: int = _BITS) -> Self:
        """The layer for inputs of at most ``bound``.

        Parameters
        ----------
        weight
            (n_outputs, n_inputs).
        bias
            (n_outputs,); 0 by default.
        bound
            On the absolute value of every input.
        n_bits
            The range of the inputs, up to ``bound``, is divided into 2^n_bits units or more than half as many.
        """
        bias = np.zeros(len(weight)) if bias is None else bias
        total = np.abs(weight).sum(axis=1)
        units = 2.0 ** (
            _EXACT_BITS - 1 - n_bits
        )  # that the weights of an output may add up to; rounding adds as much at most
        steps = _power_of_two(total / units)
        rounded = np.rint(weight / steps[:, None]) * steps[:, None]
        bound_out = float((np.abs(rounded).sum(axis=1) * bound + np.abs(bias)).max(initial=0.0))
        return cls(rounded.T.copy(), bias, float(_power_of_two(np.array(bound / 2.0**n_bits))), bound_out)

    def __call__(self, inputs: FloatArray) -> FloatArray:
        """Outputs (n_spots, n_outputs) of inputs (n_spots, n_inputs)."""
        outputs: FloatArray = (np.rint(inputs / self.step) * self.step) @ self.weight + self.bias
        return outputs


def _power_of_two(values: FloatArray) -> FloatArray:
    """The least power of two that is no smaller, 1 for 0."""
    mantissa, exponent = np.frexp(values)
    power: FloatArray = np.ldexp(1.0, exponent - (mantissa == 0.5))
    return np.where(values > 0, power, 1.0)


@dataclass(frozen=True, slots=True)
class ExactNetwork:
    """The network of :mod:`agl_sc.core.network.network` in evaluation mode."""

    first: ExactLayer
    """From features to the linear part of the trunk and to the hidden layer, side by side."""
    outer: ExactLayer
    """From the hidden layer to the trunk."""
    head: ExactLayer
    """From the trunk to genes."""

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> Self:
        """With the parameters of a state dict; inputs are features within :data:`agl_sc.core.spots.scaling.CLIP`."""
        at = {name: tensor.double().numpy() for name, tensor in state.items()}
        rank = len(at["linear.weight"])
        weight = np.vstack([at["linear.weight"], at["inner.weight"]])
        bias = np.concatenate([np.zeros(rank), at["inner.bias"]])
        first = ExactLayer.of(weight, bias, bound=CLIP, n_bits=_FEATURE_BITS)
        outer = ExactLayer.of(at["outer.weight"], bound=first.bound)  # |gelu(x)| <= |x|
        head = ExactLayer.of(at["head.weight"], at["head.bias"], bound=first.bound + outer.bound)
        return cls(first, outer, head)

    def __call__(self, features: FloatArray) -> FloatArray:
        """Outputs (n_spots, n_genes) of scaled features (n_spots, n_features); NaN for rows with NaN."""
        found = self.first(features)
        linear, hidden = np.split(found, [self.outer.weight.shape[1]], axis=1)
        return self.head(linear + self.outer(_gelu(hidden)))


def _gelu(values: FloatArray) -> FloatArray:
    """Value by value, as :func:`torch.nn.functional.gelu`."""
    activated: FloatArray = values * scipy.special.ndtr(values)
    return activated


def softplus(values: FloatArray) -> FloatArray:
    """log(1 + exp(x)), value by value, as :func:`torch.nn.functional.softplus`."""
    return np.logaddexp(0.0, values)
