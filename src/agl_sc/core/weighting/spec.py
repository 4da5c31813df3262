"""What sets a method apart: a row of the table of methods, or one of the user's own."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from agl_sc.core.arrays import FloatArray
from agl_sc.core.choices import Choices
from agl_sc.core.config import TEMPERATURE
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.fixed import AuxiliaryWeights, beside_targets, every_gene

MakeWeighting = Callable[[int, int], Weighting]
"""From the numbers of targets and of all genes to a weighting; a subclass of :class:`Weighting`, for example."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """How auxiliary genes are weighted: a row of the table of methods, or one of your own.

    A weighting of your own is a subclass of :class:`agl_sc.tl.Weighting`. ``train(method=MyWeighting)`` takes it as it is;
    a row says what differs from the defaults.
    """

    name: str
    """What a model remembers; none of the package's own."""
    label: str
    """In tables and figures."""
    weighting: MakeWeighting | None = None
    """Makes the weighting from the numbers of targets and of all genes; None where weights are known before training."""
    auxiliary_weights: AuxiliaryWeights = every_gene
    """From a cutoff, the number of auxiliary genes and the temperature to the weights that training starts with, in closed
    form too, in [0, 1], by prior rank; they stay where there is no ``weighting``."""
    uses_auxiliary: bool = True
    """Whether any auxiliary gene is modelled."""
    denoises: bool = False
    """Whether auxiliary genes denoise the targets, modelled or not; by the default candidates where the settings name none."""
    learns_cutoff: bool = False
    """Whether a cutoff on the rank axis is learned: by ``weighting`` where there is one, else as ``search`` of the settings says."""
    relearns: bool = False
    """Whether ``weighting`` learns from training spots alone, so that it learns again when training is repeated on training and
    validation spots; its last weights are kept otherwise."""
    cutoffs: tuple[float, ...] = ()
    """Cutoffs that are trained, each to its end, of which validation takes the best."""
    target_weights: tuple[float, ...] = ()
    """Weights of a target beside an auxiliary gene's of 1, of which validation takes the best likewise."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            msg = f"name={self.name!r} is not a name; models and tables call the method by it."
            raise ValueError(msg)
        if self.weighting is not None:
            _check_maker(self.weighting, f"weighting={self.weighting!r}")

    @property
    def sees_auxiliary(self) -> bool:
        """Whether auxiliary genes are modelled or denoise."""
        return self.uses_auxiliary or self.denoises

    @property
    def searches(self) -> bool:
        """Whether the cutoff is learned as the settings say."""
        return self.learns_cutoff and self.weighting is None

    @property
    def has_cutoff(self) -> bool:
        """Whether the cutoff of a trained model means anything."""
        return self.learns_cutoff or bool(self.cutoffs)

    def candidates(self, first: Choices) -> list[Choices]:
        """What is trained for validation to choose from; empty where nothing is chosen so."""
        if not self.cutoffs and not self.target_weights:
            return []
        pairs = product(self.cutoffs or (first.cutoff,), self.target_weights or (first.target_weight,))
        return [replace(first, cutoff=cutoff, target_weight=weight) for cutoff, weight in pairs]

    def gene_weights(
        self, cutoff: float, *, n_targets: int, n_genes: int, temperature: float = TEMPERATURE
    ) -> FloatArray:
        """Weight of every gene, targets first, then auxiliary genes by prior rank, (n_genes,); inactive ones exactly 0."""
        n_auxiliary = n_genes - n_targets
        weights = np.asarray(self.auxiliary_weights(cutoff, n_auxiliary, temperature), dtype=float)
        _check_weights(weights, n_auxiliary, f"auxiliary_weights of method {self.name!r}")
        return beside_targets(weights, n_targets)


def row_of(make: Any) -> MethodSpec:
    """A row, all defaults, of what makes a weighting, by the name of its class or function."""
    _check_maker(make, f"method={make!r}")
    of = getattr(make, "func", make)  # of a partial function
    name = getattr(of, "__name__", type(of).__name__)
    if not name.isidentifier():  # of a lambda
        msg = f"method={make!r} has no name; pass agl_sc.tl.MethodSpec(name, label, weighting=...) with one."
        raise TypeError(msg)
    return MethodSpec(name, name, weighting=make)


def _check_maker(make: Any, given: str) -> None:
    if isinstance(make, Weighting):
        msg = f"{given} is made already, and the number of genes is not known before training; pass its class, or functools.partial of it."
        raise TypeError(msg)
    if not callable(make) or (inspect.isclass(make) and not issubclass(make, Weighting)):
        msg = f"{given} is neither the name of a method nor a subclass of agl_sc.tl.Weighting, nor a function that makes one."
        raise TypeError(msg)
    try:
        inspect.signature(make).bind(1, 2)
    except (TypeError, ValueError) as error:  # the latter where it has no signature
        msg = f"{given} cannot be called with the number of targets and the number of all genes alone ({error})."
        raise TypeError(msg) from error


def made_by(spec: MethodSpec, n_targets: int, n_genes: int) -> Weighting:
    """The weighting that a row makes, refused before training where it is none.

    Raises
    ------
    TypeError
        What was made is no weighting.
    ValueError
        Its weights have another shape than the genes, or are not in [0, 1].
    """
    made: Any = None if spec.weighting is None else spec.weighting(n_targets, n_genes)
    if not isinstance(made, Weighting):
        msg = f"method {spec.name!r} makes a {type(made).__name__}, not an agl_sc.tl.Weighting; derive it from that."
        raise TypeError(msg)
    _check_weights(np.asarray(made.weights()), n_genes, f"weights() of method {spec.name!r}")
    return made


def _check_weights(weights: FloatArray, n: int, what: str) -> None:
    if weights.shape != (n,) or not ((weights >= 0) & (weights <= 1)).all():
        span = f"from {weights.min(initial=1)} to {weights.max(initial=0)}"
        msg = f"{what} has shape {weights.shape} and values {span}; it has to be of shape ({n},), in [0, 1]."
        raise ValueError(msg)
