"""Where training stands, on disk: written whole or not at all, and refused by a training of another kind."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from agl_sc.core.numerics.tensors import Tensors, part
from agl_sc.core.writing.staging import staged

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that training writes after every epoch and continues from."""

    path: Path
    """The file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What must be the same for a training to continue; plain JSON values."""

    def write(self, tensors: Tensors, progress: Mapping[str, Any]) -> None:
        """Replace the file in one move; when that fails, say so and leave the earlier one."""
        metadata = {"progress": json.dumps(dict(progress)), "settings": json.dumps(dict(self.settings))}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(plain, metadata={**metadata, "sha256": _checksum(plain, metadata)})
        try:
            with staged([self.path]) as (fresh,):
                fresh.write_bytes(data)
        except OSError as error:
            logger.warning(
                "The checkpoint %s could not be written (%s); the one before it is intact.", self.path, error
            )

    def read(self) -> tuple[Tensors, dict[str, Any]] | None:
        """Tensors and progress, or None where there is no file.

        Raises
        ------
        ValueError
            The file is damaged, or of a training with other settings.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            msg = f"The checkpoint {self.path} is damaged ({error}); delete it to start again."
            raise ValueError(msg) from error
        if metadata.pop("sha256", None) != _checksum(tensors, metadata):
            msg = f"The checkpoint {self.path} is damaged (it does not have its checksum); delete it to start again."
            raise ValueError(msg)
        written, wanted = json.loads(metadata.get("settings", "{}")), json.loads(json.dumps(dict(self.settings)))
        for name in sorted({*written, *wanted}):
            if written.get(name) != wanted.get(name):
                msg = (
                    f"The checkpoint {self.path} is of another training: {name} was {written.get(name)!r} and is now "
                    f"{wanted.get(name)!r}; pass the same {name}, or another checkpoint."
                )
                raise ValueError(msg)
        return tensors, json.loads(metadata["progress"])


def _checksum(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """SHA-256 of everything in a checkpoint."""
    sha = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer, prefix: str) -> Tensors:
    """State of an optimiser as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}{index}.{key}": value for index, entries in state.items() for key, value in entries.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors, prefix: str) -> None:
    """Give an optimiser the state that :func:`optimizer_tensors` made."""
    state: dict[int, Tensors] = {}
    for name, tensor in part(tensors, prefix).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
