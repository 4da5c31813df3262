"""What a cross-validation or a benchmark is asked for, checked before any work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agl_sc._paths import check_folder
from agl_sc.core.arguments import check_seed, is_whole
from agl_sc.core.config import checked_config
from agl_sc.core.evaluation.section_metrics import check_names
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._splits.folds import Fold, FoldPlan
from agl_sc.pp._splits.own_folds import OwnFolds
from agl_sc.pp._splits.units import By
from agl_sc.tl._benchmark.arms import ARMS, check_methods
from agl_sc.tl._benchmark.runs import Protocol
from agl_sc.tl._model.train import smaller_batch


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is asked for, checked before any work."""

    methods: list[str]
    """Names of arms."""
    metrics: Sequence[str]
    """Names of metrics."""
    plan: FoldPlan | None
    """How spots are divided into folds; None for those in place."""
    n_seeds: int
    """Seeds of every arm that draws anything."""
    seed: int
    """The first of them."""
    protocol: Protocol
    """What all runs have in common."""
    folder: Path | None
    """Where finished runs are kept."""
    own_folds: OwnFolds | None = None
    """Folds of the user's own, instead of a plan."""
    tiles: FeatureRequest = field(default_factory=FeatureRequest)
    """How features are made where there are none."""
    predictions: str | None = None
    """Method whose out-of-fold predictions are written; the first if None."""
    is_preset: bool = False
    """Whether folds and settings are the paper's, with ``changes=`` to them, rather than a ``config=``."""

    def __post_init__(self) -> None:
        check_methods(self.methods)
        check_names(self.metrics)
        check_seed(self.seed)
        if not is_whole(self.n_seeds) or self.n_seeds < 1:
            msg = f"seeds={self.n_seeds!r} is not a number of seeds from 1; the first of them is seed=."
            raise ValueError(msg)
        if self.predictions not in (None, *self.methods):
            msg = (
                f"predictions={self.predictions!r} is not among the methods that are fitted: {', '.join(self.methods)}."
            )
            raise ValueError(msg)

    @property
    def written(self) -> str:
        """Method whose out-of-fold predictions are written."""
        return self.predictions or self.methods[0]

    def smaller_batch(self, n_train: int) -> str:
        """How to mend a batch that is larger than the training set of a fold."""
        return smaller_batch(n_train, with_changes=self.is_preset)

    def more_validation(self) -> str:
        """How to mend folds in which too little picks."""
        if self.is_preset:
            return "take sections with more spots"
        if self.own_folds is not None and not isinstance(self.own_folds, str):
            return "give it some in folds="
        return "run agl_sc.pp.split(sdata, n_folds=5, validation=0.2)" if self.plan is None else "pass validation=0.2"

    def seeds_of(self, name: str) -> range:
        """Seeds of an arm; one where nothing is drawn."""
        return range(self.seed, self.seed + (self.n_seeds if ARMS[name].drawn else 1))

    def runs(self, folds: Sequence[Fold]) -> list[tuple[Fold, str, int]]:
        """Every fold with every arm and seed."""
        return [(fold, name, seed) for fold in folds for name in self.methods for seed in self.seeds_of(name)]


def requested(
    methods: list[str],
    *,
    by: By | None,
    plan: dict[str, Any],
    protocol: dict[str, Any],
    metrics: Sequence[str],
    checkpoint: str | Path | None,
    seed: int,
    **rest: Any,
) -> Request:
    """What the arguments of an entry point ask for, refused where it makes no sense."""
    if by is None and plan["n_folds"] is not None:
        msg = f"n_folds={plan['n_folds']} says how to divide, but by=None takes the folds that are there; pass one of the two."
        raise ValueError(msg)
    if rest.get("own_folds") is not None and plan["n_folds"] is not None:
        msg = f"n_folds={plan['n_folds']} says how to divide, but folds= gives the folds; pass one of the two."
        raise ValueError(msg)
    config = checked_config(protocol["config"])
    return Request(
        methods,
        metrics=metrics,
        plan=None if by is None else FoldPlan(by, seed=seed, **plan),
        protocol=Protocol(**{**protocol, "config": config}),
        folder=None if checkpoint is None else check_folder(checkpoint),
        seed=seed,
        **rest,
    )
