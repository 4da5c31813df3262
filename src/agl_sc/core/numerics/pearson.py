"""Pearson correlation per gene over the spots of every section, differentiable to any order, mergeable over batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_NO_VARIANCE = 1e-10
_ROUNDING = 16.0
"""A mean is off by at most this many rounding units, so a constant is recognised whatever its size."""
_BLOCK = 1 << 16
"""Entries of a matrix handled at a time on the CPU: temporaries stay in the cache."""

_Block = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums over the spots of every section that Pearson needs; those of several batches or processes can be merged."""

    count: torch.Tensor
    """Number of measured spots, (n_sections, n_genes)."""
    prediction_mean: torch.Tensor
    """(n_sections, n_genes)."""
    measured_mean: torch.Tensor
    """(n_sections, n_genes)."""
    product: torch.Tensor
    """Sum of products of the two sides, both centred, (n_sections, n_genes)."""
    prediction_square: torch.Tensor
    """Sum of squares, centred, (n_sections, n_genes)."""
    measured_square: torch.Tensor
    """Sum of squares, centred, (n_sections, n_genes)."""

    def stacked(self) -> torch.Tensor:
        """All six in the order above, (6, n_sections, n_genes)."""
        count = self.count.to(self.product.dtype).expand_as(self.product)
        squares = self.prediction_square, self.measured_square
        return torch.stack([count, self.prediction_mean, self.measured_mean, self.product, *squares])


def pearson(
    prediction: torch.Tensor,
    measured: torch.Tensor,
    *,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pearson correlation of every gene over spots; 0, with zero gradient of every order, where either side is constant.

    Parameters
    ----------
    prediction
        (n_spots, n_genes).
    measured
        (n_spots, n_genes), about unit variance per gene.
    sections
        Section of every spot, (n_spots,) of int64: Pearson is taken within every section, then averaged over the sections
        in which it is defined. One section by default.
    n_sections
        ``sections`` holds codes below this; the sections that occur are looked up if None.
    mask
        Entries that were measured, (n_spots, n_genes); all by default.

    Returns
    -------
    Correlations, (n_genes,).
    """
    return correlation(moments(prediction, measured, sections=sections, n_sections=n_sections, mask=mask))


def pearson_loss(
    prediction: torch.Tensor,
    measured: torch.Tensor,
    *,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 - Pearson of every gene, (n_genes,); 1 where undefined; parameters of :func:`pearson`."""
    loss = 1 - pearson(prediction, measured, sections=sections, n_sections=n_sections, mask=mask)
    return loss if mask is None else torch.where(mask.any(dim=0), loss, 0.0)


def moments(
    prediction: torch.Tensor,
    measured: torch.Tensor,
    *,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
    mask: torch.Tensor | None = None,
) -> Moments:
    """Centred sums over the spots of every section; parameters of :func:`pearson`."""
    prediction = full(prediction)
    measured = measured.to(prediction.dtype)
    groups = _groups(prediction, sections, n_sections)
    count = groups.count(prediction).expand(-1, prediction.shape[1])
    if mask is not None:
        count = groups.sum(mask.to(prediction.dtype))
        prediction, measured = (_filled(values, mask, groups=groups, count=count) for values in (prediction, measured))
    sums = _CentredProducts.apply(prediction, measured, groups.codes, groups.member)
    return Moments(count, *sums)


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of all spots from those of disjoint sets of them, with the same ``n_sections``; differentiable.

    Chan, Golub and LeVeque (1983).
    """
    count, predicted, measured, *_ = stack = torch.stack([part.stacked() for part in parts], dim=1)
    total = count.sum(dim=0)
    share = count / total.clamp(min=1)
    means = (share * predicted).sum(dim=0), (share * measured).sum(dim=0)
    off = predicted - means[0], measured - means[1]
    pairs = ((off[0], off[1]), (off[0], off[0]), (off[1], off[1]))
    sums = [(within + count * one * other).sum(dim=0) for within, (one, other) in zip(stack[3:], pairs, strict=True)]
    return Moments(total, *means, *sums)


def correlation(of: Moments) -> torch.Tensor:
    """Pearson of every gene, averaged over the sections in which it is defined, (n_genes,); 0 where there is none."""
    defined = _varies(of.prediction_square, of.prediction_mean, of.count)
    defined = defined & _varies(of.measured_square, of.measured_mean, of.count)
    # Masked before the root: its derivative at 0 is infinite, and infinity times zero is NaN.
    norm = torch.where(defined, of.prediction_square * of.measured_square, 1.0).sqrt()
    per_section = torch.where(defined, of.product / norm, 0.0)
    return per_section.sum(dim=0) / defined.sum(dim=0).clamp(min=1)


def _varies(square: torch.Tensor, mean: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    return square > _NO_VARIANCE + rounding(mean, count)


def rounding(mean: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The largest centred sum of squares that a constant may show."""
    return count * (_ROUNDING * torch.finfo(mean.dtype).eps * mean).square()


def full(values: torch.Tensor) -> torch.Tensor:
    """At least float32: sums over spots need the digits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


@dataclass(frozen=True, slots=True)
class _Groups:
    """Spots by section."""

    codes: torch.Tensor | None
    """(n_spots,); None for a single section."""
    member: torch.Tensor | None
    """One row of ones and zeros per section, (n_sections, n_spots)."""

    def count(self, values: torch.Tensor) -> torch.Tensor:
        """Spots per section, (n_sections, 1)."""
        return values.new_full((1, 1), values.shape[0]) if self.member is None else self.member.sum(dim=1, keepdim=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """(n_spots, n_genes) to (n_sections, n_genes)."""
        if self.member is None:
            return values.sum(dim=0, keepdim=True)
        # A product with ones is deterministic on every device, index_add is not; autocast would take it to bf16.
        with torch.autocast(values.device.type, enabled=False):
            return self.member @ values

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """(n_sections, n_genes) to every spot of the section, (n_spots or 1, n_genes)."""
        return values if self.codes is None else values.index_select(0, self.codes)


def _groups(values: torch.Tensor, sections: torch.Tensor | None, n_sections: int | None) -> _Groups:
    if sections is None:
        return _Groups(None, None)
    if n_sections is None:
        present, sections = torch.unique(sections, return_inverse=True)
        n_sections = len(present)
    member = (sections == torch.arange(n_sections, device=sections.device)[:, None]).to(values.dtype)
    return _Groups(sections, member)


def _filled(values: torch.Tensor, mask: torch.Tensor, *, groups: _Groups, count: torch.Tensor) -> torch.Tensor:
    """Entries that were not measured at the mean of those that were: they drop out of every centred sum."""
    mean = groups.sum(torch.where(mask, values, 0.0)) / count.clamp(min=1)
    return torch.where(mask, values, groups.rows(mean))


def by_block(block: _Block, *matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Apply ``block`` to a few genes of all matrices at a time, and join the results along genes."""
    n_spots, n_genes = matrices[0].shape
    width = max(_BLOCK // max(n_spots, 1), 1) if matrices[0].device.type == "cpu" else max(n_genes, 1)
    if n_genes <= width:
        return block(*matrices)
    parts = zip(*(torch.split(matrix, width, dim=1) for matrix in matrices), strict=True)
    return tuple(torch.cat(pieces, dim=1) for pieces in zip(*(block(*part) for part in parts), strict=True))


class _CentredProducts(torch.autograd.Function):
    """Means, and sums of centred products and squares, of every section, without a matrix of temporaries.

    The gradient is affine in both matrices, with coefficients per section and gene, so nothing but the inputs is kept.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: Any) -> tuple[torch.Tensor, ...]:
        prediction, measured, codes, member = inputs
        groups = _Groups(codes, member)
        count = groups.count(prediction).clamp(min=1)

        def block(p: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
            p_mean, m_mean = groups.sum(p) / count, groups.sum(m) / count
            p, m = p - groups.rows(p_mean), m - groups.rows(m_mean)
            product = groups.sum(p * m)
            return p_mean, m_mean, product, groups.sum(p.mul_(p)), groups.sum(m.mul_(m))

        return by_block(block, prediction, measured)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, *output[:2])
        ctx.save_for_forward(*inputs, *output[:2])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        p, m, codes, member, p_mean, m_mean = ctx.saved_tensors
        to_p_mean, to_m_mean, to_product, to_p_square, to_m_square = gradients
        groups = _Groups(codes, member)
        of_p = (to_p_square, to_p_mean, p_mean, m_mean)
        of_m = (to_m_square, to_m_mean, m_mean, p_mean)
        needs = ctx.needs_input_grad
        return (
            _gradient(groups, (p, m), to_product=to_product, own=of_p) if needs[0] else None,
            _gradient(groups, (m, p), to_product=to_product, own=of_m) if needs[1] else None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        p, m, codes, member, p_mean, m_mean = ctx.saved_tensors
        p_tangent, m_tangent, *_ = tangents
        groups = _Groups(codes, member)
        p, m = p - groups.rows(p_mean), m - groups.rows(m_mean)
        dp = torch.zeros_like(p) if p_tangent is None else p_tangent
        dm = torch.zeros_like(m) if m_tangent is None else m_tangent
        count = groups.count(p).clamp(min=1)
        means = groups.sum(dp) / count, groups.sum(dm) / count
        return (*means, groups.sum(dp * m + p * dm), 2 * groups.sum(p * dp), 2 * groups.sum(m * dm))


def _gradient(
    groups: _Groups,
    sides: tuple[torch.Tensor, torch.Tensor],
    *,
    to_product: torch.Tensor,
    own: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """Gradient to the first side; its own square, its mean, and the means of both sides in ``own``."""
    to_square, to_mean, mean, other_mean = own
    slope = 2 * to_square
    constant = to_mean / groups.count(sides[0]).clamp(min=1) - slope * mean - to_product * other_mean

    def block(x: torch.Tensor, y: torch.Tensor, *coefficients: torch.Tensor) -> tuple[torch.Tensor]:
        c, a, b = (groups.rows(values) for values in coefficients)
        return (torch.addcmul(torch.addcmul(c, x, a), y, b),)

    return by_block(block, *sides, constant, slope, to_product)[0]
