"""Named tensors: parameters, states, and parts of them."""

from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]


def part(tensors: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    """Tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


Parameters = dict[str, torch.Tensor]


def call(module: torch.nn.Module, parameters: Parameters, *inputs: object) -> torch.Tensor:
    """Output of a module at other parameters; buffers, such as BatchNorm's running statistics, are left as they are."""
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    output: torch.Tensor = torch.func.functional_call(module, {**buffers, **parameters}, inputs)
    return output
