"""What validation picks before training: penalty, width, cutoff, target weight."""

from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from agl_sc.core.arrays import FloatArray
from agl_sc.core.choices import TRACE_COLUMNS, Choices, no_trace
from agl_sc.core.config import TrainConfig
from agl_sc.core.linear.choose_by_validation import (
    RANKS,
    choose_alpha,
    choose_rank,
    in_basis,
    own_penalty,
    path_search,
)
from agl_sc.core.linear.closed_form import Decomposition, LowRank, RidgeBasis, reduced_rank_ridge, ridge_basis
from agl_sc.core.once import NOT_SHARED, Once, Value
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.race import RACE_CUTOFFS, race_search
from agl_sc.core.weighting.spec import MethodSpec

Train = Callable[[LowRank, Choices], float]
"""From a start and choices, its number of epochs among them, to the best validation Pearson of a training."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Where training starts."""

    start: LowRank
    """Closed-form trunk and head."""
    choices: Choices
    """What was picked."""
    trace: pd.DataFrame
    """step, cutoff, k, validation_pearson of the search before training; empty without one."""

    def plain(self) -> dict[str, Any]:
        """Choices and trace as plain JSON values."""
        return {"choices": asdict(self.choices), "trace": self.trace.to_dict(orient="list")}


@dataclass(frozen=True, slots=True)
class Planner:
    """Closed-form fits of one set of spots."""

    basis: RidgeBasis
    """Of the training spots."""
    validation: Validation | None
    """Validation spots; None where the choices are given."""
    n_targets: int
    """Number of leading genes that are targets."""
    method: MethodSpec
    """As :func:`agl_sc.core.training.fit.fit` takes it."""
    config: TrainConfig
    """Settings."""
    own_alpha: float | None = None
    """Ridge penalty of the targets' own directions; None where the settings want none or the choices are given."""
    once: Once = field(default_factory=lambda: Once(NOT_SHARED))
    """What other trainings on the same spots have made, and are left."""
    made_from: tuple[str, ...] = ()
    """Digests of features with weights, of expression and of validation spots."""

    @classmethod
    def of(
        cls,
        spots: Spots,
        validation: Validation | None,
        *,
        n_targets: int,
        method: MethodSpec,
        config: TrainConfig,
        once: Once | None = None,
    ) -> "Planner":
        """Decompose the features once; nothing here depends on a seed, so that ``once`` serves all of them."""
        once = once or Once(NOT_SHARED)
        weights = spots.depth_weights if config.depth_weights else None
        seen, genes = once.digest(spots.features, weights), once.digest(spots.expression)
        found = once.of(("decomposition", seen), lambda: Decomposition.of(spots.features, weights))
        basis = once.of(
            ("basis", seen, genes),
            lambda: ridge_basis(spots.features, spots.expression, weights, decomposition=found),
        )

        def own() -> float:
            targets = spots.expression.columns(0, n_targets)
            return own_penalty(basis, spots.features, targets, weights=weights)

        own_alpha = None
        if validation is not None and config.own_directions and config.start == "closed_form":
            own_alpha = once.of(("own_penalty", seen, genes, n_targets), own)
        made_from = (seen, genes, once.digest(validation))
        return cls(basis, validation, n_targets, method, config, own_alpha, once, made_from)

    def _once(self, what: Hashable, make: Callable[[], Value]) -> Value:
        """Of these spots: made by the first training that asks."""
        return self.once.of((what, *self.made_from, self.n_targets), make)

    def _alpha(self, validation: Validation, n_genes: int) -> float:
        """Best penalty of the leading genes."""
        return self._once(
            ("alpha", n_genes),
            lambda: choose_alpha(self.basis.of_leading(n_genes), validation, turned=self._turned(validation)),
        )

    def _turned(self, validation: Validation) -> Validation:
        """Validation spots in the basis, which is the same whatever the genes."""
        seen, _, judged_by = self.made_from or ("", "", "")
        return self.once.of(("in_basis", seen, judged_by), lambda: in_basis(validation, self.basis))

    @property
    def n_auxiliary(self) -> int:
        """Number of auxiliary genes."""
        return int(self.basis.genes.shape[1]) - self.n_targets

    def start(self, choices: Choices, *, pick_rank: bool = False) -> tuple[LowRank, Choices]:
        """Closed-form start under the chosen weights, and its rank: as chosen, or the best up to that on validation."""
        n_genes = self.basis.genes.shape[1]
        where = {"n_targets": self.n_targets, "n_genes": n_genes}
        weights = self.method.gene_weights(choices.cutoff, **where, temperature=self.config.temperature)
        weights[: self.n_targets] *= choices.target_weight
        pick_rank = pick_rank and self.config.rank is None
        start, rank = self._once(
            ("start", self.once.digest(weights), replace(choices, n_epochs=0), pick_rank),
            lambda: self._made_start(weights, choices, pick_rank=pick_rank),
        )
        return start, replace(choices, rank=rank)

    def _made_start(self, weights: FloatArray, choices: Choices, *, pick_rank: bool) -> tuple[LowRank, int]:
        """The start under these weights, and the rank of what all genes share of it."""
        widest = min(choices.rank, len(self.basis.singular_values))
        start = reduced_rank_ridge(self.basis, weights, alpha=choices.alpha, rank=widest)
        if pick_rank and self.validation is not None:
            start = start.cut(choose_rank(start, self.validation))
        rank = start.trunk.shape[1]
        if choices.own_alpha is not None:
            targets = self.basis.of_leading(self.n_targets)
            own = reduced_rank_ridge(targets, np.ones(self.n_targets), alpha=choices.own_alpha, rank=self.n_targets)
            start = start.averaged_with(own)
        return start, rank

    def plan(self, train: Train) -> Plan:
        """Pick what can be picked before training, by closed form or by ``train`` where the method asks for that.

        Raises
        ------
        ValueError
            There are no validation spots.
        """
        if self.validation is None:
            msg = "Without validation spots, choices= must say which penalty, cutoff and number of epochs to use."
            raise ValueError(msg)
        first = Choices(
            alpha=self._alpha(self.validation, self.n_targets + self.n_auxiliary),
            rank=self.config.rank or RANKS[-1],
            cutoff=1.0,
            n_epochs=0,
            own_alpha=self.own_alpha,
        )
        choices, trace = first, no_trace()
        if not self.method.uses_auxiliary:
            choices = replace(first, cutoff=0.0)
        elif candidates := self.method.candidates(first):
            choices, trace = self._best_of(candidates, train)
        elif self.method.searches:
            choices, trace = self._cutoff(first, train)
        start, choices = self.start(choices, pick_rank=True)
        return Plan(start, choices, trace)

    def saved(self, plain: dict[str, Any]) -> Plan:
        """The plan that :meth:`Plan.plain` came from."""
        start, choices = self.start(Choices(**plain["choices"]))
        trace = pd.DataFrame(plain["trace"]) if any(plain["trace"].values()) else no_trace()
        return Plan(start, choices, trace)

    def _cutoff(self, first: Choices, train: Train) -> tuple[Choices, pd.DataFrame]:
        """By the search that the settings name."""
        limit = self.config.hard_limit
        if self.config.search == "path" and self.validation is not None:
            n_genes = self.n_targets + max(round(limit * self.n_auxiliary), 1)
            alone = self._alpha(self.validation, self.n_targets)
            cutoff, trace = self._path(self.validation, n_genes, alpha=first.alpha, alone=alone)
            scale = (n_genes - self.n_targets) / self.n_auxiliary
            scaled = trace.assign(cutoff=trace["cutoff"] * scale)
            return replace(first, cutoff=cutoff * scale, alpha=first.alpha if cutoff else alone), scaled
        if self.config.search == "race":

            def at(cutoff: float, n_epochs: int) -> float:
                return train(*self.start(replace(first, cutoff=cutoff, n_epochs=n_epochs), pick_rank=True))

            cutoffs = [cutoff for cutoff in RACE_CUTOFFS if cutoff <= limit] or [limit]
            cutoff, trace = race_search(at, cutoffs=cutoffs)
            trace["k"] = np.round(trace["cutoff"] * self.n_auxiliary).astype(int)
            return replace(first, cutoff=cutoff), trace[list(TRACE_COLUMNS)]
        return replace(first, cutoff=min(self.config.gradient.start_cutoff, limit)), no_trace()

    def _path(self, validation: Validation, n_genes: int, *, alpha: float, alone: float) -> tuple[float, pd.DataFrame]:
        """Cutoff among the leading genes, and the scores of all that were tried."""
        rank = self.config.rank
        return self._once(
            ("path", n_genes, alpha, alone, rank),
            lambda: path_search(
                self.basis.of_leading(n_genes),
                validation,
                alpha=alpha,
                alone=alone,
                rank=rank,
                turned=self._turned(validation),
            ),
        )

    def _best_of(self, candidates: list[Choices], train: Train) -> tuple[Choices, pd.DataFrame]:
        """Train every candidate to its end; the first of the best."""
        whole = [self.start(replace(each, n_epochs=self.config.max_epochs), pick_rank=True) for each in candidates]
        scores = [train(*each) for each in whole]
        cutoffs = np.array([each.cutoff for each in candidates])
        trace = {
            "step": np.arange(len(scores)),
            "cutoff": cutoffs,
            "k": np.round(cutoffs * self.n_auxiliary).astype(int),
            "validation_pearson": scores,
        }
        return candidates[int(np.argmax(scores))], pd.DataFrame(trace)
