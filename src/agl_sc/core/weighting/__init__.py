"""How losses per gene become one training loss: one file per method, one protocol, one table of methods."""

from agl_sc.core.weighting.amal import Amal
from agl_sc.core.weighting.auxilearn import AuxiLearn
from agl_sc.core.weighting.base import Weighting
from agl_sc.core.weighting.cosine import GradientCosine
from agl_sc.core.weighting.dkgsb import LearnedCutoff
from agl_sc.core.weighting.fixed import Fixed
from agl_sc.core.weighting.methods import METHODS, method_spec, weighting_for, with_auxiliary
from agl_sc.core.weighting.spec import MakeWeighting, MethodSpec
from agl_sc.core.weighting.uncertainty import Uncertainty

__all__ = [
    "METHODS",
    "Amal",
    "AuxiLearn",
    "Fixed",
    "GradientCosine",
    "LearnedCutoff",
    "MakeWeighting",
    "MethodSpec",
    "Uncertainty",
    "Weighting",
    "method_spec",
    "weighting_for",
    "with_auxiliary",
]
