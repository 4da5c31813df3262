"""Losses per gene of a batch, as sums that pieces of the batch and processes can put together."""

from dataclasses import dataclass
from typing import Any

import torch

from agl_sc.core.config import LossName
from agl_sc.core.numerics.linear_pearson import linear_moments
from agl_sc.core.numerics.losses import mse_loss, negative_binomial_loss, poisson_loss
from agl_sc.core.numerics.multinomial import loss_of_shared, shared
from agl_sc.core.numerics.pearson import Moments, correlation, merge, moments


@dataclass(frozen=True, slots=True)
class Batch:
    """Spots of one step, on one device."""

    inputs: torch.Tensor
    """Of the network, (n_spots, n_features)."""
    measured: torch.Tensor
    """Scaled expression, or raw counts for a likelihood, of the leading genes, (n_spots, n_genes)."""
    sections: torch.Tensor
    """Section of every spot, (n_spots,)."""
    present: torch.Tensor
    """Sections of the whole batch that this may be a piece of, increasing."""
    log_library: torch.Tensor
    """Log of the total counts of every spot, (n_spots,); empty unless the loss is a likelihood."""

    def groups(self) -> dict[str, Any]:
        """Sections as :func:`agl_sc.core.numerics.losses.moments` takes them; nothing where there is one."""
        if len(self.present) == 1:
            return {}
        return {"sections": torch.searchsorted(self.present, self.sections), "n_sections": len(self.present)}


@dataclass(frozen=True, slots=True)
class Objective:
    """One loss per gene."""

    name: LossName
    """Which."""
    panels: torch.Tensor | None
    """Genes measured in every section, (n_sections, n_genes) of bool; None where all are."""
    log_share: torch.Tensor
    """Log of a gene's mean share of the counts in every section, (n_sections, n_genes); empty without a likelihood."""
    log_dispersion: torch.Tensor
    """Log of the negative-binomial dispersion of every gene, (n_genes,); empty otherwise."""

    def parts(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, batch: Batch) -> torch.Tensor:
        """Sums over spots of predictions ``hidden @ weight.T + bias``, (n_sums, n_groups, n_genes)."""
        if self.name == "pearson":
            return linear_moments(hidden, weight, bias, measured=batch.measured, **batch.groups()).stacked()
        return self.parts_of(torch.nn.functional.linear(hidden, weight, bias), batch)

    def parts_of(self, predicted: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Sums over spots of predictions of the leading genes (n_spots, n_genes), (n_sums, n_groups, n_genes)."""
        if self.name == "pearson":
            return moments(predicted, batch.measured, **batch.groups()).stacked()
        mask = None if self.panels is None else self.panels[batch.sections, : predicted.shape[1]]
        if self.name == "multinomial":
            counts = batch.measured if mask is None else torch.where(mask, batch.measured, 0.0)
            return shared(predicted, counts, log_library=batch.log_library, **batch.groups()).stacked()
        if mask is None and not len(predicted):  # a piece without spots: the mean would be NaN
            mask = torch.ones_like(predicted, dtype=torch.bool)
        losses = self._means(predicted, batch, mask)
        count = losses.new_full(losses.shape, len(predicted)) if mask is None else mask.sum(dim=0).to(losses.dtype)
        return torch.stack([count, count * losses])[:, None]

    def _means(self, predicted: torch.Tensor, batch: Batch, mask: torch.Tensor | None) -> torch.Tensor:
        n_genes = predicted.shape[1]
        if self.name == "mse":
            return mse_loss(predicted, batch.measured, mask=mask)
        log_rate = predicted + self.log_share[batch.sections, :n_genes]
        if self.name == "poisson":
            return poisson_loss(log_rate, batch.measured, log_library=batch.log_library, mask=mask)
        dispersion = self.log_dispersion[:n_genes]
        return negative_binomial_loss(
            log_rate, batch.measured, log_library=batch.log_library, log_dispersion=dispersion, mask=mask
        )

    def losses(self, parts: torch.Tensor) -> torch.Tensor:
        """Losses of the pieces together, (n_genes,), from their ``parts`` (n_pieces, n_sums, n_groups, n_genes)."""
        if self.name == "pearson":
            return 1 - correlation(merge([Moments(*part) for part in parts]))
        if self.name == "multinomial":
            return loss_of_shared(parts)
        count, total = parts.sum(dim=(0, 2)).unbind()
        return total / count.clamp(min=1)

    def of_batch(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, batch: Batch) -> torch.Tensor:
        """Losses of one whole batch, (n_genes,)."""
        return self.losses(self.parts(hidden, weight, bias, batch=batch)[None])
