"""Not a test: what test_processes.py runs in one process and in two."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from scipy.sparse import csr_matrix

from agl_sc.core.config import Method, TrainConfig
from agl_sc.core.linear.choose_denoising import NOT_DENOISED, choose_denoising, denoised
from agl_sc.core.spots.counts import Counts
from agl_sc.core.spots.denoise import Denoised
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.checkpoint import Checkpoint
from agl_sc.core.training.fit import fit
from agl_sc.core.training.rounds import fit_in_rounds
from agl_sc.core.weighting import method_spec

BATCH = 32
GRADIENT: dict[str, Any] = {"search": "gradient", "inner_steps": 2, "outer_lr": 0.05, "temperature": 0.05}
ARMS: dict[str, tuple[Method, dict[str, Any]]] = {
    "agl": ("agl", {}),
    "dkgsb": ("dkgsb", GRADIENT),
    "uncertainty": ("uncertainty", {}),
    "poisson": ("agl", {"loss": "poisson"}),
    "multinomial": ("agl", {"loss": "multinomial"}),
    "denoised": ("agl", {"denoise_genes": [5, 20], "denoise_components": [2, 4], "denoise_mix": [0.8]}),
    "rounds": ("dkgsb", {**GRADIENT, "start": "agl", "search_patience": 2, "lr": 2e-2}),
}
SIZES = {"even": 96, "odd": 91}


def spots(n: int) -> tuple[Spots, Validation]:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(160, 8))
    signal = np.tanh(features @ rng.normal(size=(8, 24)))
    expression = signal + rng.normal(size=(160, 24))
    sections = np.arange(160) % 2
    values = rng.poisson(np.exp(signal + 1)).astype(float)
    counts = Counts(csr_matrix(values[:n]), values[:n].sum(axis=1), 100.0)
    training = Spots(features[:n], Expression.from_dense(expression[:n]), sections[:n], counts)
    return training, Validation(features[96:], expression[96:, :4], sections[96:])


def trained(
    arm: str, size: str, *, accelerator: Accelerator, checkpoint: Checkpoint | None = None
) -> dict[str, torch.Tensor]:
    """State, weights and history of one training, the batch being the same whatever the number of processes."""
    method, changes = ARMS[arm]
    small = {"rank": 4, "hidden": 8, "lr": 3e-3, "max_epochs": 4, "dropout": 0.0, "start": "random"}
    batch = BATCH // accelerator.num_processes
    config = TrainConfig.from_plain({**small, "batch_size": batch, "outer_batch_size": BATCH, **changes})
    common: dict[str, Any] = {"n_targets": 4, "config": config, "accelerator": accelerator, "checkpoint": checkpoint}
    training, validation = spots(SIZES[size])
    choice = NOT_DENOISED if config.denoise is None else choose_denoising(training, 4, config.denoise)
    if not choice.trace.empty:  # whichever is chosen, one of them is trained on
        training = denoised(training, 4, Denoised(20, 4, 0.8))
    if config.start == "agl":
        result = fit_in_rounds(training, validation, method=method_spec(method), **common)
    else:
        result = fit(training, validation, method=method_spec(method), **common)
    table = {
        f"history.{name}": torch.from_numpy(result.history[name].to_numpy(dtype=float, copy=True))
        for name in result.history
    }
    table["denoising"] = torch.from_numpy(choice.trace["pearson"].to_numpy(dtype=float, copy=True))
    return {**result.state, "weights": torch.from_numpy(result.weights), **table}


def main(folder: Path) -> None:
    """Every arm with every size, and once more from its checkpoint; what each process has."""
    accelerator = Accelerator(cpu=True)
    for size in SIZES:
        for arm in ARMS:
            file = Checkpoint(folder / f"checkpoint.{arm}.{size}")
            for name in ("first", "again"):
                found = trained(arm, size, accelerator=accelerator, checkpoint=file)
                save_file(found, folder / f"{name}.{arm}.{size}.{accelerator.process_index}")
    damaged = folder / "damaged"
    if accelerator.is_main_process:
        damaged.write_bytes(b"not a checkpoint")
    try:
        trained("agl", "even", accelerator=accelerator, checkpoint=Checkpoint(damaged))
    except ValueError as error:
        (folder / f"refused.{accelerator.process_index}").write_text(str(error))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
