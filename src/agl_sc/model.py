"""A trained model: predicts, saves and loads; no pickle, no code runs on load."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors

from agl_sc._hub import OnHub
from agl_sc._lazyslide import LazySlideModel
from agl_sc._model_anndata import ToAnnData
from agl_sc._model_file import CARD, FORMAT, FORMAT_WITHOUT_LEVELS, WEIGHTS, checksum, in_order, read_model
from agl_sc._model_tables import numeric_table, scores_in
from agl_sc._model_text import description_of
from agl_sc._paths import check_parent, replacing
from agl_sc.core.arguments import path_of
from agl_sc.core.arrays import FloatArray
from agl_sc.core.encoders.load import Encoder, load_encoder
from agl_sc.core.encoders.trust import is_harmless
from agl_sc.core.linear.levels import Levels
from agl_sc.core.network.exact import ExactNetwork, softplus
from agl_sc.core.numerics.tensors import part
from agl_sc.core.spots.scaling import centred_rows, means_of, row_slices, scale_features, section_means


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Model(OnHub, ToAnnData):
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
    """Name of the method, as :func:`agl_sc.tl.train` takes it."""
    search: str | None
    """``"path"``, ``"gradient"`` or ``"race"``, or None without a learned cutoff."""
    cutoff: float | None
    """Learned cutoff on the rank axis, in [0, 1], or None."""
    best_epoch: int
    """Epoch that validation picked; 0 is the closed-form start."""
    card: dict[str, Any] = field(repr=False)
    """What it was made from: features (encoder, digest, tile_px, mpp), normalize, params, versions, training sections."""
    history: pd.DataFrame = field(repr=False)
    """A row per epoch: epoch, loss, validation_pearson, cutoff, k."""
    cutoff_trace: pd.DataFrame = field(repr=False)
    """A row per step of the search: step, cutoff, k, validation_pearson; empty without a learned cutoff."""
    trust_encoder: bool = True
    """Whether the encoder that the card names may be fetched from the network or from files; as :meth:`load` was told."""

    def __repr__(self) -> str:
        """Method, genes, encoder, tiles, training sections and how good it is, in a few lines."""
        (_, first), *rows = description_of(self)
        return "\n".join([f"Model: {first}", *(f"  {name}: {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        """The same as a table."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td style='text-align:left'>{escape(text)}</td></tr>"
            for name, text in description_of(self)
        )
        return f"<table>{rows}</table>"

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
    def scores(self) -> pd.DataFrame:
        """Held-out score of every modelled gene, as :func:`agl_sc.tl.predictable_genes` has it; empty for an older model."""
        return scores_in(self.card, self.genes)

    @property
    def finetuned(self) -> bool:
        """Whether the model brings an encoder of its own."""
        return any(name.startswith("encoder.") for name in self.tensors)

    @property
    def levels(self) -> Levels | None:
        """How levels of whole sections follow from their mean features; None where they are not predicted."""
        names = ("centre", "sections", "coefficients")
        if "levels.centre" not in self.tensors:
            return None
        return Levels(*(self.tensors[f"levels.{name}"].double().numpy() for name in names))

    def encoder(self) -> Encoder:
        """The encoder its features come from, with its own weights where it was fine-tuned.

        Raises
        ------
        ValueError
            A loaded card names an encoder that would have to be fetched, or files, and nobody said that it is to be
            trusted; or the fine-tuned weights are not those of this encoder.
        """
        check_encoder_is_trusted(self)
        made_from = self.card["features"]
        base = load_encoder(made_from["encoder"], stages=bool(made_from.get("stages", False)))
        if self.finetuned:
            try:
                base.module.load_state_dict(part(self.tensors, "encoder."))
            except RuntimeError as error:
                msg = f"The fine-tuned weights are not those of the encoder {made_from['encoder']!r} ({str(error).splitlines()[0]}); train again, or load an unaltered model."
                raise ValueError(msg) from error
        return base

    def predict(
        self,
        features: NDArray[np.floating[Any]],
        sections: NDArray[Any],
        reference: Mapping[Any, NDArray[np.floating[Any]]] | None = None,
    ) -> NDArray[np.float32]:
        """Predict from encoder features; the same bytes for a spot whichever others are predicted with it.

        Parameters
        ----------
        features
            Of the model's own encoder, (n_spots, n_features); rows with NaN give NaN.
        sections
            Section of every spot, (n_spots,); features are centred within each.
        reference
            Mean features of the tissue of every section, (n_features,), which they are centred on, such as
            :func:`agl_sc.pp.embed` keeps by region under ``reference``. Without, they are centred on the mean of the spots
            that are passed, which must then be whole sections: a part of one comes out as if it were the whole.

        Returns
        -------
        Expression in the units of the training layer, (n_spots, n_predicted).

        Raises
        ------
        KeyError
            ``reference`` lacks a section.
        ValueError
            The features have another width than the model's, ``sections`` another length, or a reference another shape.

        Examples
        --------
        >>> import agl_sc
        >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
        >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
        >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
        >>> model = agl_sc.tl.train(sdata, config=config)
        >>> table = sdata["table"]
        >>> features, sections = table.obsm["agl_features"], table.obs["section"].to_numpy()
        >>> reference = {name: features[sections == name].mean(axis=0) for name in set(sections)}
        >>> predicted = model.predict(features[:10], sections[:10], reference)
        >>> predicted.shape == (10, model.n_predicted)
        True
        """
        scale = self.tensors["feature_scale"].numpy()
        features, sections = np.asarray(features), np.asarray(sections)
        if features.dtype.kind not in "fiu" or sections.ndim != 1:
            msg = f"features are {features.dtype} and sections of shape {sections.shape}; pass a matrix of numbers, and the section of every spot."
            raise TypeError(msg)
        if features.ndim != 2 or features.shape[1] != len(scale):
            msg = f"features have shape {features.shape}, but the model needs (n_spots, {len(scale)}); embed with its encoder."
            raise ValueError(msg)
        if len(sections) != len(features):
            msg = f"sections has {len(sections)} entries for {len(features)} spots; pass the section of every spot."
            raise ValueError(msg)
        predicted = np.empty((len(features), self.n_predicted), dtype=np.float32)
        for rows, values in self.predicted_blocks(features, sections, reference):
            predicted[rows] = values
        return predicted

    def predicted_blocks(
        self,
        features: NDArray[np.floating[Any]],
        sections: NDArray[Any],
        reference: Mapping[Any, NDArray[np.floating[Any]]] | None = None,
        *,
        genes: NDArray[np.bool_] | None = None,
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """As :meth:`predict`, some spots after the others: their rows, and what is predicted of them.

        Parameters
        ----------
        features
            Of the model's own encoder, (n_spots, n_features).
        sections
            Section of every spot, (n_spots,).
        reference
            Mean features of the tissue of every section, (n_features,).
        genes
            Which of the predicted genes, (n_predicted,); all by default.
        """
        wanted = slice(None) if genes is None else np.flatnonzero(genes)
        scale = self.tensors["feature_scale"].double().numpy()
        codes, names = pd.factorize(np.asarray(sections), use_na_sentinel=False)
        codes = codes.astype(np.int64)
        means = section_means(features, codes) if reference is None else means_of(reference, names, len(scale))
        state = part(self.tensors, "network.")
        network = ExactNetwork.of({**state, **{name: state[name][wanted] for name in ("head.weight", "head.bias")}})
        slope, intercept = (self.tensors[name].double().numpy()[wanted] for name in ("slope", "intercept"))
        base = self.tensors["base"].double().numpy()[wanted] if "base" in self.tensors else None
        levels, shifts = self.levels, np.zeros((len(means), 1))
        if levels is not None:
            shifts = np.array([levels.shift(mean / scale) for mean in means])[:, wanted]
        for rows in row_slices(len(features), max(len(scale), len(slope))):
            raw = network(scale_features(centred_rows(features[rows], means[codes[rows]]), scale))
            values = (raw if base is None else softplus(raw + base)) * slope + intercept
            if levels is not None:
                values += shifts[codes[rows]]
            yield rows, values.astype(np.float32)

    def as_lazyslide(self, *, name: str = "agl_sc") -> LazySlideModel:
        """The model as LazySlide takes those that predict from features of tiles.

        ``lazyslide.tl.feature_prediction(wsi, model.as_lazyslide(), "uni")`` then writes a table of predictions. LazySlide's
        features are of one tile each, in one orientation: train on such (:func:`agl_sc.pp.use_features`, or ``context=(),
        orientations=1, stages=False`` of :func:`agl_sc.pp.embed`). Weights and tiles are not compared there.

        Parameters
        ----------
        name
            Under which LazySlide keeps the predictions, as table ``"{name}_tiles"``.

        Returns
        -------
        An object that satisfies ``FeaturePredictionModelProtocol``.

        Raises
        ------
        ValueError
            The model takes more than one tile per spot, or brings an encoder of its own.

        Examples
        --------
        >>> import agl_sc
        >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
        >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
        >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
        >>> model = agl_sc.tl.train(sdata, config=config)
        >>> model.as_lazyslide().features_model_name
        'efficientnet_lite0'
        """
        return LazySlideModel.of(self, name)

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

        Examples
        --------
        >>> import agl_sc
        >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
        >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
        >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
        >>> model = agl_sc.tl.train(sdata, config=config)
        >>> model.save("my_model")
        """
        path = check_model_path(path)
        data = save_tensors({name: tensor.contiguous() for name, tensor in self.tensors.items()})
        fields = self._fields()
        card = json.dumps({**fields, "sha256": checksum(data, fields)}, indent=1)
        with replacing(path) as fresh:
            fresh.mkdir()
            (fresh / WEIGHTS).write_bytes(data)
            (fresh / CARD).write_text(card, encoding="utf-8")

    def _fields(self) -> dict[str, Any]:
        plain = ("genes", "n_targets", "method", "search", "cutoff", "best_epoch")
        tables = {
            name: json.loads(getattr(self, name).to_json(orient="split", double_precision=15))
            for name in ("history", "cutoff_trace")
        }
        return {
            "format": FORMAT_WITHOUT_LEVELS if self.levels is None else FORMAT,
            **{k: getattr(self, k) for k in plain},
            "card": in_order(self.card),
            "weights": self.weights.tolist(),
            "selected": self.selected.tolist(),
            **tables,
        }

    @classmethod
    def load(cls, path: str | Path, *, trust_encoder: bool = False) -> "Model":
        """Read a model written by :meth:`save`.

        Parameters
        ----------
        path
            The folder.
        trust_encoder
            Let the model fetch the encoder that it names, from the network or from files of that name. Without, only the
            offline encoder, those of :func:`agl_sc.pp.encoders` and those already downloaded are loaded.

        Raises
        ------
        FileNotFoundError
            There is no model at ``path``.
        ValueError
            The files are truncated or altered, of another format, or a field is not what it must be.

        Examples
        --------
        >>> import agl_sc
        >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
        >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
        >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
        >>> model = agl_sc.tl.train(sdata, config=config)
        >>> model.save("my_model")
        >>> agl_sc.Model.load("my_model").targets == model.targets
        True
        """
        fields, tensors = read_model(path_of("path", path))
        tables: dict[str, Any] = {name: numeric_table(fields.pop(name)) for name in ("history", "cutoff_trace")}
        weights = np.array(fields.pop("weights"), dtype=float)
        selected = np.array(fields.pop("selected"), dtype=bool)
        return cls(
            tensors=tensors, weights=weights, selected=selected, **tables, **fields, trust_encoder=bool(trust_encoder)
        )


def check_encoder_is_trusted(model: Model) -> None:
    """Refuse to fetch an encoder only because a loaded card names it.

    Raises
    ------
    ValueError
        It is neither on this machine nor one of the listed ones, and :meth:`Model.load` was not told to trust it.
    """
    name = model.card["features"]["encoder"]
    if not model.trust_encoder and not is_harmless(name):
        msg = (
            f"The card of this model names the encoder {name!r}, which is fetched from elsewhere; if you know where the model "
            "comes from, load it with agl_sc.Model.load(path, trust_encoder=True), or pass --trust-encoder on the command line."
        )
        raise ValueError(msg)


def check_model_path(path: str | Path) -> Path:
    """Refuse a place where :meth:`Model.save` would fail or overwrite something else, before any work."""
    path = check_parent(path)
    if path.exists() and not (path / CARD).is_file():
        msg = f"{path} exists and is not a model; choose another path."
        raise FileExistsError(msg)
    return path
