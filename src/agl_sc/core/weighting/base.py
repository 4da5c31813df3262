"""The protocol of all weightings."""

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

if TYPE_CHECKING:
    from agl_sc.core.network.bilevel import Bilevel


class Weighting(nn.Module):
    """From losses per gene to the training loss: the protocol of every method, and of your own.

    A subclass says at least :meth:`forward` and :meth:`weights`; it is made with the numbers of targets and of all genes, on the
    device of the training, after torch's generator has been seeded. Targets come first among the genes, auxiliary genes follow by
    prior rank. What is learned along with the network are parameters that :meth:`trained` names; what is learned from
    validation spots is learned in :meth:`before_epoch` or :meth:`before_update` and stepped by optimisers of its own, which
    :meth:`optimizers` names. Parameters, buffers and these optimisers are in the checkpoint.

    Parameters
    ----------
    n_targets
        Number of leading genes that are targets.
    n_genes
        Number of targets and auxiliary genes.
    """

    selects: ClassVar[bool] = True
    """Whether a gene of little weight is left out in the end; it is trained like the others where not."""

    def __init__(self, n_targets: int, n_genes: int) -> None:
        super().__init__()
        self.n_targets = n_targets
        self.n_genes = n_genes

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Training loss, a scalar, of the losses of the active genes, (n_active,)."""
        raise NotImplementedError(_undefined(self, "forward(losses)"))

    def weights(self) -> NDArray[np.float64]:
        """Present weight of every gene, in [0, 1], (n_genes,)."""
        raise NotImplementedError(_undefined(self, "weights()"))

    def selected(self) -> NDArray[np.bool_]:
        """Genes that the trained network may be asked for, (n_genes,)."""
        return self.weights() >= 0.5 if self.selects else np.ones(self.n_genes, dtype=bool)

    @property
    def n_active(self) -> int:
        """Number of leading genes of weight above zero: no other need be computed."""
        return self.n_genes

    @property
    def cutoff(self) -> float | None:
        """Learned cutoff on the rank axis, if that is what is learned."""
        return None

    @property
    def n_skipped(self) -> int:
        """Outer steps left out so far because they were not finite."""
        return 0

    def trained(self) -> list[nn.Parameter]:
        """Parameters that are trained along with the network."""
        return []

    def before_epoch(self, training: "Bilevel", epoch: int) -> None:
        """Learn before an epoch, the first being 0."""

    def before_update(self, training: "Bilevel", index: torch.Tensor) -> None:
        """Learn before the update on the training spots ``index``."""

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Of what the hooks learn."""
        return {}


def _undefined(weighting: Weighting, what: str) -> str:
    return f"{type(weighting).__name__} does not define {what}, which every weighting does."
