"""A trained model: predicts, saves and loads; no pickle, no code runs on load."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from agl_sc._paths import check_parent, replacing
from agl_sc.core.arrays import FloatArray
from agl_sc.core.encoders.load import Encoder, load_encoder
from agl_sc.core.network.network import network_from
from agl_sc.core.numerics.tensors import part
from agl_sc.core.spots.counts import in_log_units
from agl_sc.core.spots.scaling import center_per_section, scale_features

FORMAT = 2
_CARD, _WEIGHTS = "model.json", "model.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A trained predictor of gene expression from H&E."""

    tensors: dict[str, torch.Tensor] = field(repr=False)
    """Parameters ``network.*`` and, when fine-tuned, ``encoder.*``; ``feature_scale`` (n_features,); ``slope`` and
    ``intercept`` (n_predicted,); for a likelihood ``base``, log of the mean normalised count, (n_predicted,)."""
    genes: list[str] = field(repr=False)
    """Modelled genes: targets, then auxiliary genes by prior rank."""
    weights: FloatArray = field(repr=False)
    """Weight of every modelled gene in training, in [0, 1], (n_genes,)."""
    n_targets: int
    """Number of leading genes that are targets."""
    selected: NDArray[np.bool_] = field(repr=False)
    """Modelled genes that are predicted: targets and selected auxiliary genes, (n_genes,)."""
    method: str
    """As :func:`agl_sc.tl.train` takes it."""
    search: str | None
    """``"path"``, ``"gradient"`` or ``"race"``, or None without a learned cutoff."""
    cutoff: float | None
    """Learned cutoff on the rank axis, in [0, 1], or None."""
    best_epoch: int
    """Epoch that validation picked; 0 is the closed-form start."""
    card: dict[str, Any] = field(repr=False)
    """What it was made from: features (encoder, digest, tile_px, mpp), normalize, params, versions, training sections."""
    history: pd.DataFrame = field(repr=False)
    """epoch, loss, validation_pearson, cutoff, k."""
    cutoff_trace: pd.DataFrame = field(repr=False)
    """step, cutoff, k, validation_pearson; empty without a learned cutoff."""

    @property
    def targets(self) -> list[str]:
        """Names of the target genes."""
        return self.genes[: self.n_targets]

    @property
    def predicted_genes(self) -> list[str]:
        """Names of the genes that are predicted."""
        return [gene for gene, selected in zip(self.genes, self.selected, strict=True) if selected]

    @property
    def n_predicted(self) -> int:
        """Number of genes that are predicted."""
        return int(self.selected.sum())

    @property
    def finetuned(self) -> bool:
        """Whether the model brings an encoder of its own."""
        return any(name.startswith("encoder.") for name in self.tensors)

    def encoder(self) -> Encoder:
        """The encoder its features come from, with its own weights where it was fine-tuned."""
        made_from = self.card["features"]
        base = load_encoder(made_from["encoder"], stages=bool(made_from.get("stages", False)))
        if self.finetuned:
            base.module.load_state_dict(part(self.tensors, "encoder."))
        return base

    def predict(self, features: NDArray[np.floating[Any]], sections: NDArray[Any]) -> NDArray[np.float32]:
        """Predict from encoder features.

        Parameters
        ----------
        features
            Of the model's own encoder, (n_spots, n_features); rows with NaN give NaN.
        sections
            Section of every spot, (n_spots,); features are centred within each.

        Returns
        -------
        Expression in the units of the training layer, (n_spots, n_predicted).

        Raises
        ------
        ValueError
            The features have another width than the model's, or ``sections`` another length.
        """
        scale = self.tensors["feature_scale"].numpy()
        if features.ndim != 2 or features.shape[1] != len(scale):
            msg = f"features have shape {features.shape}, but the model needs (n_spots, {len(scale)}); embed with its encoder."
            raise ValueError(msg)
        if len(sections) != len(features):
            msg = f"sections has {len(sections)} entries for {len(features)} spots; pass the section of every spot."
            raise ValueError(msg)
        codes = pd.factorize(np.asarray(sections))[0].astype(np.int64)
        inputs = scale_features(center_per_section(features.astype(float), codes), scale).astype(np.float32)
        network = network_from(part(self.tensors, "network."))
        with torch.inference_mode():
            raw = torch.cat([network(batch) for batch in torch.split(torch.from_numpy(inputs), 8192)])
            if "base" in self.tensors:
                raw = in_log_units(raw, self.tensors["base"])
        return (raw * self.tensors["slope"] + self.tensors["intercept"]).numpy()

    def save(self, path: str | Path) -> None:
        """Write a folder with ``model.safetensors`` and ``model.json``, replacing an older model there in one move.

        Parameters
        ----------
        path
            The folder.

        Raises
        ------
        FileExistsError
            There is something else than a model at ``path``.
        PermissionError
            The place cannot be written to.
        """
        path = check_model_path(path)
        data = save_tensors({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        fields = self._fields()
        card = json.dumps({**fields, "sha256": _checksum(data, fields)}, indent=1)
        with replacing(path) as fresh:
            fresh.mkdir()
            (fresh / _WEIGHTS).write_bytes(data)
            (fresh / _CARD).write_text(card, encoding="utf-8")

    def _fields(self) -> dict[str, Any]:
        plain = ("genes", "n_targets", "method", "search", "cutoff", "best_epoch", "card")
        tables = {
            name: json.loads(getattr(self, name).to_json(orient="split", double_precision=15))
            for name in ("history", "cutoff_trace")
        }
        return {
            "format": FORMAT,
            **{k: getattr(self, k) for k in plain},
            "weights": self.weights.tolist(),
            "selected": self.selected.tolist(),
            **tables,
        }

    @classmethod
    def load(cls, path: str | Path) -> "Model":
        """Read a model written by :meth:`save`.

        Parameters
        ----------
        path
            The folder.

        Raises
        ------
        FileNotFoundError
            There is no model at ``path``.
        ValueError
            The files are truncated or altered, or of a newer format.
        """
        path = Path(path)
        for name in (_CARD, _WEIGHTS):
            if not (path / name).is_file():
                msg = f"{path} is not a model: {name} is missing; pass a folder written by Model.save."
                raise FileNotFoundError(msg)
        data = (path / _WEIGHTS).read_bytes()
        try:
            fields = json.loads((path / _CARD).read_text(encoding="utf-8"))
        except ValueError as error:  # neither JSON nor even text
            msg = f"{path / _CARD} is truncated or altered ({error}); save the model again."
            raise ValueError(msg) from error
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            msg = f"{path} is of another model format than {FORMAT}; load it with the agl-sc version that wrote it."
            raise ValueError(msg)
        if fields.pop("sha256", None) != _checksum(data, fields):
            msg = (
                f"{path} is truncated or altered: its files do not have the checksum in {_CARD}; save the model again."
            )
            raise ValueError(msg)
        del fields["format"]
        tables: dict[str, Any] = {name: _numeric_table(fields.pop(name)) for name in ("history", "cutoff_trace")}
        weights = np.array(fields.pop("weights"), dtype=float)
        selected = np.array(fields.pop("selected"), dtype=bool)
        return cls(tensors=load_tensors(data), weights=weights, selected=selected, **tables, **fields)


def check_model_path(path: str | Path) -> Path:
    """Refuse a place where :meth:`Model.save` would fail or overwrite something else, before any work."""
    path = check_parent(path)
    if path.exists() and not (path / _CARD).is_file():
        msg = f"{path} exists and is not a model; choose another path."
        raise FileExistsError(msg)
    return path


def _checksum(data: bytes, fields: dict[str, Any]) -> str:
    """SHA-256 of weights and card."""
    return hashlib.sha256(data + json.dumps(fields).encode()).hexdigest()


def _numeric_table(split: dict[str, Any]) -> pd.DataFrame:
    """Table from its JSON, where a column of nothing but NaN is a column of nulls."""
    return pd.DataFrame({name: pd.to_numeric(column) for name, column in pd.DataFrame(**split).items()})
