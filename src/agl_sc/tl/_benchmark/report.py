"""A benchmark in words: Markdown without a date, so that the same seed gives the same bytes."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from agl_sc.core.evaluation.differences import FEWEST_UNITS, LEVEL
from agl_sc.tl._benchmark.arms import ARMS

BETTER = {"mse": "lower is better"}
_MARKUP = "\\|*`<"
FEW_UNITS = 6
"""With fewer, a percentile interval reaches from about the smallest to about the largest of them."""


def markdown(results: pd.DataFrame, differences: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """The whole report."""
    metrics = list(dict.fromkeys(results["metric"]))
    parts = [
        "# Benchmark",
        *_data(provenance),
        "## Out-of-fold results",
        "Mean over folds ± standard deviation over folds, of the mean over sections and target genes; undefined values are left out of it.",
        _overall(results, metrics, provenance["n_updates"]),
        *of_depth(results),
        *_undefined(results),
        *_by_section(results, metrics[0]),
        "## Differences",
        *_units(differences, provenance["data"]),
        *_differences(differences, metrics),
        "## Settings",
        *_settings(provenance),
    ]
    return "\n\n".join(parts) + "\n"


def label(method: str) -> str:
    """How a method is called in tables."""
    return ARMS[method].label if method in ARMS else method


def _data(provenance: Mapping[str, Any]) -> Iterable[str]:
    data, folds = provenance["data"], provenance["cross_validation"]
    sections = ", ".join(f"{literal(name)} ({n})" for name, n in data["n_spots"].items())
    yield (
        f"{sum(data['n_spots'].values())} spots of {len(data['n_spots'])} sections, {data['n_genes']} genes, "
        f"{len(data['targets'])} of them a target in some fold. Spots by section: {sections}."
    )
    how = (
        "named by the user, in every fold the same"
        if data["targets_named"]
        else "chosen on the training spots of every fold"
    )
    yield f"Target genes are {how}: {literal(', '.join(data['targets']))}."
    yield (
        f"{folds['n_folds']} folds by {folds['by']}, everything fitted anew in each; seeds {', '.join(map(str, folds['seeds']))}. "
        f"Hash of the folds: `{folds['hash']}`."
    )
    if "shared_pixels" in data:
        shared = data["shared_pixels"]
        yield (
            f"Tiles of {data['tile_um']:g} um that share pixels with one of a set they are kept from, over all folds: "
            f"{shared['test']} test tiles with training or validation, {shared['validation']} validation tiles with training."
        )


def _overall(results: pd.DataFrame, metrics: list[str], n_updates: Mapping[str, float]) -> str:
    by_fold = results.groupby(["method", "metric", "fold"], sort=False)["value"].mean()
    of_folds = by_fold.groupby(["method", "metric"], sort=False).agg(["mean", "std"])
    heads = ["method", *(f"{name} ({BETTER[name]})" if name in BETTER else name for name in metrics), "updates"]
    rows = [
        [label(method), *(_spread(*of_folds.loc[(method, name)]) for name in metrics), f"{n_updates[method]:.0f}"]
        for method in dict.fromkeys(results["method"])
    ]
    note = "\n\nUpdates are those of the last training until it stopped, the mean over folds and seeds."
    return _table(heads, rows) + note


def of_depth(results: pd.DataFrame) -> Iterable[str]:
    """What the depth model and the metric beyond it are, where they stand in a table."""
    if "depth" in set(results["method"]):
        yield (
            f"{label('depth')} sees no pixels: ridge on the log of a spot's own total counts, within sections. It is told the measured "
            "counts of the test spots, so it is no competitor, but says how much of a score depth alone can explain."
        )
    if "pearson_beyond_depth" in set(results["metric"]):
        yield "pearson_beyond_depth is the partial Pearson correlation given the log of the total counts: 0 for what depth alone predicts."


def _undefined(results: pd.DataFrame) -> Iterable[str]:
    found = results[results["value"].isna()].groupby(["method", "metric"], sort=False).size().reset_index(name="n")
    if len(found):
        each = zip(found["method"], found["metric"], found["n"], strict=True)
        listed = "; ".join(f"{label(method)}, {metric}: {n}" for method, metric, n in each)
        yield f"Undefined values, where a measured or predicted gene is constant over the test spots of a section: {listed}."


def _by_section(results: pd.DataFrame, metric: str) -> Iterable[str]:
    of_metric = results[results["metric"] == metric]
    means = of_metric.groupby(["method", "section"], sort=False)["value"].mean().unstack()
    if means.shape[1] > 1:
        means = means[sorted(means.columns)]
        rows = [[label(str(method)), *map(_number, values)] for method, values in means.iterrows()]
        yield f"{metric} by section:"
        yield _table(["method", *map(str, means.columns)], rows)


def _units(differences: pd.DataFrame, data: Mapping[str, Any]) -> Iterable[str]:
    """What the intervals are over, and what that is worth."""
    units = dict.fromkeys(differences.dropna(subset="low")["unit"])
    yield (
        f"Paired on the same genes and spots; mean over units, and a {LEVEL:.0%} bootstrap interval over "
        f"{' or '.join(f'{unit}s' for unit in units) or 'units'}."
    )
    for caveat in caveats(differences, data):
        yield re.sub("^(.*: these intervals are over genes)", r"**\1**", caveat)


def caveats(differences: pd.DataFrame, data: Mapping[str, Any]) -> Iterable[str]:
    """What the intervals cannot tell, a sentence each."""
    defined = differences.dropna(subset="low")
    units = set(defined["unit"])
    if "gene" in units:
        yield (
            f"There are fewer than {FEWEST_UNITS} independent units: these intervals are over genes, which are correlated, "
            "so they are too narrow and say nothing of other sections."
        )
    n_units = defined.loc[defined["unit"] != "gene", "n_units"].min()
    if n_units < FEW_UNITS:
        yield f"With {n_units} units an interval is about as wide as they are apart: read it as a range, not as a test."
    n_patients, n_sections = data.get("n_patients"), len(data["n_spots"])
    if "section" in units and n_patients is not None and n_patients < n_sections:
        yield f"The {n_sections} sections are of {n_patients} patients: an interval over sections says nothing of other patients."


def _differences(differences: pd.DataFrame, metrics: list[str]) -> Iterable[str]:
    for metric in metrics:
        own = differences[differences["metric"] == metric]
        rows = [_difference(row) for row in own.to_dict("records")]
        yield f"{metric} ({BETTER[metric]}):" if metric in BETTER else f"{metric}:"
        yield _table(["method", "compared with", "difference", "interval", "units", "verdict"], rows)


def _difference(row: Mapping[Any, Any]) -> list[str]:
    pair = [label(row["method"]), label(row["reference"])]
    if pd.isna(row["low"]):
        return [*pair, _number(row["mean"]), "undefined", f"{row['n_units']}", "undefined"]
    verdict = "distinguishable from zero" if row["distinguishable"] else "not distinguishable from zero"
    interval = f"[{row['low']:+.4f}, {row['high']:+.4f}]"
    return [*pair, f"{row['mean']:+.4f}", interval, f"{row['n_units']} {row['unit']}s", verdict]


def _settings(provenance: Mapping[str, Any]) -> Iterable[str]:
    for name in ("cross_validation", "features"):
        rows = [[key, _plain(value)] for key, value in provenance[name].items() if key not in ("versions", "config")]
        yield _table([name.replace("_", " "), ""], rows)
    yield _table(["training", ""], [[k, _plain(v)] for k, v in provenance["cross_validation"]["config"].items()])
    yield _table(["package", "version"], [[k, v] for k, v in provenance["cross_validation"]["versions"].items()])


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(each)}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spread(mean: float, deviation: float) -> str:
    return "undefined" if pd.isna(mean) else f"{mean:.4f} ± {_number(deviation)}"


def _number(value: float) -> str:
    return "undefined" if pd.isna(value) else f"{value:.4f}"


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(literal(cell) for cell in line)} |" for line in lines)


def literal(text: str) -> str:
    """Text that Markdown shows as it is, in one line: names may hold anything."""
    escaped = "".join(f"\\{letter}" if letter in _MARKUP else letter for letter in text)
    return " ".join(escaped.split()) if "\n" in text or "\r" in text else escaped
