"""From table slots to the arrays that are trained on, everything fitted on training spots."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import recorded
from agl_sc._sdata.table import counts_of, region_of, section_of
from agl_sc.core.arrays import BoolArray, FloatArray
from agl_sc.core.choices import Earlier
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.encoders.load import load_encoder
from agl_sc.core.network.network import calibration, network_from
from agl_sc.core.network.sources import EncodedTiles
from agl_sc.core.numerics.tensors import part
from agl_sc.core.spots.counts import Counts, count_law, in_log_units
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.core.spots.scaling import center_per_section, held_out_slope, scale_features, spread
from agl_sc.core.spots.spots import Spots, Validation, usable_spots
from agl_sc.core.tiles.dataset import TileDataset
from agl_sc.core.tiles.reader import MAX_BYTES
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.fit import fit
from agl_sc.core.training.parallel import n_pieces
from agl_sc.core.training.result import FitResult
from agl_sc.core.training.rounds import fit_in_rounds
from agl_sc.pp._features.context import Views
from agl_sc.pp._features.embed import check_provenance, placed_again
from agl_sc.pp._genes.targets_and_ranks import normalize_of, role_of
from agl_sc.pp._splits.split import check_fitted_on, split_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Arrays of one table; targets first, then auxiliary genes by prior rank."""

    genes: list[str]
    """Names of targets and auxiliary genes."""
    n_targets: int
    """Number of leading genes that are targets."""
    features: NDArray[np.float32]
    """Of all spots, centred per section, scaled and clipped, (n_obs, n_features); NaN where there are none."""
    feature_scale: FloatArray
    """What they were divided by, (n_features,)."""
    expression: scipy.sparse.csr_matrix
    """Of all spots in the units of the layer, (n_obs, n_genes)."""
    counts: scipy.sparse.csr_matrix
    """Raw counts of all spots and the same genes, (n_obs, n_genes)."""
    library: FloatArray
    """Total counts of every spot over all genes of the table, (n_obs,)."""
    units: float
    """Total counts that a spot is normalised to; the mean of the training spots' where it is not."""
    sections: NDArray[np.int64]
    """Section of every spot, (n_obs,)."""
    train: BoolArray
    """Usable training spots, (n_obs,)."""
    validation: BoolArray
    """Usable validation spots, (n_obs,)."""
    section_digests: dict[str, str]
    """Digest of the image of every section that has training or validation spots."""
    sources: tuple[EncodedTiles, EncodedTiles] | None = None
    """Tiles of training and validation spots with the encoder to fine-tune."""

    def measured(self, rows: BoolArray, n_genes: int) -> FloatArray:
        """Expression (n_rows, n_genes) of the leading genes, dense."""
        dense: FloatArray = self.expression[rows][:, :n_genes].toarray().astype(float)
        return dense

    def spots(self, rows: BoolArray, n_genes: int | None = None) -> Spots:
        """Rows ready for training."""
        expression = Expression.fitted(self.expression[rows][:, :n_genes], self.sections[rows])
        counts = Counts(self.counts[rows][:, :n_genes], self.library[rows], self.units)
        return Spots(self.features[rows], expression, self.sections[rows], counts)

    def held_out(self) -> Validation:
        """Validation spots of the targets."""
        rows = self.validation
        return Validation(self.features[rows], self.measured(rows, self.n_targets), self.sections[rows])

    def calibrated(self, result: FitResult, config: TrainConfig) -> dict[str, torch.Tensor]:
        """Tensors of a model: parameters, the head cut to the selected genes, and the calibration of its output."""
        selected = result.selected
        network = network_from(part(result.state, "network."), torch.from_numpy(selected))
        base = self._base(selected, config)
        rows = self.train | self.validation if result.refitted else self.train
        measured = self.expression[rows][:, np.flatnonzero(selected)]
        inputs = self._inputs(result, rows)
        slope, intercept = calibration(network, inputs, measured, base=base, shrinkage=result.shrinkage)
        scale = {"feature_scale": self.feature_scale, "slope": slope, "intercept": intercept}
        return {
            **{f"network.{name}": tensor for name, tensor in network.state_dict().items()},
            **{name: tensor for name, tensor in result.state.items() if name.startswith("encoder.")},
            **{name: torch.from_numpy(values.astype(np.float32)) for name, values in scale.items()},
            **({} if base is None else {"base": base}),
        }

    def shrinkage(self, result: FitResult, config: TrainConfig) -> float:
        """How much less validation expression varies with predictions than that of the training spots, in [0, 1]."""
        targets = np.arange(len(result.selected)) < self.n_targets
        network = network_from(part(result.state, "network."), torch.from_numpy(targets))
        base = self._base(targets, config)
        inputs = self._inputs(result, self.train)
        slope, _ = calibration(network, inputs, self.expression[self.train][:, : self.n_targets], base=base)
        with torch.inference_mode():
            raw = network(self._inputs(result, self.validation), self.n_targets)
        predicted = (raw if base is None else in_log_units(raw, base)).double().numpy()
        rows = self.validation
        return held_out_slope(slope * predicted, self.measured(rows, self.n_targets), self.sections[rows])

    def _inputs(self, result: FitResult, rows: BoolArray) -> torch.Tensor:
        """Of the network: features of training or validation spots, from the fine-tuned encoder where there is one."""
        if self.sources is None:
            return torch.from_numpy(self.features[rows])
        tiles = self.sources[1 if rows is self.validation else 0]
        tiles.load(result.state)
        return torch.cat([batch.cpu() for batch in tiles.all_inputs()])

    def _base(self, genes: BoolArray, config: TrainConfig) -> torch.Tensor | None:
        """Log of the mean count of these genes in a training spot of ``units`` counts, where the loss is a likelihood."""
        if config.loss not in ("poisson", "negative_binomial"):
            return None
        counts = Counts(self.counts[self.train], self.library[self.train], self.units)
        base = count_law(counts, self.sections[self.train]).base
        return torch.from_numpy(base[: len(genes)][genes].astype(np.float32))


def training_data(table: "AnnData", keys: Keys, layer: str | None) -> TrainingData:
    """Collect features, expression and sets from the slots that :mod:`agl_sc.pp` wrote."""
    raw = np.asarray(table.obsm[keys.features])
    names = section_of(table)
    codes = pd.factorize(names, sort=True)[0].astype(np.int64)
    counts = counts_of(table, layer)
    usable = usable_spots(raw, counts)
    assigned = split_of(table, keys)
    train, validation = (usable & (assigned == name) for name in ("train", "validation"))
    _tell_unusable(usable, assigned)
    centred = center_per_section(raw, codes)
    scale = spread(centred[train])
    genes, n_targets = ordered_genes(table, keys)
    normalize = normalize_of(table, keys)
    expression = normalize_counts(counts, normalize)
    columns = table.var_names.get_indexer(genes)
    library = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    digests = recorded(table, keys, "features")["images"]
    fitted = set(region_of(table)[train | validation])
    return TrainingData(
        genes=genes,
        n_targets=n_targets,
        features=scale_features(centred, scale).astype(np.float32),
        feature_scale=scale,
        expression=expression[:, columns],
        counts=counts[:, columns],
        library=library,
        units=1e4 if normalize == "log1p_cp10k" else float(library[train].mean()),
        sections=codes,
        train=train,
        validation=validation,
        section_digests={name: digest for name, digest in digests.items() if name in fitted},
    )


def ordered_genes(table: "AnnData", keys: Keys) -> tuple[list[str], int]:
    """Targets in table order, then auxiliary genes by prior rank, and the number of targets."""
    role = role_of(table, keys)
    targets = list(table.var_names[role == "target"])
    if keys.prior_rank not in table.var:
        msg = f'var["{keys.prior_rank}"] is missing; run agl_sc.pp.rank_auxiliary(sdata) first.'
        raise KeyError(msg)
    check_fitted_on(table, keys, "prior_rank", by="rank_auxiliary")
    rank = table.var[keys.prior_rank]
    unranked = list(table.var_names[(role == "auxiliary") & rank.isna().to_numpy()])
    if unranked:
        msg = f'var["{keys.prior_rank}"] is NaN for {len(unranked)} auxiliary genes, {unranked[0]!r} the first; run agl_sc.pp.rank_auxiliary(sdata) again.'
        raise ValueError(msg)
    auxiliary = list(rank[role == "auxiliary"].sort_values(kind="stable").index)
    return [*targets, *auxiliary], len(targets)


def _tell_unusable(usable: BoolArray, assigned: NDArray[Any]) -> None:
    n_left = int((~usable & np.isin(assigned, ("train", "validation"))).sum())
    if n_left:
        logger.warning("%d training or validation spots have no tile or no counts and are left out.", n_left)


def finetune_data(
    sdata: "SpatialData",
    table: "AnnData",
    *,
    where: dict[str, Any],
    data: TrainingData,
    keys: Keys,
    device: torch.device,
) -> TrainingData:
    """The same data with the tiles of training and validation spots and the encoder to fine-tune."""
    made_from = recorded(table, keys, "features")
    views = Views.recorded(made_from)
    alone = Views(stages=views.stages).record()
    beside = {name: value for name, value in views.record().items() if value != alone[name]}
    if beside:
        said = ", ".join(f"{name}={value!r}" for name, value in beside.items())
        msg = f'finetune=True trains on the tiles alone, and obsm["{keys.features}"] was made with {said}; run agl_sc.pp.embed(sdata, context=(), orientations=1) first.'
        raise ValueError(msg)
    encoder = load_encoder(made_from["encoder"], stages=views.stages)
    check_provenance(made_from, encoder)
    tile_px = int(made_from["tile_px"])
    elements = {name: where[name] for name in ("image_key", "shapes_key", "coordinate_system")}
    placed = placed_again(sdata, table, keys, elements=elements)

    def source(rows: BoolArray) -> EncodedTiles:
        position = np.cumsum(rows) - 1
        parts = []
        for section, boxes in placed:
            wanted = np.flatnonzero(rows[section.rows])
            if len(wanted):
                parts.append((position[section.rows[wanted]], replace(boxes, origins=boxes.origins[wanted])))
        return EncodedTiles(
            TileDataset(parts, tile_px, max_bytes=MAX_BYTES // 2),
            data.sections[rows],
            data.feature_scale,
            encoder=encoder,
            batch_size=64,
            device=device,
        )

    return replace(data, sources=(source(data.train), source(data.validation)))


def possible_method(data: TrainingData, method: Method) -> Method:
    """The method, or ``"pgl"`` with a warning where there are no auxiliary genes."""
    if method == "pgl" or len(data.genes) > data.n_targets:
        return method
    logger.warning("There are no auxiliary genes: method=%r becomes 'pgl'.", method)
    return "pgl"


def fit_arm(
    data: TrainingData,
    method: Method,
    config: TrainConfig,
    *,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    on_improvement: Callable[[FitResult], None] | None = None,
    checkpoint: Path | None = None,
) -> FitResult:
    """Fit one method on training spots, validation picking; then once more on both where ``config.refit`` says so."""
    method = possible_method(data, method)
    n_genes = data.n_targets if method == "pgl" else None
    accelerator = accelerator or Accelerator()
    common: dict[str, Any] = {
        "n_targets": data.n_targets, "config": config, "accelerator": accelerator, "seed": seed
    }  # fmt: skip
    training, held_out = data.spots(data.train, n_genes), data.held_out()
    settings = {
        **_settings(data, method, config=config, seed=seed),
        "mixed_precision": accelerator.mixed_precision,
        "n_pieces": n_pieces(accelerator),
    }
    saved = None if checkpoint is None else Checkpoint(checkpoint, settings)
    common_first = {**common, "sources": data.sources, "on_improvement": on_improvement, "checkpoint": saved}
    in_rounds = method == "dkgsb" and config.start == "agl"
    first = fit_in_rounds if in_rounds else partial(fit, method=method)
    result = first(training, held_out, **common_first)
    result = replace(result, shrinkage=data.shrinkage(result, config))
    if not config.refit or data.sources is not None or in_rounds:
        return result
    merged = data.spots(data.train | data.validation, n_genes)
    # Weights learned from validation spots are kept; others are learned from training spots, and are again.
    kept = Earlier(weights=None if method in ("uncertainty", "cosine") else result.weights)
    again = fit(merged, None, method=method, choices=result.choices, earlier=kept, **common)
    return replace(result, state=again.state, refitted=True)


def _settings(data: TrainingData, method: Method, *, config: TrainConfig, seed: int) -> dict[str, Any]:
    """What a checkpoint must have been made with to be continued."""
    sha = hashlib.sha256("\n".join(data.genes).encode())
    for array in (data.features, data.expression.data, data.expression.indices, data.train, data.validation):
        sha.update(np.ascontiguousarray(array).tobytes())
    run = {"method": method, "seed": seed, "finetune": data.sources is not None, "data": sha.hexdigest()}
    return {**run, **asdict(config)}
