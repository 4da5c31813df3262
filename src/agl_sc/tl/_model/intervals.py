"""Intervals around predictions: what a model learns of its residuals, and what it can promise of the spots of a section."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from agl_sc._model_intervals import OF_INTERVALS
from agl_sc._sdata.interval import IntervalRecord
from agl_sc._sdata.predictions import predicted_of, write_bounds
from agl_sc._sdata.records import remember
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import as_text, region_of
from agl_sc.core.arguments import is_number
from agl_sc.core.arrays import BoolArray, FloatArray, StrArray
from agl_sc.core.evaluation.domain import BEYOND, MOSTLY
from agl_sc.core.evaluation.intervals import (
    LEVELS,
    Scale,
    choices_cover,
    donor_quantiles,
    fewest,
    held_out_coverage,
    n_levels,
    section_quantiles,
    spot_quantiles,
)
from agl_sc.core.spots.scaling import center_per_section
from agl_sc.model import Model
from agl_sc.pp._splits.units import assumed_patients
from agl_sc.tl._model.held_out import HeldOut

logger = logging.getLogger(__name__)

SHORT, MORE_OFTEN = 0.03, 2.0
"""By how much held-out sections may be covered less than is promised on the mean, and how much more often one may be missed."""
_MEASURE = "measure {n} spots or more of it and adapt the model to them with agl_sc.tl.adapt"


def check_level(interval: Any) -> None:
    """Refuse a share that intervals cannot be asked to cover."""
    if interval is not None and not (is_number(interval) and interval in LEVELS):
        msg = f"interval={interval!r} is not one of {', '.join(map(str, LEVELS))}, the share of spots to cover; None writes no intervals."
        raise ValueError(msg)


def named_patients(study: Study) -> StrArray:
    """Patient of every spot as somebody named it, empty where nobody did, (n_obs,)."""
    table = study.table
    if "patient" not in table.obs:
        return np.full(table.n_obs, "")
    column = table.obs["patient"]
    return np.where(assumed_patients(study) | column.isna().to_numpy(), "", as_text(column))


@dataclass(slots=True)
class Residuals:
    """Takes residuals of held-out spots, some genes after the others."""

    spots: HeldOut
    """Training and validation spots, held out in folds."""
    patients: StrArray
    """Of every one of them, empty where nobody named it, (n_spots,)."""
    selected: BoolArray
    """Modelled genes that are predicted, (n_genes,)."""
    _parts: list[dict[str, FloatArray]] = field(default_factory=list)
    _coverage: dict[str, list[FloatArray]] = field(default_factory=dict)
    _sizes: list[int] = field(default_factory=list)

    def add(self, genes: slice, measured: FloatArray, predicted: FloatArray) -> None:
        """Of consecutive genes, both (n_spots, n), the predicted NaN for a spot that was not held out."""
        chosen, known = self.selected[genes], np.isfinite(predicted).all(axis=1)
        if not chosen.any() or not known.any():
            return
        predicted = predicted[np.ix_(known, chosen)]
        whole, sections = measured[np.ix_(known, chosen)] - predicted, self.spots.codes[known]
        within = center_per_section(whole, sections)
        scale = Scale.fitted(within, predicted)
        part = {"offset": scale.offset, "slope": scale.slope, "least": scale.least}
        self._sizes.append(int(chosen.sum()))
        of_patients = []
        for name in self.repeated:
            own = self.patients[known] == name
            scores = np.abs(within[own]) / scale.at(predicted[own])
            of_patients.append(section_quantiles(scores, sections[own]))
            self._keep(f"of {name}", held_out_coverage(within[own], predicted[own], sections[own]))
        if of_patients:
            part["sections"] = np.array(of_patients)
        if self.n_donors and n_levels(self.n_donors):
            donors = np.unique(self.patients[known], return_inverse=True)[1]
            part["donors"] = donor_quantiles(np.abs(whole) / scale.at(predicted), donors)
            if self.n_donors > 1:
                self._keep("donors", held_out_coverage(whole, predicted, donors, are_donors=True))
        self._parts.append(part)

    def _keep(self, name: str, coverage: FloatArray) -> None:
        self._coverage.setdefault(name, []).append(coverage)

    @property
    def repeated(self) -> list[str]:
        """Patients with two sections or more, where sections or patients are held out."""
        if self.spots.by == "block":
            return []
        names = sorted(set(self.patients[self.patients != ""].tolist()))
        return [name for name in names if len(set(self.spots.sections[self.patients == name].tolist())) > 1]

    @property
    def n_donors(self) -> int:
        """Patients that were held out; 0 where other things were."""
        is_named = self.spots.by == "patient" and bool((self.patients != "").all())
        return len(set(self.patients.tolist())) if is_named else 0

    def kept_by(self, model: Model) -> Model:
        """The model with scale and quantiles of its residuals."""
        if not self._parts:
            return model
        arrays = {
            name: np.concatenate([part[name] for part in self._parts], axis=-1) for name in ("offset", "slope", "least")
        }
        for name, axis in (("sections", 1), ("donors", 0)):
            if name in self._parts[0]:
                arrays[name] = np.concatenate([part[name] for part in self._parts], axis=axis)
        patients = [
            {
                "name": name,
                "sections": sorted(set(self.spots.sections[self.patients == name].tolist())),
                "coverage": self._covered(f"of {name}"),
            }
            for name in self.repeated
        ]
        card = {"by": self.spots.by, "patients": patients, "n_donors": self.n_donors, "donors": self._covered("donors")}
        tensors = {f"{OF_INTERVALS}{name}": torch.from_numpy(each.astype(np.float32)) for name, each in arrays.items()}
        return replace(model, card={**model.card, "intervals": card}, tensors={**model.tensors, **tensors})

    def _covered(self, name: str) -> list[list[float]]:
        """By unit that was held out and level, mean over all genes."""
        if name not in self._coverage:
            return []
        mean: FloatArray = np.average(self._coverage[name], axis=0, weights=self._sizes)
        return [[round(float(value), 4) for value in row] for row in mean]


def adapted_intervals(model: Model, residuals: FloatArray, *, predicted: FloatArray, known: BoolArray) -> Model:
    """The adapted model with quantiles of the residuals of measured spots that were held out in turn.

    What was known of other sections goes: the model is another one now.

    Parameters
    ----------
    model
        The adapted model.
    residuals
        Of measured spots, (n_spots, n_known).
    predicted
        The same, predicted while held out, (n_spots, n_known).
    known
        Predicted genes that these are, (n_predicted,).
    """
    kept = {name: each for name, each in model.tensors.items() if not name.startswith(OF_INTERVALS)}
    scale = scale_of(model)
    part = Scale(scale.offset[known], scale.slope[known], scale.least[known])
    own = spot_quantiles(np.abs(residuals) / part.at(predicted))
    quantiles = np.zeros((len(known), own.shape[1]))
    quantiles[known] = own
    arrays = {"offset": scale.offset, "slope": scale.slope, "least": scale.least}
    arrays |= {"spots": quantiles} if own.shape[1] else {}
    tensors = {f"{OF_INTERVALS}{name}": torch.from_numpy(each.astype(np.float32)) for name, each in arrays.items()}
    card = {"by": "spot", "patients": [], "n_donors": 0, "donors": [], "n_spots": len(residuals)}
    return replace(model, tensors={**kept, **tensors}, card={**model.card, "intervals": card})


def scale_of(model: Model) -> Scale:
    """Local scale of the residuals of a model; 1 of an older one."""
    arrays = [
        model.tensors[f"{OF_INTERVALS}{name}"].double().numpy() if f"{OF_INTERVALS}{name}" in model.tensors else default
        for name, default in (
            ("offset", np.ones(model.n_predicted)),
            ("slope", np.zeros(model.n_predicted)),
            ("least", np.ones(model.n_predicted)),
        )
    ]
    return Scale(*arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Promise:
    """What is promised of the spots of a section."""

    kind: str
    """``"donors"``, ``"spots"`` or ``"sections"``: across patients, for spots as those measured, or within the section."""
    quantiles: FloatArray
    """Half-widths over the local scale, (n_predicted,)."""
    words: str
    """The promise in a sentence, with what was measured of it."""

    @property
    def covers_level(self) -> bool:
        """Whether the level of the section is covered too."""
        return self.kind != "sections"


def promises(study: Study, model: Model, level: float, *, share: FloatArray | None, fitted: BoolArray) -> "Promised":
    """What can be promised by section, and why nothing can of the others.

    Parameters
    ----------
    study
        With the features of the model.
    model
        The model.
    level
        One of :data:`LEVELS`.
    share
        Distance of every spot from the training tissue, in [0, 1], NaN where it is not known, (n_obs,); None of a model
        that knows none.
    fitted
        Spots that the model was fitted to, (n_obs,): nothing is said of a section of these alone.

    Raises
    ------
    ValueError
        Nothing can be promised of any section.
    """
    patients, regions = named_patients(study), region_of(study.table).to_numpy(dtype=str)
    found: dict[str, Promise] = {}
    refused: dict[str, str] = {}
    measured = np.array([_is_adapted_to(study, model, region) for region in np.unique(regions)], dtype=bool)
    of_measured = np.isin(regions, np.unique(regions)[measured])
    for name in sorted(set(study.section_names[~fitted | of_measured].tolist())):
        inside = study.section_names == name
        own = None if share is None else share[inside & np.isfinite(share)]
        is_beyond = own is not None and len(own) > 0 and float((own > BEYOND).mean()) > MOSTLY
        answer = _of_section(study, model, level, region=str(regions[inside][0]), patient=str(patients[inside][0]))
        if isinstance(answer, Promise) and answer.kind != "spots" and is_beyond:
            answer = f"most of its spots lie beyond the training tissue; {_measure(level)}"
        if isinstance(answer, Promise):
            found[name] = answer
        else:
            refused[name] = answer
    if not found:
        reasons = _grouped(refused) or "The model was fitted to all spots"
        msg = f"No interval of {level:.0%} can be promised. {reasons}. interval=None predicts without."
        raise ValueError(msg)
    return Promised(level, found, refused)


def _grouped(refused: dict[str, str]) -> str:
    """Every reason once, with the sections that it holds for."""
    sections: dict[str, list[str]] = {}
    for name, reason in refused.items():
        sections.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in sections.items())


def _measure(level: float) -> str:
    return _MEASURE.format(n=fewest(level))


def _of_section(study: Study, model: Model, level: float, *, region: str, patient: str) -> Promise | str:
    """The strongest promise, or the reason why there is none."""
    card, number = model.card.get("intervals"), LEVELS.index(level)
    if card is None:
        return f"the model knows no residuals of held-out spots; {_measure(level)}, or train it again"
    spots, donors = (_quantiles(model, name, number) for name in ("spots", "donors"))
    if _is_adapted_to(study, model, region):
        if spots is None:
            return f"{card['n_spots']} measured spots are too few; {_measure(level)}"
        low, high = choices_cover(int(card["n_spots"]), level)
        words = (
            f"{level:.0%} of its spots, if the {card['n_spots']} measured ones were taken at random, and in a gene by nine of ten such "
            f"choices {_range([low, high])}"
        )
        return Promise("spots", spots, words)
    if donors is not None:
        covered = [row[number] for row in card["donors"] if number < len(row)]
        said = (
            f"; of {card['n_donors']} training patients held out in turn it covered {_range(covered)}"
            if covered
            else ""
        )
        return Promise("donors", donors, f"{level:.0%} of the spots of a further patient, level included{said}")
    return _of_patient(model, level, patient)


def _of_patient(model: Model, level: float, patient: str) -> Promise | str:
    """What sections of the same patient tell."""
    card, number = model.card["intervals"], LEVELS.index(level)
    entries = {entry["name"]: (at, entry) for at, entry in enumerate(card["patients"])}
    if patient not in entries:
        who = f"the model has not seen two sections of patient {patient!r}" if patient else "nobody named its patient"
        known = (
            f"two sections or more each of {', '.join(entries)}" if entries else "no two sections of one named patient"
        )
        mend = _measure(level)
        return (
            f"{who}, the model was trained on {known}, and across patients it takes {fewest(level)} that were held out "
            f"(there were {card['n_donors']}); {mend}" + ("" if patient else ", or name the patient in obs['patient']")
        )
    at, entry = entries[patient]
    covered = [row[number] for row in entry["coverage"]]
    if float(np.mean(covered)) < level - SHORT or 1 - min(covered) > MORE_OFTEN * (1 - level):
        return (
            f"sections of {patient} that were held out in turn ({', '.join(entry['sections'])}) were covered to {_range(covered)} alone; "
            f"{_measure(level)}"
        )
    words = (
        f"{level:.0%} of its spots but for the level of the section, which may be another; of {', '.join(entry['sections'])}, "
        f"sections of {patient} held out in turn, it covered {_range(covered)}"
    )
    quantiles = model.tensors[f"{OF_INTERVALS}sections"][at, :, number].double().numpy()
    return Promise("sections", quantiles, words)


def _range(covered: list[float]) -> str:
    low, high = min(covered), max(covered)
    return f"{100 * low:.0f} %" if round(100 * low) == round(100 * high) else f"{100 * low:.0f} to {100 * high:.0f} %"


def _quantiles(model: Model, name: str, number: int) -> FloatArray | None:
    tensor = model.tensors.get(f"{OF_INTERVALS}{name}")
    return None if tensor is None or number >= tensor.shape[1] else tensor[:, number].double().numpy()


def _is_adapted_to(study: Study, model: Model, region: str) -> bool:
    adapted, features = model.card.get("adapted"), study.features
    if adapted is None or features is None or "n_spots" not in model.card.get("intervals", {}):
        return False
    names = str(adapted["sections"]).split(", ")
    digest = features.images.get(region)
    return digest is not None and any(model.card["fitted_on"].get(name) == digest for name in names)


@dataclass(frozen=True, slots=True, eq=False)
class Promised:
    """What can be said of all sections of a table."""

    level: float
    """Share of spots to cover."""
    found: dict[str, Promise]
    """By section."""
    refused: dict[str, str]
    """Why there is none, by section."""


def write_intervals(
    study: Study, model: Model, promised: Promised, *, genes: tuple[list[str], BoolArray], fitted: BoolArray
) -> None:
    """Write bounds of the predictions in place, say what they promise, and remember it.

    Parameters
    ----------
    study
        With predictions.
    model
        Whose they are.
    promised
        Level, promises and reasons.
    genes
        The table's names of the genes that were written, and which of the predicted ones they are, (n_predicted,).
    fitted
        Spots that the model was fitted to, which have no interval unless it is of measured spots, (n_obs,).
    """
    names, known = genes
    whole, values = scale_of(model), predicted_of(study, "model").of(names)
    scale = Scale(whole.offset[known], whole.slope[known], whole.least[known])
    lower, upper = (np.full(values.shape, np.nan, dtype=np.float32) for _ in range(2))
    for name, promise in promised.found.items():
        rows = np.flatnonzero((study.section_names == name) & (~fitted | (promise.kind == "spots")))
        own, quantiles = values[rows].astype(float), promise.quantiles[known]
        half = scale.at(own) * np.where(quantiles > 0, quantiles, np.nan)
        least = (
            0.0 if promise.covers_level else -np.inf
        )  # no expression is negative, what differs from the level may be
        lower[rows], upper[rows] = np.maximum(own - half, least), own + half
        logger.info("Intervals in %s hold %s.", name, promise.words)
    if promised.refused:
        logger.warning(
            "No interval of %.0f %% can be promised in %s.", 100 * promised.level, _grouped(promised.refused)
        )
    slot = write_bounds(study, names, (lower, upper))
    said = {name: {"kind": promise.kind, "words": promise.words} for name, promise in promised.found.items()}
    values_of = {"level": promised.level, "sections": said, "refused": dict(promised.refused)}
    remember(study.table, study.keys, IntervalRecord(values_of))
    study.tell_written(logger, "Wrote %s.", slot)
