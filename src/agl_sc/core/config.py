"""Settings of training, checked when they are made."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import wraps
from typing import Any, Literal, TypeVar, get_args, get_origin

import numpy as np

from agl_sc.core.arguments import check_choice, check_flag, is_number, is_whole

Method = Literal[
    "pgl", "agl", "dkgsb", "denoiser", "fixed_k", "target_weight", "uncertainty", "auxilearn", "amal", "cosine"
]
Search = Literal["path", "gradient", "race"]
Preset = Literal["paper", "released", "warmstart"]
LossName = Literal["pearson", "mse", "poisson", "negative_binomial", "multinomial"]
Start = Literal["closed_form", "random", "agl"]
_Class = TypeVar("_Class", bound=type)

TEMPERATURE = 0.01
"""Width of the soft edge on the rank axis, as in the paper."""
_LR_FEATURES = 1280
"""Features up to which the learning rate is the one that is set: those of one tile through the offline encoder."""
LIKELIHOODS: tuple[LossName, ...] = ("poisson", "negative_binomial", "multinomial")
"""Losses of raw counts."""
LEVEL_FREE: tuple[LossName, ...] = ("pearson", "multinomial")
"""Losses that do not change where a constant is added to all predictions of a gene."""
MIN_BATCH = 8
"""A smaller last batch is dropped: Pearson over a few spots is noise."""


_Legal = dict[str, tuple[bool, str]]
"""By name of a setting whether its value is legal, and what is."""


def _check_kinds(settings: Any) -> None:
    """Refuse settings of another kind than their annotation says."""
    for each in fields(settings):
        name, value, kind = each.name, getattr(settings, each.name), each.type
        if kind is bool:
            check_flag(name, value)
        elif get_origin(kind) is Literal:
            check_choice(name, value, get_args(kind))
        elif kind is float and not is_number(value):
            raise TypeError(_no_number(name, value, f"a number; the default is {each.default!r}"))
        elif kind is float and np.isinf(value):
            msg = f"{name}={value!r} is not finite; the default is {each.default!r}."
            raise ValueError(msg)
        elif kind is int and not is_whole(value):
            raise TypeError(_no_number(name, value, f"a whole number; the default is {each.default!r}"))
        elif kind == int | None and value is not None and not is_whole(value):
            raise TypeError(_no_number(name, value, "a whole number or None"))


def _no_number(name: str, value: object, what: str) -> str:
    return f"{name}={value!r} is a {type(value).__name__}, not {what}."


def _refuse_what_is_not(settings: object, legal: _Legal) -> None:
    for name, (fine, what) in legal.items():
        if not fine:
            msg = f"{name}={getattr(settings, name)!r} is not {what}."
            raise ValueError(msg)


def _at_least(settings: object, least: Mapping[str, int]) -> _Legal:
    return {name: (getattr(settings, name) >= value, f"at least {value}") for name, value in least.items()}


def _at_least_or_none(settings: object, least: Mapping[str, int]) -> _Legal:
    values = {name: (getattr(settings, name), value) for name, value in least.items()}
    return {
        name: (given is None or given >= value, f"at least {value}, or None") for name, (given, value) in values.items()
    }


@dataclass(frozen=True, slots=True)
class GradientSearch:
    """Settings of the paper's hyper-gradient: what matters with ``search="gradient"`` or ``start="agl"`` alone."""

    start_cutoff: float = 0.5
    """Where the search starts, in [0, 1]; at the hard limit where that is lower."""
    inner_steps: int = 12
    """Training steps that a hyper-gradient differentiates through."""
    warm_moments: bool = True
    """Inner steps start from the training optimiser's moments; a fresh Adam hides nearly all of the derivative."""
    hessian: bool = True
    """The exact hyper-gradient; otherwise without its Hessian term, in about half the time."""
    detach_normalizer: bool = False
    """Take the sum of weights in the training loss for a constant in the hyper-gradient."""
    outer_lr: float = 3e-3
    """Learning rate of Adam on the cutoff."""
    outer_batch_size: int | None = None
    """Training spots per hyper-gradient; ``batch_size`` if None."""
    validation_batch_size: int | None = None
    """Validation spots per hyper-gradient; all if None."""
    warmup_epochs: int = 1
    """Epochs before the search begins."""
    search_patience: int = 20
    """Epochs of searching without a lower validation loss, where search and training take turns (``start="agl"``)."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _refuse_what_is_not(
            self,
            {
                "start_cutoff": (0 <= self.start_cutoff <= 1, "in [0, 1]"),
                "outer_lr": (self.outer_lr > 0, "positive"),
                **_at_least(self, {"inner_steps": 1, "warmup_epochs": 0, "search_patience": 1}),
                **_at_least_or_none(self, {"outer_batch_size": MIN_BATCH, "validation_batch_size": MIN_BATCH}),
            },
        )


@dataclass(frozen=True, slots=True)
class Denoise:
    """Candidates for denoising the targets that are trained on: of each several values, leaving out training sections chooses.

    A target is replaced by a mix of what was measured and its projection on the leading principal components of targets and
    auxiliary genes, fitted to the training spots of every section. Validation, calibration and metrics see what was measured.
    """

    genes: tuple[int, ...] = (0, 1000, 3000)
    """Numbers of auxiliary genes beside the targets, the leading ones by prior rank; all where there are fewer. Methods without
    auxiliary genes have 0."""
    components: tuple[int, ...] = (5, 10, 20, 40)
    """Numbers of components: the deeper the counts, the more of them are not noise."""
    mix: tuple[float, ...] = (0.5,)
    """Shares of the projection, in (0, 1]. Half: networks on more keep less of what the depth of a spot does not explain."""

    def __post_init__(self) -> None:
        for name in ("genes", "components", "mix"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _refuse_what_is_not(
            self,
            {
                "genes": (_all_in(self.genes, 0), "one or more numbers of genes, each at least 0"),
                "components": (_all_in(self.components, 1), "one or more numbers of components, each at least 1"),
                "mix": (
                    bool(self.mix) and all(0 < each <= 1 for each in self.mix),
                    "one or more shares, each in (0, 1]; TrainConfig(denoise=None) leaves targets as measured",
                ),
            },
        )

    def plain(self) -> dict[str, list[float]]:
        """Values as lists, by the names that a stored form holds."""
        return {_DENOISE + field.name: list(getattr(self, field.name)) for field in fields(self)}


def _all_in(values: tuple[int, ...], least: int) -> bool:
    return bool(values) and all(is_whole(each) and each >= least for each in values)


_DENOISE = "denoise_"
_MOVED = tuple(field.name for field in fields(GradientSearch))


def _taking_moved(cls: _Class) -> _Class:
    """For one version, take settings of :class:`GradientSearch` by the names that ``TrainConfig`` itself had."""
    made = cls.__init__  # type: ignore[misc]

    @wraps(made)
    def init(self: Any, *args: Any, **settings: Any) -> None:
        moved = {name: settings.pop(name) for name in _MOVED if name in settings}
        if moved:
            new = ", ".join(f"{name}={value!r}" for name, value in moved.items())
            what = (
                f"{new} is now of the gradient search: TrainConfig(gradient=GradientSearch({new})), or gradient={moved!r} "
                "with a preset; the old form goes in the next version."
            )
            warnings.warn(what, FutureWarning, stacklevel=2)
            settings["gradient"] = replace(settings.get("gradient", GradientSearch()), **moved)
        made(self, *args, **settings)

    cls.__init__ = init  # type: ignore[misc]
    return cls


@_taking_moved
@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Settings of training."""

    loss: LossName = "pearson"
    """``"pearson"``, 1 - Pearson within every section of a batch; ``"mse"``, squared error of scaled expression;
    ``"poisson"`` or ``"negative_binomial"``, likelihood of the raw counts with library size; ``"multinomial"``, likelihood of
    how a gene's counts are shared among the spots of a section, a list-wise ranking loss."""
    search: Search = "path"
    """How ``dkgsb`` learns its cutoff: ``"path"``, the closed form at every cutoff (seconds, deterministic);
    ``"gradient"``, the paper's hyper-gradient through unrolled steps; ``"race"``, a few cutoffs trained side by side, the
    worse half dropped at each rung. With fine-tuning, path and race run on the cached features before it."""
    start: Start = "closed_form"
    """Where trunk and head start: ``"closed_form"``, reduced-rank ridge; ``"random"`` weights; ``"agl"``, a network trained
    on all auxiliary genes, with rounds of searching and training from there until validation gains nothing."""
    rank: int | None = None
    """Width of the shared trunk's output; of 4, 8, 16, 32 and 64 the best on validation spots if None."""
    own_directions: bool = True
    """In the closed-form start every target is predicted by the mean of the shared trunk and of plain ridge, for which the
    trunk is as many directions wider as there are targets: what one gene shows in few spots is not lost among what most
    genes share."""
    depth_weights: bool = True
    """The closed-form start weights spots by the root of their total counts: shallow ones are noisy."""
    hidden: int = 256
    """Width of the trunk's hidden layer."""
    dropout: float = 0.2
    """Of the hidden layer, in [0, 1)."""
    lr: float = 1e-4
    """Learning rate of AdamW on up to 1,280 features. On more it falls in proportion to their number if training starts in
    closed form, for a step of Adam moves the weights of all of them alike, and the output by their sum."""
    encoder_lr: float = 1e-4
    """Learning rate of AdamW on the encoder, where it is fine-tuned."""
    weight_decay: float = 0.01
    """Of AdamW."""
    batch_size: int = 128
    """Spots per batch, process and accumulated step; Pearson is taken over all of them together."""
    max_epochs: int = 50
    """Passes over the training spots at most."""
    patience: int = 10
    """Epochs without a better validation Pearson before training stops."""
    refit: bool = True
    """After validation has picked penalty, cutoff and epoch, train once more on training and validation spots."""
    temperature: float = TEMPERATURE
    """Width of the gate's soft edge on the rank axis."""
    hard_limit: float = 1.0
    """The cutoff stays at or below this."""
    gradient: GradientSearch = GradientSearch()
    """Settings of the hyper-gradient search."""
    denoise: Denoise | None = None
    """Candidates for denoising the targets that are trained on, such as ``Denoise()``: of these, or the targets as measured,
    training takes what serves left-out training sections best. None leaves targets as measured; so does a likelihood."""

    def __post_init__(self) -> None:
        _check_kinds(self)
        _refuse_what_is_not(
            self,
            {
                **_at_least(self, {"hidden": 1, "weight_decay": 0, "max_epochs": 0, "patience": 1}),
                **{k: (getattr(self, k) > 0, "positive") for k in ("lr", "encoder_lr")},
                **_at_least_or_none(self, {"rank": 1}),
                "dropout": (0 <= self.dropout < 1, "in [0, 1)"),
                "batch_size": (
                    self.batch_size >= MIN_BATCH,
                    f"at least {MIN_BATCH}, since Pearson is taken over a batch",
                ),
                "temperature": (self.temperature > 0, "positive; 0.01 is the paper's"),
                "hard_limit": (0 < self.hard_limit <= 1, "in (0, 1]"),
            },
        )
        if not isinstance(self.denoise, Denoise | None):
            msg = f"denoise={self.denoise!r} is not a Denoise; pass denoise=agl_sc.tl.Denoise(...), or None for targets as measured."
            raise TypeError(msg)
        if not isinstance(self.gradient, GradientSearch):
            msg = f"gradient={self.gradient!r} is not a GradientSearch; pass gradient=agl_sc.tl.GradientSearch(...)."
            raise TypeError(msg)

    def rate(self, n_features: int) -> float:
        """Learning rate of a network on so many features."""
        return self.lr * min(1.0, _LR_FEATURES / n_features) if self.start == "closed_form" else self.lr

    def plain(self) -> dict[str, Any]:
        """All settings by name, those of the gradient search among them: the form that models, checkpoints and reports hold."""
        settings = asdict(self)
        gradient = settings.pop("gradient")
        del settings["denoise"]
        denoise = {} if self.denoise is None else self.denoise.plain()
        return {**settings, **gradient, **denoise}

    @classmethod
    def from_plain(cls, settings: Mapping[str, Any]) -> "TrainConfig":
        """Settings from the form of :meth:`plain`; the default for what is not there.

        Parameters
        ----------
        settings
            Values by name.
        """
        gradient = {name: settings[name] for name in _MOVED if name in settings}
        denoise = {
            field.name: settings[_DENOISE + field.name]
            for field in fields(Denoise)
            if _DENOISE + field.name in settings
        }
        own = {name: value for name, value in settings.items() if name not in _MOVED and not name.startswith("denoise")}
        return cls(**own, gradient=GradientSearch(**gradient), denoise=Denoise(**denoise) if denoise else None)

    @classmethod
    def preset(cls, name: Preset, **changes: Any) -> "TrainConfig":
        """One of the three published variants of DkGSB, with its own constants.

        Shiku et al., AAAI 2026: ``"paper"`` as the text says, ``"released"`` as the published code does, ``"warmstart"`` as
        the earlier supplement does. All of them fine-tune a ResNet18 (``train(finetune=True)`` on its features). The paper's
        loss has no normaliser; Adam does not see the scale of a loss, so this is ``detach_normalizer=True``.
        All rank auxiliary genes by dispersion, ``agl_sc.pp.rank_auxiliary(sdata, score="dispersion")``.

        Parameters
        ----------
        name
            ``"paper"``, ``"released"`` or ``"warmstart"``.
        **changes
            Fields to set otherwise; of ``gradient`` those of a mapping, such as ``gradient={"inner_steps": 4}``.
        """
        check_choice("preset", name, get_args(Preset))
        chosen = PRESETS[name]
        if isinstance(changes.get("gradient"), Mapping):
            changes["gradient"] = replace(chosen.gradient, **changes["gradient"])
        return replace(chosen, **changes)


def checked_config(config: TrainConfig | None, preset: Preset | None = None) -> TrainConfig:
    """Settings of training as an entry point takes them: ``config``, those of ``preset``, or the defaults.

    Raises
    ------
    TypeError
        ``config`` is something else.
    ValueError
        Both are given, or there is no such preset.
    """
    if config is not None and not isinstance(config, TrainConfig):
        right = (
            f"TrainConfig.preset({config!r})"
            if isinstance(config, str) and config in PRESETS
            else "TrainConfig(max_epochs=20)"
        )
        msg = (
            f"config={config!r} is a {type(config).__name__}, not a TrainConfig; pass such as config=agl_sc.tl.{right}."
        )
        raise TypeError(msg)
    if preset is None:
        return TrainConfig() if config is None else config
    if config is not None:
        msg = (
            f"preset={preset!r} and config= exclude each other; pass config=TrainConfig.preset({preset!r}, ...) alone."
        )
        raise ValueError(msg)
    return TrainConfig.preset(preset)


_COMMON = TrainConfig(
    search="gradient",
    start="random",
    lr=3e-5,
    encoder_lr=3e-5,
    weight_decay=0.0,
    dropout=0.0,
    max_epochs=1000,
    patience=20,
    refit=False,
    gradient=GradientSearch(warm_moments=False, detach_normalizer=True),
)


def _published(gradient: Mapping[str, Any], **own: Any) -> TrainConfig:
    return replace(_COMMON, gradient=replace(_COMMON.gradient, **gradient), **own)


PRESETS: dict[str, TrainConfig] = {
    "paper": _published({"inner_steps": 2, "start_cutoff": 1.0, "warmup_epochs": 0}),
    "released": _published(
        {"inner_steps": 12, "outer_batch_size": 64, "validation_batch_size": 64, "warmup_epochs": 1}
    ),
    "warmstart": _published(
        {"inner_steps": 2, "outer_batch_size": 320, "validation_batch_size": 128}, start="agl", patience=50
    ),
}
