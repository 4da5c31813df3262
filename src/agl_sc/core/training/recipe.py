"""The training recipe: fit on training spots with validation picking, shrink, fit once more on both, calibrate."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from agl_sc.core.arrays import BoolArray, Float32Array, FloatArray
from agl_sc.core.choices import Choices, Earlier
from agl_sc.core.config import LIKELIHOODS, TrainConfig
from agl_sc.core.encoders.load import weights_digest
from agl_sc.core.linear.choose_denoising import NOT_DENOISED, DenoisingChoice, choose_denoising, denoised
from agl_sc.core.network.network import Network, calibration, network_from
from agl_sc.core.network.sources import EncodedTiles
from agl_sc.core.numerics.tensors import part
from agl_sc.core.once import NOT_SHARED, Once
from agl_sc.core.spots.counts import Counts, count_law, in_log_units
from agl_sc.core.spots.denoise import Denoised
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.genes import with_data
from agl_sc.core.spots.scaling import held_out_slope
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.fit import fit
from agl_sc.core.training.parallel import n_pieces
from agl_sc.core.training.result import FitResult
from agl_sc.core.training.rounds import fit_in_rounds
from agl_sc.core.weighting import MethodSpec, with_auxiliary


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Arrays of one table; targets first, then auxiliary genes by prior rank."""

    genes: list[str]
    """Names of targets and auxiliary genes."""
    n_targets: int
    """Number of leading genes that are targets."""
    features: NDArray[np.float32]
    """Of all spots, centred per section, scaled and clipped, (n_obs, n_features), or what is left of them in ``directions``,
    (n_obs, width); NaN where there are none."""
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
    centres: FloatArray | None = None
    """Where all spots lie, in any unit, (n_obs, 2); None where nobody knows."""
    directions: Float32Array | None = None
    """Directions that the features were projected on, (n_features, width); None where they are as they are."""
    sources: tuple[EncodedTiles, EncodedTiles] | None = None
    """Tiles of training and validation spots with the encoder to fine-tune."""

    def measured(self, rows: BoolArray, n_genes: int) -> FloatArray:
        """Expression (n_rows, n_genes) of the leading genes, dense."""
        dense: FloatArray = self.expression[rows][:, :n_genes].toarray().astype(float)
        return dense

    def spots(self, rows: BoolArray, n_genes: int | None = None) -> Spots:
        """Rows ready for training."""
        some = _leading(self.expression[rows], n_genes)
        expression = Expression.fitted(some, self.sections[rows])
        raw = with_data(some, _leading(self.counts[rows], n_genes).data)  # of the same places: half the memory
        counts = Counts(raw, self.library[rows], self.units)
        return Spots(self.features[rows], expression, self.sections[rows], counts)

    def held_out(self) -> Validation:
        """Validation spots of the targets."""
        rows = self.validation
        return Validation(self.features[rows], self.measured(rows, self.n_targets), self.sections[rows])

    def denoising(self, training: Spots, config: TrainConfig, once: Once | None = None) -> DenoisingChoice:
        """How far the targets of the training spots are denoised; not at all where the counts themselves are modelled."""
        if config.denoise is None or config.loss in LIKELIHOODS:
            return NOT_DENOISED
        once = once or Once(NOT_SHARED)
        settings, centres = config.denoise, None if self.centres is None else self.centres[self.train]
        return once.of(
            ("denoising", once.digest(training, centres), self.n_targets, settings),
            lambda: choose_denoising(training, self.n_targets, settings, centres=centres),
        )

    def n_denoising(self, spec: MethodSpec) -> int | None:
        """Number of leading genes that a method sees, be it to denoise with them alone; None for all."""
        return None if spec.sees_auxiliary else self.n_targets

    def denoised(self, seen: Spots, spec: MethodSpec, chosen: Denoised) -> Spots:
        """Of spots with the genes that a method sees those that it models, the targets denoised as chosen."""
        spots = denoised(seen, self.n_targets, chosen)
        return spots if spec.uses_auxiliary else spots.leading(self.n_targets)

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
            **{f"network.{name}": tensor for name, tensor in self._on_features(network).items()},
            **{name: tensor for name, tensor in result.state.items() if name.startswith("encoder.")},
            **{name: torch.from_numpy(values.astype(np.float32)) for name, values in scale.items()},
            **({} if base is None else {"base": base}),
        }

    def _on_features(self, network: Network) -> dict[str, torch.Tensor]:
        """Parameters of the network that makes of whole features what this one makes of their projections."""
        state: dict[str, torch.Tensor] = dict(network.state_dict())
        if self.directions is None:
            return state
        back = torch.from_numpy(self.directions.T.copy())
        return {**state, **{name: state[name] @ back for name in ("linear.weight", "inner.weight")}}

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
        if config.loss not in LIKELIHOODS:
            return None
        counts = Counts(self.counts[self.train], self.library[self.train], self.units)
        base = count_law(counts, self.sections[self.train]).base
        return torch.from_numpy(base[: len(genes)][genes].astype(np.float32))


def _leading(values: scipy.sparse.csr_matrix, n_genes: int | None) -> scipy.sparse.csr_matrix:
    """The leading genes of a matrix; it itself where that is all."""
    return values if n_genes is None else values[:, :n_genes]


def fit_arm(
    data: TrainingData,
    spec: MethodSpec,
    config: TrainConfig,
    *,
    accelerator: Accelerator | None = None,
    seed: int = 0,
    on_improvement: Callable[[FitResult], None] | None = None,
    checkpoint: Path | None = None,
    start: tuple[Choices, Earlier] | None = None,
    once: Once | None = None,
) -> FitResult:
    """Fit one method on training spots, validation picking; then once more on both where ``config.refit`` says so.

    ``start`` is what an earlier training chose, and what it ended with, to go on from; ``once`` is what trainings on the same
    spots have in common.
    """
    once = once or Once(NOT_SHARED)
    spec = with_auxiliary(spec, len(data.genes) - data.n_targets)
    accelerator = accelerator or Accelerator()
    common: dict[str, Any] = {
        "n_targets": data.n_targets, "config": config, "accelerator": accelerator, "seed": seed,
        "once": once,
    }  # fmt: skip
    n_seen = data.n_denoising(spec)
    seen, held_out = data.spots(data.train, n_seen), data.held_out()
    denoising = data.denoising(seen, config, once)
    training = data.denoised(seen, spec, denoising.chosen)
    settings = {
        **_settings(data, spec, config=config, seed=seed),
        "mixed_precision": accelerator.mixed_precision,
        "n_pieces": n_pieces(accelerator),
    }
    if start is not None:
        settings["start"] = weights_digest(start[1].state or {})
    saved = None if checkpoint is None else Checkpoint(checkpoint, settings)
    common_first = {**common, "sources": data.sources, "on_improvement": on_improvement, "checkpoint": saved}
    in_rounds = spec.searches and config.start == "agl"
    if start is not None:
        in_rounds = False
        common_first |= {"choices": replace(start[0], n_epochs=config.max_epochs), "earlier": start[1]}
    first = partial(fit_in_rounds if in_rounds else fit, method=spec)
    result = first(training, held_out, **common_first)
    result = replace(result, shrinkage=data.shrinkage(result, config), denoising=denoising)
    if not config.refit or data.sources is not None or in_rounds:
        return result
    merged = data.denoised(data.spots(data.train | data.validation, n_seen), spec, denoising.chosen)
    # Weights learned from validation spots are kept; others are learned from training spots, and are again.
    kept = Earlier(None if start is None else start[1].state, None if spec.relearns else result.weights)
    again = fit(merged, None, method=spec, choices=result.choices, earlier=kept, **common)
    return replace(result, state=again.state, refitted=True)


def _settings(data: TrainingData, spec: MethodSpec, *, config: TrainConfig, seed: int) -> dict[str, Any]:
    """What a checkpoint must have been made with to be continued."""
    sha = hashlib.sha256("\n".join(data.genes).encode())
    for array in (data.features, data.expression.data, data.expression.indices, data.train, data.validation):
        sha.update(np.ascontiguousarray(array).data)
    run = {"method": spec.name, "seed": seed, "finetune": data.sources is not None, "data": sha.hexdigest()}
    return {**run, **config.plain()}
