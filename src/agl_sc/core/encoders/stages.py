"""What the stages of a convolutional encoder see beside its last: mean and spread of their feature maps."""

from typing import Any

import torch
from torch import nn

_NOTHING = 1e-6
"""Added to a variance, for the root has no derivative at 0."""


def has_stages(module: nn.Module) -> bool:
    """Whether a timm network has feature maps that shrink from stage to stage; a plain vision transformer has not."""
    stages = getattr(module, "feature_info", None)
    return stages is not None and len({stage["reduction"] for stage in stages}) > 1


def n_outputs(module: nn.Module) -> int:
    """Width of what a timm network without classifier returns."""
    return int(getattr(module, "head_hidden_size", None) or module.num_features)  # type: ignore[arg-type]


def spread(variance: torch.Tensor) -> torch.Tensor:
    """Its root, with a derivative at 0; what rounding has made negative is 0."""
    return (variance.clamp_min(0) + _NOTHING).sqrt()


class WithStages(nn.Module):
    """A timm network whose features are its own, followed by mean and spread of the maps of every stage.

    Early stages tell of colour and texture, at the scale of nuclei; what the last one pools was trained to tell objects
    apart.
    """

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        stages: Any = trunk.feature_info
        self.num_features = n_outputs(trunk) + 2 * sum(stage["num_chs"] for stage in stages)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features (n, num_features) of scaled tiles (n, 3, y, x)."""
        last, maps = self.trunk.forward_intermediates(tiles)  # type: ignore[operator]
        own = self.trunk.forward_head(last, pre_logits=True)  # type: ignore[operator]
        maps = [each.float() for each in maps]
        means = [each.mean(dim=(2, 3)) for each in maps]
        squares = [(each * each).mean(dim=(2, 3)) for each in maps]  # a tenth of the time of var
        spreads = [spread(square - mean**2) for square, mean in zip(squares, means, strict=True)]
        return torch.cat([own, *means, *spreads], dim=1)
