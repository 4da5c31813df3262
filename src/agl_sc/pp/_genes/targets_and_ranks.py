"""Normalisation, target genes and prior ranks of auxiliary genes, fitted on training spots only."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from agl_sc._sdata.genes import find_genes, near_genes, own_names
from agl_sc._sdata.records import SettingsRecord, remember, remembered
from agl_sc._sdata.sections import Names, Scales
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import check_choice, check_names, check_seed, is_number, is_whole
from agl_sc.core.arrays import FloatArray
from agl_sc.core.linear.predictability import MOST_SPOTS, predictability
from agl_sc.core.once import Once
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.genes import Normalize, mean_variance_detected, normalize_counts, ranks, target_correlation
from agl_sc.core.spots.scaling import center_per_section, depth_weights, scale_features, spread
from agl_sc.core.spots.spots import usable_spots
from agl_sc.core.spots.thinned import thinned
from agl_sc.pp._genes.scores import morans_i
from agl_sc.pp._splits.split import check_fitted_on, record_fitted_on, split_hash, training_spots

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

ChooseBy = Literal["variance", "dispersion"]
ROLES = ("target", "auxiliary", "excluded")
Score = Literal["predictability", "dispersion", "mean", "variance", "moran", "correlation", "random"]
_MIN_SPOTS = 3

logger = logging.getLogger(__name__)


def target_genes(
    sdata: "SpatialData",
    *,
    genes: int | Sequence[str] = 50,
    choose_by: ChooseBy = "variance",
    min_detected: float = 0.3,
    normalize: Normalize = "log1p_cp10k",
    table_key: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
) -> None:
    """Choose the genes to be predicted and evaluated; all other usable genes become auxiliary.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    genes
        How many genes to take, or their names, by ``var_names`` or by the other naming in a column of ``var`` such as
        ``gene_ids`` or ``gene_symbols``; versions of Ensembl ids do not matter.
    choose_by
        What the genes taken are highest in: ``"variance"``, or ``"dispersion"`` as in the paper. That is scanpy's normalised
        dispersion, flavour seurat; it picks noisier genes.
    min_detected
        Genes chosen by variance are detected in more than this fraction of the training spots.
    normalize
        Units in which genes are modelled: log(1 + counts per 10,000), or log(1 + counts) as the paper's code does.
    table_key
        Table to use; the only one by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    Nothing; writes ``var["agl_role"]``, categorical: target, auxiliary, or excluded (in fewer than 3 training spots, or
    constant there).

    Raises
    ------
    KeyError
        A named gene is not in the table; near matches are suggested.
    ValueError
        The counts are not raw, ``choose_by`` is unknown, a named gene is constant over the training spots, or a name is of
        different genes in ``var_names`` and in a column of ``var``.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.split(sdata)
    >>> agl_sc.pp.target_genes(sdata, genes=["G0001", "G0002"])
    >>> sdata["table"].var["agl_role"].value_counts()["target"]
    np.int64(2)
    """
    study = Study.of(sdata, Address(table_key=table_key, layer=layer), key_added)
    choose_targets(study, genes=genes, choose_by=choose_by, min_detected=min_detected, normalize=normalize)


def choose_targets(
    study: Study,
    *,
    genes: int | Sequence[str] = 50,
    choose_by: ChooseBy = "variance",
    min_detected: float = 0.3,
    normalize: Normalize = "log1p_cp10k",
) -> None:
    """As :func:`target_genes`, of what is resolved already."""
    table, keys = study.table, study.keys
    genes = checked_targets(table, genes)
    check_choose_by(choose_by)
    if not is_number(min_detected) or not 0 <= min_detected <= 1:
        msg = f"min_detected={min_detected!r} is not a fraction in [0, 1]; 0.3 is usual."
        raise ValueError(msg)
    expression = training_expression(study, normalize)
    role = assign_roles(expression, table.var_names, genes=genes, choose_by=choose_by, min_detected=min_detected)
    table.var[keys.role] = pd.Categorical(role, categories=list(ROLES))
    before = remembered(table, keys, SettingsRecord) or SettingsRecord({})
    remember(table, keys, SettingsRecord({**before.values, "normalize": normalize}))
    record_fitted_on(study, "role")
    study.remember_layer()
    study.tell_written(
        logger, 'Wrote var["%s"]: %s.', keys.role, ", ".join(f"{(role == name).sum()} {name}" for name in ROLES)
    )


def rank_auxiliary(
    sdata: "SpatialData",
    *,
    score: str = "predictability",
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    layer: str | None = None,
    key_added: str = "agl",
    seed: int = 0,
) -> None:
    """Rank auxiliary genes by how promising they look before training, 0 = most promising.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    score
        Prior ranking of the auxiliary genes. ``"predictability"`` (Pearson with a ridge prediction from the features, every
        spot left out in turn, of at most 4,096 training spots), ``"dispersion"`` (scanpy's normalised dispersion, flavour
        seurat, as in the paper), ``"mean"``, ``"variance"``, ``"moran"`` (Moran's I on squidpy's graph of every section),
        ``"correlation"`` (mean absolute Pearson correlation with the targets), ``"random"``, or a numeric column of ``var``.
        The highest score is ranked first, NaN last.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    image_mpp
        Microns per pixel of the full image, a number or a mapping by section; from metadata or spot pitch by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.
    seed
        Seed of the random score.

    Returns
    -------
    Nothing; writes ``var["agl_prior_rank"]``, 0 .. n_auxiliary - 1, NaN for other genes.

    Raises
    ------
    KeyError
        ``score`` is unknown, :func:`target_genes` has not run, or ``"predictability"`` finds no features.
    ValueError
        No section has enough training spots for Moran's I.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.split(sdata)
    >>> agl_sc.pp.target_genes(sdata, genes=20)
    >>> agl_sc.pp.rank_auxiliary(sdata, score="dispersion")
    >>> sdata["table"].var["agl_prior_rank"].min()
    np.float64(0.0)
    """
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
        layer=layer,
    )
    rank_study(Study.of(sdata, address, key_added), score=score, seed=seed)


def rank_study(study: Study, *, score: str = "predictability", seed: int = 0, once: Once | None = None) -> None:
    """As :func:`rank_auxiliary`, of what is resolved already, by what ``once`` has of the same split and targets."""
    table, keys = study.table, study.keys
    check_seed(seed)
    check_score(table, score)
    role = role_of(study)
    if once is None or score == "random":
        values = _scores(study, score, seed=seed)
    else:
        values = once.of(("scores", score, split_hash(study), *role), lambda: _scores(study, score, seed=seed))
    table.var[keys.prior_rank] = ranks(values, role == "auxiliary")
    record_fitted_on(study, "prior_rank")
    study.remember_layer()
    n_ranked = (role == "auxiliary").sum()
    study.tell_written(logger, 'Wrote var["%s"] by %s: %d auxiliary genes.', keys.prior_rank, score, n_ranked)


def training_expression(study: Study, normalize: Normalize) -> scipy.sparse.csr_matrix:
    """Normalised expression of the training spots only, (n_train, n_genes)."""
    return normalize_counts(study.counts[training_spots(study)], normalize)


def role_of(study: Study) -> NDArray[Any]:
    """Role of every gene, (n_genes,) of str."""
    table, keys = study.table, study.keys
    if keys.role not in table.var:
        msg = f'var["{keys.role}"] is missing; run agl_sc.pp.target_genes(sdata) first.'
        raise KeyError(msg)
    check_fitted_on(study, "role", by="target_genes")
    role: NDArray[Any] = table.var[keys.role].astype(str).to_numpy()
    return role


def checked_targets(table: "AnnData", genes: int | Sequence[str]) -> int | list[str]:
    """How many target genes, or the table's own names of them; numbers and names that make no sense are refused."""
    if is_whole(genes):
        if not 1 <= genes <= table.n_vars:
            msg = f"genes={genes} is not between 1 and the {table.n_vars} genes of the table."
            raise ValueError(msg)
        return int(genes)
    check_names("genes", genes)
    asked: Any = () if genes is None else genes  # names, perhaps as an array
    names = [asked] if isinstance(asked, str) else list(asked)
    found = find_genes(table, names)
    unknown = [name for name, column in zip(names, found, strict=True) if column < 0]
    if unknown or not names:
        which = f"{', '.join(unknown[:3])} not in the table" if unknown else "no gene named"
        msg = f"{len(unknown)} target genes are missing: {which}{near_genes(table, unknown)}."
        raise KeyError(msg)
    return own_names(table, names)


def check_choose_by(choose_by: str) -> None:
    """Refuse an unknown way of choosing target genes."""
    check_choice("choose_by", choose_by, get_args(ChooseBy))


def check_score(table: "AnnData", score: str) -> None:
    """Refuse an unknown score."""
    columns = [str(name) for name in table.var.columns if pd.api.types.is_numeric_dtype(table.var[name])]
    if not isinstance(score, str) or score not in (*get_args(Score), *columns):
        msg = f"score={score!r} is neither one of {', '.join(get_args(Score))} nor a numeric column of var ({', '.join(columns) or 'there is none'})."
        raise KeyError(msg)


def assign_roles(
    expression: scipy.sparse.csr_matrix,
    names: Sequence[str],
    *,
    genes: int | Sequence[str],
    choose_by: ChooseBy = "variance",
    min_detected: float = 0.0,
) -> NDArray[Any]:
    """Role of every gene from the expression of training spots (n_train, n_genes)."""
    _, variance, detected = mean_variance_detected(expression)
    usable = (detected * expression.shape[0] >= _MIN_SPOTS) & (variance > 0)
    if isinstance(genes, int | np.integer):
        score, least = (variance, min_detected) if choose_by == "variance" else (dispersion(expression), 0.0)
        eligible = np.flatnonzero(usable & (detected > least) & ~np.isnan(score))
        chosen = eligible[np.argsort(-score[eligible], kind="stable")][:genes]
        _tell_shortage(len(chosen), genes, least)
    else:
        chosen = np.array([list(names).index(name) for name in ([genes] if isinstance(genes, str) else genes)])
        constant = [str(names[i]) for i in chosen if variance[i] == 0]
        if constant:
            msg = f"Target genes {', '.join(constant[:3])} are constant over the training spots; leave them out."
            raise ValueError(msg)
    role = np.where(usable, "auxiliary", "excluded")
    role[chosen] = "target"
    return role


def _tell_shortage(n_found: int, n_wanted: int, min_detected: float) -> None:
    if n_found == 0:
        msg = f"No gene is detected in more than {min_detected:.0%} of the training spots; lower min_detected, or name the genes."
        raise ValueError(msg)
    if n_found < n_wanted:
        logger.warning(
            "Only %d of %d target genes are detected in more than %.0f %% of spots.",
            n_found,
            n_wanted,
            100 * min_detected,
        )


def _scores(study: Study, score: str, *, seed: int) -> FloatArray:
    table = study.table
    if score == "random":
        drawn: FloatArray = np.random.default_rng(seed).random(table.n_vars)
        return drawn
    if score not in get_args(Score):
        column: FloatArray = table.var[score].to_numpy(dtype=float, na_value=np.nan)
        return column
    if score == "predictability":
        return _predictability(study)
    expression = training_expression(study, study.normalize)
    if score == "dispersion":
        return dispersion(expression)
    training = training_spots(study)
    if score == "moran":
        centres, codes = positions_of(study)
        return morans_i(expression, centres[training], codes[training])
    if score == "correlation":
        codes = pd.factorize(study.section_names[training])[0].astype(np.int64)
        return target_correlation(expression, role_of(study) == "target", codes)
    mean, variance, _ = mean_variance_detected(expression)
    return mean if score == "mean" else variance


def _predictability(study: Study) -> FloatArray:
    """Of all genes, from the features and the expression of some of the training spots."""
    table, keys = study.table, study.keys
    if keys.features not in table.obsm:
        msg = f"score='predictability' needs obsm[\"{keys.features}\"], which is missing; run agl_sc.pp.embed(sdata) first, or rank by another score such as 'dispersion'."
        raise KeyError(msg)
    features = np.asarray(table.obsm[keys.features])
    usable = np.flatnonzero(training_spots(study) & usable_spots(features, study.counts))
    if not len(usable):
        msg = f'No training spot has both features in obsm["{keys.features}"] and counts; run agl_sc.pp.embed(sdata) again.'
        raise ValueError(msg)
    codes = pd.factorize(study.section_names[usable], sort=True)[0].astype(np.int64)
    rows = thinned(codes, MOST_SPOTS)
    usable, codes = usable[rows], codes[rows]
    centred, counts = center_per_section(features[usable], codes), study.counts[usable]
    is_target = role_of(study) == "target"
    order = np.argsort(~is_target, kind="stable")
    values = np.empty(table.n_vars)
    values[order] = predictability(
        scale_features(centred, spread(centred)).astype(np.float32),
        Expression.fitted(normalize_counts(counts, study.normalize)[:, order], codes),
        int(is_target.sum()),
        weights=depth_weights(np.asarray(counts.sum(axis=1), dtype=float).ravel(), codes),
    )
    return values


def positions_of(study: Study) -> tuple[FloatArray, NDArray[np.int64]]:
    """Centre of every spot, (n_obs, 2), in a unit that is the same within a region, and the number of its region, (n_obs,)."""
    n_obs = study.table.n_obs
    centres, codes = np.full((n_obs, 2), np.nan), np.full(n_obs, -1)
    for number, section in enumerate(study.positioned):
        centres[section.rows], codes[section.rows] = section.centres, number
    return centres, codes


def dispersion(expression: scipy.sparse.csr_matrix) -> FloatArray:
    """Normalised dispersion (scanpy, flavour seurat: log variance / mean in 20 bins of the mean); NaN where undefined."""
    import scanpy as sc
    from anndata import AnnData

    detected = np.flatnonzero(expression.getnnz(axis=0))
    subset = AnnData(scipy.sparse.csr_matrix(expression[:, detected]))
    table = sc.pp.highly_variable_genes(subset, flavor="seurat", inplace=False)
    values = np.full(expression.shape[1], np.nan)
    values[detected] = table["dispersions_norm"].to_numpy()
    return values
