"""Training, prediction and evaluation."""

from agl_sc.core.config import TrainConfig
from agl_sc.tl._cross_validate import cross_validate
from agl_sc.tl._evaluate import evaluate
from agl_sc.tl._paper import paper_benchmark, paper_prepare, paper_summary
from agl_sc.tl._predict import predict
from agl_sc.tl._train import train

__all__ = ["cross_validate", "evaluate", "paper_benchmark", "paper_prepare", "paper_summary", "predict", "train"]
__all__ += ["TrainConfig"]
