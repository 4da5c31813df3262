"""The table of methods, and what ``method=`` means."""

import logging

from agl_sc.core.choices import Choices
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.weighting.amal import Amal
from agl_sc.core.weighting.auxilearn import AuxiLearn
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.cosine import GradientCosine
from agl_sc.core.weighting.dkgsb import LearnedCutoff
from agl_sc.core.weighting.fixed import FIXED_CUTOFFS, TARGET_WEIGHTS, Fixed, leading_genes, no_gene, soft_leading_genes
from agl_sc.core.weighting.spec import MakeWeighting, MethodSpec, made_by, row_of
from agl_sc.core.weighting.uncertainty import Uncertainty

logger = logging.getLogger(__name__)

METHODS: dict[str, MethodSpec] = {
    row.name: row
    for row in (
        MethodSpec("pgl", "targets only", auxiliary_weights=no_gene, uses_auxiliary=False),
        MethodSpec("agl", "all auxiliary"),
        MethodSpec("dkgsb", "DkGSB", auxiliary_weights=soft_leading_genes, learns_cutoff=True),
        MethodSpec(
            "denoiser", "auxiliary genes only denoise", auxiliary_weights=no_gene, uses_auxiliary=False, denoises=True
        ),
        MethodSpec("fixed_k", "fixed k", auxiliary_weights=leading_genes, cutoffs=FIXED_CUTOFFS),
        MethodSpec("target_weight", "tuned target weight", target_weights=TARGET_WEIGHTS),
        MethodSpec("uncertainty", "uncertainty", Uncertainty, relearns=True),
        MethodSpec("auxilearn", "AuxiLearn", AuxiLearn),
        MethodSpec("amal", "AMAL", Amal),
        MethodSpec("cosine", "gradient cosine", GradientCosine, relearns=True),
    )
}
"""Every method of the package by its name."""


def method_spec(method: Method | MethodSpec | MakeWeighting) -> MethodSpec:
    """The row that ``method=`` of an entry point means.

    Parameters
    ----------
    method
        A name of :data:`METHODS`, a row, or what makes a weighting: a subclass of :class:`Weighting`, or a callable.

    Raises
    ------
    TypeError
        It is something else, a weighting that is made already, or makes none of the numbers of targets and genes.
    ValueError
        There is no method of this name, or the name of a row or a callable is one of the package's.
    """
    if isinstance(method, str):
        if method not in METHODS:
            msg = f"method={method!r} is not one of {_names()}."
            raise ValueError(msg)
        return METHODS[method]
    spec = method if isinstance(method, MethodSpec) else row_of(method)
    if METHODS.get(spec.name, spec) is not spec:
        msg = f"method={method!r} is called {spec.name!r} as one of the package's own is; give it a name that is none of {_names()}."
        raise ValueError(msg)
    return spec


def with_auxiliary(spec: MethodSpec, n_auxiliary: int) -> MethodSpec:
    """The method, or ``"pgl"`` with a warning where there are no auxiliary genes."""
    if n_auxiliary or not spec.sees_auxiliary:
        return spec
    logger.warning("There are no auxiliary genes: method=%r becomes 'pgl'.", spec.name)
    return METHODS["pgl"]


def weighting_for(
    spec: MethodSpec, choices: Choices, *, n_targets: int, n_genes: int, config: TrainConfig, search: bool
) -> Weighting:
    """Weighting of a method; ``search`` says whether the cutoff is still to be learned by gradient."""
    if spec.weighting is not None:
        return made_by(spec, n_targets, n_genes)
    if search:
        return LearnedCutoff(n_targets, n_genes, config=config)
    where = {"n_targets": n_targets, "n_genes": n_genes}
    weights = spec.gene_weights(choices.cutoff, **where, temperature=config.temperature)
    return Fixed(n_targets, weights, target_weight=choices.target_weight)


def _names() -> str:
    return ", ".join(map(repr, METHODS))
