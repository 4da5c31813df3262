"""Training, prediction and evaluation."""

from agl_sc.core.config import Denoise, GradientSearch, TrainConfig
from agl_sc.core.weighting import MethodSpec, Weighting
from agl_sc.tl._benchmark.benchmark import benchmark
from agl_sc.tl._benchmark.cross_validate import cross_validate
from agl_sc.tl._benchmark.paper import paper_benchmark, paper_prepare, paper_summary
from agl_sc.tl._benchmark.result import Benchmark, CrossValidation
from agl_sc.tl._evaluate import evaluate
from agl_sc.tl._export import to_anndata
from agl_sc.tl._model.adapt import adapt
from agl_sc.tl._model.predict import predict
from agl_sc.tl._model.train import train
from agl_sc.tl._predictable import predictable_genes

__all__ = ["benchmark", "cross_validate", "evaluate", "predict", "predictable_genes", "train"]
__all__ += ["adapt", "to_anndata"]
__all__ += ["paper_benchmark", "paper_prepare", "paper_summary"]
__all__ += ["Benchmark", "CrossValidation", "Denoise", "GradientSearch", "MethodSpec", "TrainConfig", "Weighting"]
