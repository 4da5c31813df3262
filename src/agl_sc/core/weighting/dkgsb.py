"""DkGSB's cutoff, learned by hyper-gradient before every epoch."""

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from agl_sc.core.config import MIN_BATCH, TrainConfig
from agl_sc.core.network.bilevel import Bilevel, leading
from agl_sc.core.numerics.hypergradient import Adam, State, fresh_state, hypergradient, warm_state
from agl_sc.core.numerics.losses import weighted_mean
from agl_sc.core.numerics.tensors import Parameters
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.fixed import beside_targets, soft_leading_genes
from agl_sc.core.weighting.gate import n_active, scaled_rank, soft_top_k

logger = logging.getLogger(__name__)

_PATIENCE = 3
"""Outer steps in a row that may fail to be finite."""


class LearnedCutoff(Weighting):
    """Soft top-k over prior ranks; one Adam step of the cutoff per training batch along the unrolled hyper-gradient.

    Shiku et al., AAAI 2026 (arXiv 2511.18336).
    """

    at: torch.Tensor
    skipped: torch.Tensor
    prior_rank: torch.Tensor

    def __init__(self, n_targets: int, n_genes: int, *, config: TrainConfig) -> None:
        super().__init__(n_targets, n_genes)
        self.config = config
        self.register_buffer(
            "at", torch.tensor(min(config.gradient.start_cutoff, config.hard_limit), dtype=torch.float32)
        )
        self.register_buffer("skipped", torch.zeros(2, dtype=torch.int64))  # in all, and in a row
        self.register_buffer("prior_rank", scaled_rank(n_genes - n_targets).float(), persistent=False)
        self._optimizer = torch.optim.Adam([self.at], lr=config.gradient.outer_lr)

    def forward(self, losses: torch.Tensor) -> torch.Tensor:
        """Mean under the soft top-k."""
        with torch.no_grad():
            weights = self._at(self.at, self.n_active)
        return weighted_mean(losses, weights)

    def weights(self) -> NDArray[np.float64]:
        """At the present cutoff."""
        soft = soft_leading_genes(float(self.at), self.n_genes - self.n_targets, self.config.temperature)
        return beside_targets(soft, self.n_targets)

    @property
    def n_active(self) -> int:
        """Up to the last gene whose weight is not zero to float precision."""
        return self.n_targets + n_active(float(self.at), len(self.prior_rank), self.config.temperature)

    @property
    def cutoff(self) -> float:
        """On the rank axis, in [0, 1]."""
        return float(self.at)

    @property
    def n_skipped(self) -> int:
        """Outer steps left out so far."""
        return int(self.skipped[0])

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Of the cutoff."""
        return {"cutoff": self._optimizer}

    def before_epoch(self, training: Bilevel, epoch: int) -> None:
        """A step per training batch, from the present network, which stays as it is; not in the epochs that warm up."""
        if epoch >= self.config.gradient.warmup_epochs and training.n_validation:
            self.search(training)

    def search(self, training: Bilevel) -> float:
        """A step per training batch; mean validation loss at the ends of the unrolled steps that were finite."""
        size, n_validation = self.config.gradient.outer_batch_size, training.n_validation
        batches, values = training.batches, []
        if size is not None:
            spots = torch.cat(batches)
            batches = [index for index in torch.split(spots, size) if len(index) >= min(MIN_BATCH, len(spots))]
        for index in batches:
            rows = None
            if self.config.gradient.validation_batch_size is not None:
                shuffled = torch.randperm(n_validation, generator=training.randomness)
                rows = shuffled[: self.config.gradient.validation_batch_size].to(self.at.device)
            values.append(self.step(training, index, rows))
        finite = [value for value in values if np.isfinite(value)]
        return float(np.mean(finite)) if finite else float("nan")

    def step(self, training: Bilevel, index: torch.Tensor, rows: torch.Tensor | None = None) -> float:
        """Move the cutoff against the hyper-gradient of one training and one validation batch.

        A step that is not finite is left out and counted.

        Parameters
        ----------
        training
            Where the inner steps start.
        index
            Training spots.
        rows
            Validation spots; all if None.

        Returns
        -------
        Validation loss after the inner steps.

        Raises
        ------
        FloatingPointError
            The third step in a row is not finite.
        """
        n_genes, config = self.n_active, self.config
        batch = training.batch(index, n_genes)
        parameters = training.parameters(n_genes)

        def inner(at: Parameters, sizes: list[int]) -> tuple[torch.Tensor, ...]:
            return torch.split(training.losses(at, batch), sizes)

        value, derivative = hypergradient(
            inner,
            lambda at: training.validation_loss(at, rows),
            parameters,
            scalars=self.at.detach(),
            weights=lambda cutoff: self._at(cutoff, n_genes),
            optimizer=Adam(training.lr),
            state=self._state(training, parameters, n_genes),
            inner_steps=config.gradient.inner_steps,
            hessian=config.gradient.hessian,
            detach_normalizer=config.gradient.detach_normalizer,
        )
        if torch.isfinite(value) and torch.isfinite(derivative):
            self.skipped[1] = 0
            self.at.grad = derivative
            self._optimizer.step()
            with torch.no_grad():
                self.at.clamp_(0, config.hard_limit)
        else:
            self._skip()
        return float(value)

    def _at(self, cutoff: torch.Tensor, n_genes: int) -> torch.Tensor:
        """Weights of the leading genes."""
        soft = soft_top_k(cutoff, self.prior_rank[: n_genes - self.n_targets], self.config.temperature)
        return torch.cat([soft.new_ones(self.n_targets), soft])

    def _state(self, training: Bilevel, parameters: Parameters, n_genes: int) -> State:
        if not self.config.gradient.warm_moments:
            return fresh_state(parameters)
        state = warm_state(training.optimizer, dict(training.problem.network.named_parameters()))
        return replace(state, mean=leading(state.mean, n_genes), square=leading(state.square, n_genes))

    def _skip(self) -> None:
        self.skipped += 1
        logger.warning(
            "An outer step was left out: its %d inner steps did not stay finite.", self.config.gradient.inner_steps
        )
        if int(self.skipped[1]) >= _PATIENCE:
            msg = (
                f"{_PATIENCE} outer steps in a row were not finite at cutoff {self.cutoff:.3f}: the inner steps diverge; "
                f"use a smaller lr or fewer than inner_steps={self.config.gradient.inner_steps}."
            )
            raise FloatingPointError(msg)
