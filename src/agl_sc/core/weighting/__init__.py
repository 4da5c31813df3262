"""How losses per gene become one training loss: one file per method, one protocol."""

from agl_sc.core.choices import Choices
from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.weighting.amal import Amal
from agl_sc.core.weighting.auxilearn import AuxiLearn
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.cosine import GradientCosine
from agl_sc.core.weighting.dkgsb import LearnedCutoff
from agl_sc.core.weighting.fixed import Fixed, gene_weights
from agl_sc.core.weighting.uncertainty import Uncertainty

__all__ = [
    "Amal",
    "AuxiLearn",
    "Fixed",
    "GradientCosine",
    "LearnedCutoff",
    "Uncertainty",
    "Weighting",
    "gene_weights",
    "weighting_for",
]

LEARNED: dict[str, type[Uncertainty | AuxiLearn | Amal | GradientCosine]] = {
    "uncertainty": Uncertainty,
    "auxilearn": AuxiLearn,
    "amal": Amal,
    "cosine": GradientCosine,
}


def weighting_for(
    method: Method, choices: Choices, *, n_targets: int, n_genes: int, config: TrainConfig, search: bool
) -> Weighting:
    """Weighting of a method; ``search`` says whether the cutoff is still to be learned by gradient."""
    if method in LEARNED:
        return LEARNED[method](n_targets, n_genes)
    if search:
        return LearnedCutoff(n_targets, n_genes, config=config)
    weights = gene_weights(method, choices.cutoff, n_targets=n_targets, n_genes=n_genes, temperature=config.temperature)
    return Fixed(n_targets, weights, target_weight=choices.target_weight)
