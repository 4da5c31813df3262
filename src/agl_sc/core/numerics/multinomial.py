"""List-wise ranking of the spots of a section: how its counts of a gene are shared among them, mergeable over batches."""

from dataclasses import dataclass

import torch

from agl_sc.core.numerics.pearson import full


@dataclass(frozen=True, slots=True)
class Shared:
    """Sums over the spots of every section that the likelihood needs; those of several batches or processes can be merged."""

    counts: torch.Tensor
    """Sum of counts, (n_sections, n_genes)."""
    product: torch.Tensor
    """Sum of counts times log rate, (n_sections, n_genes)."""
    largest: torch.Tensor
    """Largest log rate, a constant, (n_sections, n_genes); far below all rates where a section has no spot."""
    exponentials: torch.Tensor
    """Sum of exponentials of log rates less the largest, (n_sections, n_genes)."""

    def stacked(self) -> torch.Tensor:
        """All four in the order above, (4, n_sections, n_genes)."""
        return torch.stack([self.counts, self.product, self.largest, self.exponentials])


def multinomial_loss(
    log_rate: torch.Tensor,
    counts: torch.Tensor,
    *,
    log_library: torch.Tensor,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
) -> torch.Tensor:
    r"""Mean negative log-likelihood of the spot that a count of a gene is found in, given the section it is found in.

    With log rates :math:`\eta_i = log\_rate_i + log\_library_i` a section adds
    :math:`\sum_i c_i (\log \sum_j \exp \eta_j - \eta_i)`: a multinomial over its spots, which is the Poisson likelihood given
    the section's sum. The level of a section therefore does not matter, the order of its spots does, and a spot weighs as
    much as it was counted. Nishimura et al., NeurIPS 2025 (ListSTRank), with the library as an offset.

    Parameters
    ----------
    log_rate
        Log of the share of a gene in a spot's counts, up to a constant per section, (n_spots, n_genes).
    counts
        Raw counts, (n_spots, n_genes).
    log_library
        Log of the total counts of every spot, (n_spots,).
    sections
        Section of every spot, (n_spots,) of int64; one section by default.
    n_sections
        ``sections`` holds codes below this; the sections that occur are looked up if None.

    Returns
    -------
    In nats per count, (n_genes,); 0 where there is none.
    """
    parts = shared(log_rate, counts, log_library=log_library, sections=sections, n_sections=n_sections)
    return loss_of_shared(parts.stacked()[None])


def shared(
    log_rate: torch.Tensor,
    counts: torch.Tensor,
    *,
    log_library: torch.Tensor,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
) -> Shared:
    """Sums over the spots of every section; parameters of :func:`multinomial_loss`."""
    rates, counts = full(log_rate) + log_library[:, None], full(counts)
    if sections is None:
        sections, n_sections = torch.zeros(len(rates), dtype=torch.int64, device=rates.device), 1
    elif n_sections is None:
        present, sections = torch.unique(sections, return_inverse=True)
        n_sections = len(present)
    parts = [_of_spots(rates, counts, (sections == code)[:, None]) for code in range(n_sections)]
    return Shared(*(torch.stack(each) for each in zip(*parts, strict=True)))


def loss_of_shared(parts: torch.Tensor) -> torch.Tensor:
    """Losses of disjoint sets of spots together, (n_genes,), from their sums (n_sets, 4, n_sections, n_genes)."""
    counts, product, largest, exponentials = parts.unbind(dim=1)
    top = largest.amax(dim=0)
    total = (exponentials * (largest - top).exp()).sum(dim=0)
    number = counts.sum(dim=0)
    found = number > 0  # masked before the logarithm: its derivative at 0 is infinite, and infinity times zero is NaN
    normaliser = top + torch.where(found, total, 1.0).log()
    return (torch.where(found, number * normaliser, 0.0) - product.sum(dim=0)).sum(dim=0) / number.sum(dim=0).clamp(
        min=1
    )


def _of_spots(rates: torch.Tensor, counts: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The four sums over the spots of one section, (n_genes,) each."""
    lowest = torch.finfo(rates.dtype).min / 4
    within = torch.where(inside, rates, lowest)
    largest = within.detach().amax(dim=0) if len(rates) else rates.new_full(rates.shape[1:], lowest)
    own = torch.where(inside, counts, 0.0)
    exponentials = torch.where(inside, (within - largest).exp(), 0.0).sum(dim=0)
    return own.sum(dim=0), (own * rates).sum(dim=0), largest, exponentials
