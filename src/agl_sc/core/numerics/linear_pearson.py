"""Pearson of a linear head without the matrix of its predictions.

With centred inputs H of the head, predictions of a gene are H w: their product with its measured values y is w . (H'y), and
their sum of squares w . (H'H) w. So the pass over spots is one matrix product whatever follows, and what is left is of the
size of the head's weights.
"""

from typing import Any

import torch

from agl_sc.core.numerics.pearson import Moments, by_block, correlation, full, moments, rounding


def linear_pearson_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    measured: torch.Tensor,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 - Pearson of every gene, (n_genes,); 1 where undefined; parameters of :func:`linear_moments`."""
    found = linear_moments(hidden, weight, bias, measured=measured, sections=sections, n_sections=n_sections, mask=mask)
    loss = 1 - correlation(found)
    return loss if mask is None else torch.where(mask.any(dim=0), loss, 0.0)


def linear_moments(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    measured: torch.Tensor,
    sections: torch.Tensor | None = None,
    n_sections: int | None = None,
    mask: torch.Tensor | None = None,
) -> Moments:
    """Moments of the predictions ``hidden @ weight.T + bias``, as :func:`agl_sc.core.numerics.losses.moments` has them.

    Pearson does not depend on the bias, so :func:`agl_sc.core.numerics.losses.correlation` leaves it without a gradient.

    Parameters
    ----------
    hidden
        Inputs of the head, (n_spots, rank).
    weight
        Of the head, (n_genes, rank).
    bias
        Of the head, (n_genes,).
    measured
        (n_spots, n_genes), about unit variance per gene.
    sections
        Section of every spot, (n_spots,) of int64; one section by default.
    n_sections
        ``sections`` holds codes below this; the sections that occur are looked up if None.
    mask
        Entries that were measured, (n_spots, n_genes); all by default. With a mask, or with fewer spots than sections times
        rank, predictions are the cheaper way, and made.
    """
    if sections is not None and n_sections is None:
        present, sections = torch.unique(sections, return_inverse=True)
        n_sections = len(present)
    if mask is not None or len(hidden) <= hidden.shape[1] * (n_sections or 1):
        prediction = torch.nn.functional.linear(hidden, weight, bias)
        return moments(prediction, measured, sections=sections, n_sections=n_sections, mask=mask)
    hidden = full(hidden)
    weight, bias, measured = (values.to(hidden.dtype) for values in (weight, bias, measured))
    with torch.autocast(hidden.device.type, enabled=False):
        if sections is None or n_sections is None:
            return Moments(*_sums(hidden, weight, bias, measured=measured))
        inside = [sections == code for code in range(n_sections)]
        parts = [_sums(hidden[rows], weight, bias, measured=measured[rows]) for rows in inside]
    return Moments(*(torch.cat(sums) for sums in zip(*parts, strict=True)))


def _sums(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, measured: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Fields of :class:`Moments` for spots of one section, (1, n_genes) each."""
    count = hidden.new_full((), max(len(hidden), 1))
    mean = hidden.sum(dim=0) / count
    centred = hidden - mean
    # What is constant but for rounding must not vary: no gene could tell.
    centred = torch.where(centred.square().sum(dim=0) > rounding(mean, count), centred, 0.0)
    # w' G w of G = H'H loses half the digits where a prediction hardly varies, and may come out below 0; |R w|^2 loses none.
    root = torch.linalg.qr(centred.detach(), mode="r")[1]
    product, square = _Products.apply(weight, measured.T @ centred, centred.T @ centred, root)

    def block(values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        middle = values.sum(dim=0, keepdim=True) / count
        return middle, (values - middle).square().sum(dim=0, keepdim=True)

    measured_mean, measured_square = by_block(block, measured)
    n_spots = hidden.new_full((1, 1), len(hidden)).expand_as(measured_mean)
    predicted_mean = torch.nn.functional.linear(mean[None], weight, bias)
    return n_spots, predicted_mean, measured_mean, product[None], square[None], measured_square


class _Products(torch.autograd.Function):
    """Per gene, w . c and w . G w, from weights w, rows c, and G; a root R of G = R'R keeps the digits of the latter."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight, rows, gram, root = inputs
        ctx.save_for_backward(weight, rows, gram)
        mapped = weight @ root.T
        return _by_row(weight, rows), _by_row(mapped, mapped)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *_ProductsGradient.apply(*ctx.saved_tensors, *gradients), None


class _ProductsGradient(torch.autograd.Function):
    """Gradient of both to w, c and G, itself differentiated by hand: on a graph of its operations it takes twice as long."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(*inputs)
        weight, rows, gram, to_product, to_square = inputs
        scaled = weight * to_square[:, None]
        to_weight = (scaled @ (2 * gram)).addcmul_(rows, to_product[:, None])
        return to_weight, weight * to_product[:, None], scaled.T @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight, rows, gram, to_product, to_square = ctx.saved_tensors
        along_weight, along_rows, along_gram = gradients
        inner, outer = weight @ (along_gram + along_gram.T), along_weight @ (2 * gram)
        a, s = to_product[:, None], to_square[:, None]
        scaled = along_weight * (2 * s)
        return (
            torch.addcmul(along_rows * a, inner + outer, s),
            along_weight * a,
            scaled.T @ weight,
            _by_row(along_weight, rows) + _by_row(along_rows, weight),
            _by_row(weight, outer) + _by_row(weight, inner) / 2,
        )


def _by_row(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Inner products of rows, without a matrix of products."""
    return torch.bmm(one[:, None], other[:, :, None])[:, 0, 0]
