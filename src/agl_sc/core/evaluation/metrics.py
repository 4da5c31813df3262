"""Per-gene metrics of two arrays: one number per gene out; NaN where a metric is undefined, never a silent 0."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from agl_sc.core.arrays import FloatArray
from agl_sc.core.numerics.constant import constant

Metric = Callable[[FloatArray, FloatArray], FloatArray]
Where = ParamSpec("Where")
Computes = Callable[Concatenate[FloatArray, FloatArray, Where], FloatArray]

_FEWEST_OTHERS = 3
"""Correlations that a correlation is taken over."""


def per_gene(metric: Computes[Where]) -> Computes[Where]:
    """The metric on the genes that are finite in every spot on both sides, in double precision; NaN for the others."""

    @wraps(metric)
    def on_complete(
        measured: FloatArray, predicted: FloatArray, /, *args: Where.args, **kwargs: Where.kwargs
    ) -> FloatArray:
        if measured.shape != predicted.shape or measured.ndim != 2:
            msg = f"measured is {measured.shape} and predicted {predicted.shape}; both must be (n_spots, n_genes) of the same spots and genes."
            raise ValueError(msg)
        values = np.full(measured.shape[1], np.nan)
        complete = np.isfinite(measured).all(axis=0) & np.isfinite(predicted).all(axis=0)
        if len(measured) and complete.any():
            kept = measured[:, complete].astype(np.float64), predicted[:, complete].astype(np.float64)
            values[complete] = metric(kept[0], kept[1], *args, **kwargs)
        return values

    return on_complete


def ratio(numerator: FloatArray, denominator: FloatArray, *, undefined: NDArray[np.bool_]) -> FloatArray:
    """Quotient per gene, NaN where it is undefined or would be by 0."""
    defined = ~undefined & (denominator != 0)
    quotient: FloatArray = np.divide(numerator, denominator, out=np.full(len(defined), np.nan), where=defined)
    return quotient


@per_gene
def pearson(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Pearson correlation over spots; NaN where either side is constant.

    Parameters
    ----------
    measured
        (n_spots, n_genes).
    predicted
        (n_spots, n_genes).

    Returns
    -------
    (n_genes,).
    """
    undefined = constant(measured) | constant(predicted)
    measured, predicted = measured - measured.mean(axis=0), predicted - predicted.mean(axis=0)
    norm = np.sqrt((measured**2).sum(axis=0)) * np.sqrt((predicted**2).sum(axis=0))
    return ratio((measured * predicted).sum(axis=0), norm, undefined=undefined)


def spearman(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Spearman correlation over spots, ties averaged, (n_genes,); NaN where either side is constant."""
    # Most spots of a sparse gene are tied at 0: with any other rule for ties than their mean rank, the order of rows would count.
    return pearson(rankdata(measured, axis=0), rankdata(predicted, axis=0))


@per_gene
def mse(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Mean squared error over spots, (n_genes,), in squared units of the input."""
    error: FloatArray = np.mean((measured - predicted) ** 2, axis=0)
    return error


@per_gene
def r2(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    r"""Coefficient of determination :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`, (n_genes,).

    At most 1, 0 for the mean of the measured, negative for worse; NaN where the measured gene is constant.
    """
    total = ((measured - measured.mean(axis=0)) ** 2).sum(axis=0)
    return 1 - ratio(((measured - predicted) ** 2).sum(axis=0), total, undefined=constant(measured))


@per_gene
def concordance(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    r"""Concordance correlation, (n_genes,): Pearson times how near the pairs lie to the line of identity.

    :math:`2 s_{xy} / (s_x^2 + s_y^2 + (\bar x - \bar y)^2)` with moments over n. NaN where either side is constant, as
    Pearson is.

    References
    ----------
    Lin, A concordance correlation coefficient to evaluate reproducibility, Biometrics 45, 1989.
    """
    means = measured.mean(axis=0), predicted.mean(axis=0)
    covariance = ((measured - means[0]) * (predicted - means[1])).mean(axis=0)
    spread = measured.var(axis=0) + predicted.var(axis=0) + (means[0] - means[1]) ** 2
    return ratio(2 * covariance, spread, undefined=constant(measured) | constant(predicted))


@per_gene
def variance_ratio(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """Variance of the predicted over variance of the measured gene, (n_genes,).

    Below 1 the prediction is smoother than the measurement, noise of the measurement included; a constant prediction
    has 0. NaN where the measured gene is constant.
    """
    return ratio(predicted.var(axis=0), measured.var(axis=0), undefined=constant(measured))


@per_gene
def gene_structure(measured: FloatArray, predicted: FloatArray) -> FloatArray:
    """How well a gene's correlations with the other genes are kept, (n_genes,).

    Pearson correlation, over the other genes, of a gene's row in the measured and in the predicted gene-gene correlation
    matrix. NaN for a gene that is constant on either side, which is left out of the rows of the others too, and where
    fewer than three other genes are left.
    """
    pair, varying = _correlation_matrices(measured, predicted)
    values = np.full(len(varying), np.nan)
    n_left = int(varying.sum())
    if n_left > _FEWEST_OTHERS:
        others = ~np.eye(n_left, dtype=bool)
        rows = (matrix[others].reshape(n_left, n_left - 1).T for matrix in pair)
        values[varying] = pearson(*rows)
    return values


def overall_gene_structure(measured: FloatArray, predicted: FloatArray) -> float:
    """Pearson correlation of the upper triangles of the measured and the predicted gene-gene correlation matrix.

    Genes that are constant or not finite on either side are left out; NaN where fewer than three are left.
    """
    complete = np.isfinite(measured).all(axis=0) & np.isfinite(predicted).all(axis=0)
    if not len(measured) or not complete.any():
        return float("nan")
    pair, _ = _correlation_matrices(measured[:, complete], predicted[:, complete])
    above = np.triu_indices(len(pair[0]), k=1)
    if len(above[0]) < _FEWEST_OTHERS:
        return float("nan")
    return float(pearson(*(matrix[above][:, None] for matrix in pair))[0])


METRICS: dict[str, Metric] = {
    "pearson": pearson,
    "spearman": spearman,
    "mse": mse,
    "r2": r2,
    "concordance": concordance,
    "variance_ratio": variance_ratio,
    "gene_structure": gene_structure,
}
"""Metrics that need nothing but the two arrays."""


def top_genes(values: FloatArray, names: Sequence[str], k: int) -> tuple[list[str], float]:
    """The k genes of the highest values, best first, and their mean value.

    Parameters
    ----------
    values
        A metric of which more is better, (n_genes,); genes with NaN are never among the best.
    names
        Of the genes.
    k
        How many; all that are defined where there are fewer.

    Returns
    -------
    Names, ties in the order given, and the mean; NaN where no gene is defined.
    """
    if k < 1:
        msg = f"k={k} is not a positive number of genes; 10 is usual."
        raise ValueError(msg)
    order = np.argsort(-values, kind="stable")
    best = order[np.isfinite(values[order])][:k]
    return [names[i] for i in best], float(values[best].mean()) if len(best) else float("nan")


def _correlation_matrices(
    measured: FloatArray, predicted: FloatArray
) -> tuple[tuple[FloatArray, FloatArray], NDArray[np.bool_]]:
    """Gene-gene correlations of both sides among the genes that vary on both, and which these are."""
    varying = ~(constant(measured) | constant(predicted))
    n_left = int(varying.sum())

    def correlations(values: FloatArray) -> FloatArray:
        matrix: FloatArray = np.corrcoef(values[:, varying].T).reshape(n_left, n_left)
        return matrix

    return (correlations(measured), correlations(predicted)), varying
