"""What a person reads of a model on the hub: its README, with the header that the hub reads."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agl_sc.core.encoders.licences import licence_of
from agl_sc.core.encoders.load import OFFLINE
from agl_sc.core.encoders.pathology import card_of

if TYPE_CHECKING:
    from agl_sc.model import Model

_HUB_LICENCES = {
    "apache-2.0": "apache-2.0", "mit": "mit", "bsd-3-clause": "bsd-3-clause", "gpl-3.0": "gpl-3.0", "cc-by-4.0": "cc-by-4.0",
    "cc0-1.0": "cc0-1.0", "cc-by-nc-4.0": "cc-by-nc-4.0", "cc-by-sa-4.0": "cc-by-sa-4.0", "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0": "cc-by-nc-nd-4.0",
}  # fmt: skip
"""Licences that the hub knows by these names; others are ``other`` with a name."""
_MOST_GENES = 5000
"""Rows of the table of genes; the model's own file has all."""
_UNITS = {"log1p_cp10k": "log(1 + counts per 10,000)", "log1p": "log(1 + counts)"}


@dataclass(frozen=True, slots=True)
class ModelCardText:
    """What the author of a model says of it, and no file can know."""

    tissue: str
    """Organ, species and disease of the sections."""
    patients: str | None = None
    """Whom the sections are of: how many patients or animals, and which."""
    licence: str | None = None
    """Of the model; that of the encoder's weights by default."""
    limits: str | None = None
    """What it must not be used for, beside what is always said."""
    citation: str | None = None
    """How to cite the model and its data."""


def readme_of(model: "Model", repo: str, text: ModelCardText) -> str:
    """The README in Markdown, its header in YAML."""
    parts = [_title(repo, text), _use(repo), _data(model, text), _encoder(model), _genes(model), _limits(model, text)]
    return f"---\n{_header(model, text)}\n---\n\n" + "\n\n".join([*parts, _citation(text), _origin(model)]) + "\n"


def _header(model: "Model", text: ModelCardText) -> str:
    """What the hub reads."""
    from huggingface_hub import ModelCardData

    licence = text.licence or licence_of(_encoder_name(model)) or "unknown"
    known = "unknown" if licence == "unknown" else _HUB_LICENCES.get(licence.lower(), "other")
    optional: dict[str, Any] = {"license_name": licence} if known == "other" else {}
    card = card_of(_encoder_name(model))
    base = card.repository if card else _hub_name(_encoder_name(model))
    if base:
        optional["base_model"] = base
    data = ModelCardData(
        license=known,
        library_name="agl-sc",
        tags=["agl-sc", "histology", "spatial-transcriptomics", "gene-expression"],
        **optional,
    )
    return str(data.to_yaml())


def _hub_name(encoder: str) -> str | None:
    return encoder.removeprefix("hf-hub:").partition("@")[0] if encoder.startswith("hf-hub:") else None


def _encoder_name(model: "Model") -> str:
    return str(model.card["features"]["encoder"])


def _title(repo: str, text: ModelCardText) -> str:
    return f"# {repo.partition('/')[2]}\n\nPredicts spatial gene expression from H&E. Tissue: {text.tissue}."


def _use(repo: str) -> str:
    return f"""## Use

```python
import agl_sc

model = agl_sc.Model.from_hub("{repo}")
agl_sc.tl.predict(sdata, model)  # a SpatialData with H&E and spots; no counts are needed
```"""


def _data(model: "Model", text: ModelCardText) -> str:
    card = model.card
    sections = sorted(card.get("fitted_on", {}))
    known = "validation_pearson" in model.history and model.history["validation_pearson"].notna().any()
    best = f"{model.history['validation_pearson'].max():.3f}, at epoch {model.best_epoch}" if known else "not known"
    rows = [
        ("Tissue", text.tissue),
        ("Patients", text.patients or "not stated"),
        (
            "Sections in training and validation",
            f"{len(sections)} ({', '.join(sections)})" if sections else "not known",
        ),
        ("Hash of the split", card.get("split") or "not known"),
        ("Method", f"{model.method}" + (f", search by {model.search}" if model.search else "")),
        ("Units of the predictions", _UNITS.get(card.get("normalize", ""), str(card.get("normalize", "not known")))),
        ("Mean Pearson of the targets on validation spots, which picked the epoch", best),
    ]
    if "continued_from" in card:
        rows.append(("Continued from the model with the digest", str(card["continued_from"])))
    if "adapted" in card:
        rows.append(("Adapted to measured spots", _listed_values(card["adapted"])))
    return "## Trained on\n\n" + _table(("", ""), rows)


def _listed_values(found: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items()) if isinstance(found, dict) else str(found)


def _encoder(model: "Model") -> str:
    features, name = model.card["features"], _encoder_name(model)
    card = card_of(name)
    licence = licence_of(name) or "not known; ask its authors"
    held = "inside this repository, fine-tuned" if model.finetuned else "not in this repository; fetched by their name"
    rows = [
        ("Encoder", "EfficientNet-Lite0, ImageNet weights (`efficientnet_lite0`)" if name == OFFLINE else f"`{name}`"),
        ("Licence of its weights", f"{licence}" + (f", [{card.source}]({card.source})" if card else "")),
        ("Access", "has to be requested there" if card is not None and card.gated else "open"),
        ("Weights", held),
        ("Digest of the weights", f"`{features.get('weights_digest', 'not known')}`"),
        ("Tiles", f"{features['tile_px']} px at {features['mpp']:g} um/px"),
    ]
    said = "Whoever uses the model computes features with these weights, and is bound by their licence too."
    return "## Encoder\n\n" + _table(("", ""), rows) + f"\n\n{said}"


def _genes(model: "Model") -> str:
    shown = model.predicted_genes[:_MOST_GENES]
    weights = dict(zip(model.genes, model.weights, strict=True))
    targets = set(model.targets)
    scores = gene_scores(model)
    names = list(next(iter(scores.values()), {}))
    rows = [
        (gene, "target" if gene in targets else "auxiliary", f"{weights[gene]:.2f}", *(_number(scores.get(gene, {}).get(name)) for name in names))
        for gene in shown
    ]  # fmt: skip
    left_out = model.n_predicted - len(shown)
    more = f"\n\n{left_out} more genes are named in `model.json`." if left_out else ""
    words = model.card.get("scores", {}).get("words", "spots that were held out") if names else ""
    without = f" Scores are of {words}." if names else " No held-out score of single genes is recorded in this model."
    intro = (
        f"{model.n_targets} targets and {model.n_predicted - model.n_targets} auxiliary genes are predicted.{without}"
    )
    return f"## Genes\n\n{intro}\n\n" + _table(("gene", "role", "weight", *names), rows) + more


def gene_scores(model: "Model") -> dict[str, dict[str, float | None]]:
    """Held-out scores of genes by gene and name, where the card has any: ``columns`` of a value per modelled gene."""
    found = model.card.get("scores", {})
    columns = found.get("columns") if isinstance(found, dict) else None
    if not isinstance(columns, dict):
        return {}
    return {gene: {name: values[number] for name, values in columns.items()} for number, gene in enumerate(model.genes)}


def _number(value: Any) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _limits(model: "Model", text: ModelCardText) -> str:
    lines = [
        "Not for diagnosis, prognosis, or any decision about a patient: predictions are estimates for research.",
        "Not as a measurement: a prediction is smoother than expression is, and says nothing of what morphology does not show.",
        "Not on other organs, stains, scanners or scales without checking it on measured sections of that kind.",
        "Not as evidence on the sections it was trained on, which are named above.",
    ]
    if text.limits:
        lines.append(text.limits)
    return "## What it must not be used for\n\n" + "\n".join(f"- {line}" for line in lines)


def _citation(text: ModelCardText) -> str:
    method = (
        "Shiku et al., Auxiliary Gene Learning, AAAI 2026, arXiv:2511.18336 (the method), and agl-sc (the software)."
    )
    return "## How to cite\n\n" + (f"{text.citation}\n\n" if text.citation else "") + method


def _origin(model: "Model") -> str:
    versions = ", ".join(f"{name} {number}" for name, number in model.card.get("versions", {}).items())
    return f"## Made with\n\n{versions or 'versions are not recorded'}. All settings are in `model.json`."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """What may stand in a cell, whatever is in it."""
    return " ".join(str(text).replace("|", "\\|").split())
