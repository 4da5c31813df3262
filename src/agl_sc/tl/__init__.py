"""Training, prediction and evaluation."""

from agl_sc.core.config import TrainConfig
from agl_sc.tl._evaluate import evaluate
from agl_sc.tl._predict import predict
from agl_sc.tl._train import train

__all__ = ["evaluate", "predict", "train"]
__all__ += ["TrainConfig"]
