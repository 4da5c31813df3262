"""What a cross-validation and a benchmark come to: results, differences, provenance, and how they are kept."""

import html
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from agl_sc.core.evaluation.differences import FEWEST_UNITS, paired_differences
from agl_sc.tl._benchmark.files import (
    DIFFERENCES,
    PROVENANCE,
    REPORT,
    RESULTS,
    check_report_folder,
    read_provenance,
    read_table,
    write_files,
)
from agl_sc.tl._benchmark.report import caveats, label, markdown

_ALWAYS = (
    ("agl", "pgl"), ("dkgsb", "agl"), ("dkgsb", "depth"),
    ("pgl_denoised", "pgl"), ("agl_denoised", "agl"), ("dkgsb_denoised", "dkgsb"), ("denoised_ridge", "weighted_ridge"),
    ("dkgsb_denoised", "denoised_ridge"), ("denoised_ridge", "denoised_ridge_targets"), ("denoised_ridge", "denoised_ridge_random"),
    ("denoised_ridge", "denoised_ridge_all"), ("denoiser", "pgl"), ("denoiser", "pgl_denoised"), ("denoiser", "dkgsb"),
)  # fmt: skip
"""Compared wherever both are there: are auxiliary genes of use, is choosing among them, is it more than depth, and is denoising
of use?"""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """Methods compared in the same folds."""

    results: pd.DataFrame = field(repr=False)
    """Out-of-fold metrics in the columns method, fold, seed, section, gene, metric and value, which is NaN where undefined."""
    differences: pd.DataFrame = field(repr=False)
    """A row per pair of methods and metric: method, reference, metric, unit (what the interval is over), n_units, mean, low, high,
    and whether the difference is distinguishable from zero."""
    provenance: dict[str, Any] = field(repr=False)
    """Data, folds with their hash, features, settings, versions, numbers of updates, as JSON values."""

    def to_markdown(self) -> str:
        """The report, without a date: from the same seed the same bytes."""
        return markdown(self.results, self.differences, self.provenance)

    def save(self, folder: str | Path) -> None:
        """Write ``report.md``, ``results.csv``, ``differences.csv`` and ``provenance.json``, replacing an earlier report.

        Names stand in the tables as they are, so that they are read back; one that begins with ``=`` is a formula to a
        spreadsheet unless its column is imported as text.

        Parameters
        ----------
        folder
            The folder; made where it does not exist.

        Raises
        ------
        FileNotFoundError
            The folder that it would lie in does not exist.
        FileExistsError
            ``folder`` is a file, or holds a file by one of these names that is not of a benchmark.
        """
        path = check_report_folder(folder)
        texts = {
            PROVENANCE: json.dumps(self.provenance, indent=1, ensure_ascii=False) + "\n",
            REPORT: self.to_markdown(),
            RESULTS: self.results.to_csv(index=False, lineterminator="\n"),
            DIFFERENCES: self.differences.to_csv(index=False, lineterminator="\n"),
        }
        write_files(path, texts)

    @classmethod
    def load(cls, folder: str | Path) -> "Benchmark":
        """Read what :meth:`save` wrote.

        Parameters
        ----------
        folder
            The folder.

        Raises
        ------
        FileNotFoundError
            One of the files is missing.
        ValueError
            One of them is damaged.
        """
        path = Path(folder)
        missing = [name for name in (RESULTS, DIFFERENCES, PROVENANCE) if not (path / name).is_file()]
        if missing:
            msg = f"{path} holds no benchmark ({missing[0]} is missing); pass a folder that Benchmark.save wrote."
            raise FileNotFoundError(msg)
        results, differences = (read_table(path / name) for name in (RESULTS, DIFFERENCES))
        return cls(results, differences, read_provenance(path / PROVENANCE))

    def __repr__(self) -> str:
        """Scores, the differences to the reference with their intervals, and what these cannot tell."""
        table = self._table().to_string(float_format="{:.3f}".format, na_rep="")
        return "\n".join([self._head(), table, *caveats(self.differences, self.provenance["data"])])

    def _repr_html_(self) -> str:
        """The same as a table."""
        said = "".join(f"<p>{html.escape(text)}</p>" for text in caveats(self.differences, self.provenance["data"]))
        return _html(self._head(), self._table()) + said

    def _head(self) -> str:
        data, folds = self.provenance["data"], self.provenance["cross_validation"]
        return f"Benchmark of {len(set(self.results['method']))} methods, {_in_words(data, folds)}"

    def _table(self) -> pd.DataFrame:
        """Scores of every method, and the difference of the first metric to the reference."""
        scores, reference = summary_of(self.results), self.provenance.get("reference", "ridge")
        metric = scores.columns[0]
        rows = self.differences[(self.differences["reference"] == reference) & (self.differences["metric"] == metric)]
        texts = {label(row.method): _interval(row) for row in rows.itertuples(index=False)}
        if not texts:
            return scores
        return scores.assign(**{f"{metric} - {label(reference)}": [texts.get(name, "") for name in scores.index]})


@dataclass(frozen=True, slots=True, eq=False)
class CrossValidation:
    """Every spot predicted out of fold."""

    results: pd.DataFrame = field(repr=False)
    """Metrics in the columns method, fold, seed, section, gene, metric and value, which is NaN where undefined."""
    provenance: dict[str, Any] = field(repr=False)
    """Data, folds with their hash, features, settings, versions, numbers of updates, as JSON values."""
    patients: dict[str, str] = field(default_factory=dict, repr=False)
    """Patient of every section; empty where nobody said."""

    @property
    def methods(self) -> list[str]:
        """What was fitted, in order."""
        return list(dict.fromkeys(self.results["method"]))

    def compare(self, reference: str = "ridge", *, seed: int = 0) -> Benchmark:
        """Paired differences of all methods to one of them, with intervals over independent units.

        Units are patients where these were held out, else sections, else, with fewer than three sections, the folds. With
        fewer than three units, or the folds of one section's spots, the interval is over genes, and says so.

        Parameters
        ----------
        reference
            Method that all others are compared with. Besides, ``"agl"`` is with ``"pgl"``, and ``"dkgsb"`` with ``"agl"`` and ``"depth"``.
        seed
            Seed of the bootstrap.

        Returns
        -------
        Results, differences, and a report of both.

        Raises
        ------
        ValueError
            ``reference`` was not fitted.
        """
        methods = self.methods
        if reference not in methods:
            msg = f"reference={reference!r} was not fitted; the methods are {', '.join(methods)}."
            raise ValueError(msg)
        pairs = [(name, reference) for name in methods if name != reference]
        pairs += [pair for pair in _ALWAYS if set(pair) <= set(methods) and pair not in pairs]
        unit, units = self._units()
        differences = paired_differences(self.results.assign(unit=units), pairs, unit=unit, seed=seed)
        plain = json.loads(json.dumps({**self.provenance, "reference": reference}, default=str, sort_keys=True))
        return Benchmark(self.results, differences, plain)

    def _units(self) -> tuple[str, "pd.Series[str]"]:
        """What is independent, and which of it every row of the results belongs to."""
        by, results = self.provenance["cross_validation"]["by"], self.results
        if by == "patient":
            return "patient", results["section"].map(self.patients)
        if by in ("block", "own") and results["section"].nunique() < FEWEST_UNITS:
            return "fold", results["fold"]
        return "section", results["section"]

    def save(self, folder: str | Path) -> None:
        """Write ``results.csv`` and ``provenance.json``, replacing earlier ones.

        Parameters
        ----------
        folder
            The folder; made where it does not exist.

        Raises
        ------
        FileNotFoundError
            The folder that it would lie in does not exist.
        FileExistsError
            ``folder`` is a file, or holds a file by one of these names that is not of a benchmark.
        """
        path = check_report_folder(folder)
        texts = {
            PROVENANCE: json.dumps(self.provenance, indent=1, ensure_ascii=False) + "\n",
            RESULTS: self.results.to_csv(index=False, lineterminator="\n"),
        }
        write_files(path, texts)

    def __repr__(self) -> str:
        data, folds = self.provenance["data"], self.provenance["cross_validation"]
        head = f"Cross-validation of {len(self.methods)} methods, {_in_words(data, folds)}"
        return f"{head}\n{summary_of(self.results).to_string(float_format='{:.3f}'.format)}"

    def _repr_html_(self) -> str:
        return _html(repr(self).splitlines()[0], summary_of(self.results))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(pd.DataFrame, name):
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg)
        return getattr(_as_table(self.results), name)

    def __getitem__(self, key: Any) -> Any:
        return _as_table(self.results)[key]

    def __len__(self) -> int:
        return len(_as_table(self.results))


def _as_table(results: pd.DataFrame) -> pd.DataFrame:
    warnings.warn(
        "agl_sc.tl.cross_validate returns a CrossValidation; its table is .results, and is no longer what is returned from the "
        "next version on.",
        FutureWarning,
        stacklevel=3,
    )
    return results


def summary_of(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over folds of the mean over seeds, sections and genes: a row per method, a column per metric."""
    by_fold = results.groupby(["method", "metric", "fold"], sort=False)["value"].mean()
    means = by_fold.groupby(["method", "metric"], sort=False).mean().unstack()
    return means.rename(index=label).rename_axis(index=None, columns=None)


def _in_words(data: Mapping[str, Any], folds: Mapping[str, Any]) -> str:
    n_spots = data["n_spots"]
    return (
        f"{folds['n_folds']} folds by {folds['by']}: {sum(n_spots.values()):,} spots of {len(n_spots)} sections, "
        f"{len(data['targets'])} target genes"
    )


def _interval(row: Any) -> str:
    if pd.isna(row.mean):
        return ""
    return f"{row.mean:+.3f}" + ("" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]")


def _html(head: str, table: pd.DataFrame) -> str:
    return f"<p>{html.escape(head)}</p>{table.to_html(float_format='{:.3f}'.format, na_rep='')}"
