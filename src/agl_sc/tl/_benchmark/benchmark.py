"""Methods against each other in the same folds: results, paired differences, and a report of both."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from agl_sc._paths import check_folder
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.record import recorded
from agl_sc._sdata.sections import Names
from agl_sc._sdata.table import get_table, section_of
from agl_sc.core.config import TrainConfig
from agl_sc.core.evaluation.differences import FEWEST_UNITS, paired_differences
from agl_sc.core.spots.genes import Normalize
from agl_sc.pp._splits.units import By, patient_of
from agl_sc.tl._benchmark.arms import ARMS, check_methods
from agl_sc.tl._benchmark.cross_validate import CrossValidation, run_all
from agl_sc.tl._benchmark.report import markdown
from agl_sc.tl._benchmark.request import requested

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

REPORT, RESULTS, DIFFERENCES, PROVENANCE = "report.md", "results.csv", "differences.csv", "provenance.json"
_ALWAYS = (("agl", "pgl"), ("dkgsb", "agl"))
"""Compared wherever both are there: are auxiliary genes of use, and is choosing among them?"""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """Methods compared in the same folds."""

    results: pd.DataFrame = field(repr=False)
    """Out-of-fold metrics: method, fold, seed, section, gene, metric, value; NaN where undefined."""
    differences: pd.DataFrame = field(repr=False)
    """method, reference, metric, unit (what the interval is over), n_units, mean, low, high, distinguishable (from zero)."""
    provenance: dict[str, Any] = field(repr=False)
    """Data, folds with their hash, features, settings, versions, numbers of updates, as JSON values."""

    def to_markdown(self) -> str:
        """The report, without a date: from the same seed the same bytes."""
        return markdown(self.results, self.differences, self.provenance)

    def save(self, folder: str | Path) -> None:
        """Write ``report.md``, ``results.csv``, ``differences.csv`` and ``provenance.json``, replacing an earlier report.

        Parameters
        ----------
        folder
            The folder; made where it does not exist.

        Raises
        ------
        FileNotFoundError
            The folder that it would lie in does not exist.
        FileExistsError
            ``folder`` is a file.
        """
        path = check_folder(folder)
        texts = {
            REPORT: self.to_markdown(),
            RESULTS: self.results.to_csv(index=False, lineterminator="\n"),
            DIFFERENCES: self.differences.to_csv(index=False, lineterminator="\n"),
            PROVENANCE: json.dumps(self.provenance, indent=1, ensure_ascii=False) + "\n",
        }
        path.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=path) as staged:
            for name, text in texts.items():
                (Path(staged) / name).write_text(text, encoding="utf-8")
            for name in texts:
                (Path(staged) / name).replace(path / name)

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
        """
        path = Path(folder)
        missing = [name for name in (RESULTS, DIFFERENCES, PROVENANCE) if not (path / name).is_file()]
        if missing:
            msg = f"{path} holds no benchmark ({missing[0]} is missing); pass a folder that Benchmark.save wrote."
            raise FileNotFoundError(msg)
        results, differences = (_read(path / name) for name in (RESULTS, DIFFERENCES))
        return cls(results, differences, json.loads((path / PROVENANCE).read_text(encoding="utf-8")))


_TEXT = ("method", "fold", "section", "gene", "metric", "reference", "unit")
_NUMBERS = ("value", "mean", "low", "high")


def _read(path: Path) -> pd.DataFrame:
    """A table as it was written; numbers as text first, for pandas 2 rounds what it reads as numbers."""
    frame = pd.read_csv(path, dtype=dict.fromkeys((*_TEXT, *_NUMBERS), str))
    return frame.astype({name: float for name in _NUMBERS if name in frame})


def benchmark(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    methods: Sequence[str] | None = None,
    reference: str = "ridge",
    by: By | None = "section",
    n_folds: int | None = None,
    validation: float = 0.2,
    block_um: float = 500.0,
    buffer_um: float = 150.0,
    image_mpp: float | None = None,
    genes: int | Sequence[str] = 50,
    score: str = "predictability",
    normalize: Normalize = "log1p_cp10k",
    seeds: int = 3,
    metrics: Sequence[str] = ("pearson", "spearman", "mse"),
    finetune: bool = False,
    config: TrainConfig | None = None,
    checkpoint: str | Path | None = None,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    key_added: str = "agl",
    seed: int = 0,
) -> Benchmark:
    """Compare methods, control arms and baselines in the same folds, with the same features and settings.

    Every arm goes through :func:`agl_sc.tl.cross_validate`. Networks train under one ``config``, so for as many updates at
    most; the published variants of DkGSB keep their own settings. Differences are paired: the same genes, spots and folds,
    averaged over seeds, with a bootstrap interval over independent units: patients with ``by="patient"``, else sections,
    else, with fewer than three sections, the folds of blocks. With fewer than three units the interval is over genes, and
    says so.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    methods
        One arm or several. As :func:`agl_sc.tl.cross_validate` takes them; by default all that cost about one training at
        most.
    reference
        Arm that all others are compared with. Besides, ``"agl"`` is with ``"pgl"``, and ``"dkgsb"`` with ``"agl"``.
    by
        Whole sections, all sections of a patient (``obs["patient"]``), spatial blocks within sections, or single spots.
        None takes the folds that :func:`agl_sc.pp.split` wrote.
    n_folds
        Number of folds. One per section or patient, 5 of blocks or spots, by default.
    validation
        What picks. A fraction of the units, or with blocks and spots of the spots, in every fold.
    block_um
        Side of a spatial block in microns.
    buffer_um
        With blocks, training and validation spots closer than this to a spot of another set are left out of both,
        in microns.
    image_mpp
        Microns per pixel of the full image; from metadata or spot pitch by default.
    genes
        How many genes of highest variance on the training spots of a fold are its targets; or names, the same in all folds.
    score
        Prior ranking of the auxiliary genes. As :func:`agl_sc.tl.cross_validate` takes it; some arms have their own.
    normalize
        Units in which genes are modelled: log(1 + counts per 10,000), or log(1 + counts) as the paper's code does.
    seeds
        Number of seeds, counted from ``seed``; arms that draw nothing run once.
    metrics
        Metrics to compute. As :func:`agl_sc.tl.cross_validate` takes them.
    finetune
        Train the whole encoder too, on tiles with flips and quarter turns, instead of the head on cached features.
    config
        Settings of training; :class:`agl_sc.tl.TrainConfig` with its defaults if None.
    checkpoint
        Folder from which an interrupted run continues, to end with the same bytes as if nothing had stopped it.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    layer
        Layer with raw counts; X by default.
    key_added
        Prefix of all slots.
    seed
        Seed of folds, initial weights, batches and bootstrap.

    Returns
    -------
    The benchmark: results, differences, and a report of both. Writes what :func:`agl_sc.tl.cross_validate` writes, the
    predictions of the first method.

    Raises
    ------
    ValueError
        A method, the reference or a metric is unknown, or a fold cannot be fitted to.
    KeyError
        A table, layer, element or gene does not exist, or there is no ``obs["patient"]``.
    """
    chosen = [name for name, arm in ARMS.items() if arm.cheap] if methods is None else check_methods(methods)
    chosen += [name for name in check_methods(reference) if name not in chosen]
    request = requested(
        chosen,
        by=by,
        plan={"n_folds": n_folds, "validation": validation, "block_um": block_um, "buffer_um": buffer_um},
        protocol={
            "config": config,
            "genes": genes,
            "score": score,
            "normalize": normalize,
            "finetune": finetune,
        },
        where={"image_key": image_key, "shapes_key": shapes_key, "coordinate_system": coordinate_system},
        metrics=metrics,
        n_seeds=seeds,
        seed=seed,
        checkpoint=checkpoint,
        key_added=key_added,
        image_mpp=image_mpp,
    )
    done = run_all(sdata, request, table_key=table_key, layer=layer)
    table, keys = get_table(sdata, table_key), request.protocol.keys
    unit, units = _units(table, done)
    pairs = [(name, reference) for name in chosen if name != reference]
    pairs += [pair for pair in _ALWAYS if set(pair) <= set(chosen) and pair not in pairs]
    differences = paired_differences(done.results.assign(unit=units), pairs, unit=unit, seed=seed)
    provenance = {**_provenance(table, keys, done, named=not isinstance(genes, int)), "reference": reference}
    # A table that was in a store has its records in another order.
    plain = json.loads(json.dumps(provenance, default=str, sort_keys=True))
    return Benchmark(done.results, differences, plain)


def _units(table: "AnnData", done: CrossValidation) -> tuple[str, "pd.Series[str]"]:
    """What is independent, and which of it every row of the results belongs to."""
    by, results = done.provenance["by"], done.results
    if by == "patient":
        patients = dict(zip(section_of(table), patient_of(table), strict=True))
        return "patient", results["section"].map(patients)
    if by == "block" and results["section"].nunique() < FEWEST_UNITS:
        return "fold", results["fold"]
    return "section", results["section"]


def _provenance(table: "AnnData", keys: Keys, done: CrossValidation, *, named: bool) -> dict[str, Any]:
    return {
        "data": {
            "n_spots": section_of(table).value_counts().sort_index().to_dict(),
            **({"n_patients": table.obs["patient"].nunique()} if "patient" in table.obs else {}),
            "n_genes": table.n_vars,
            "targets": done.targets,
            "targets_named": named,
            **done.shared,
        },
        "cross_validation": done.provenance,
        "features": recorded(table, keys, "features"),
        "n_updates": done.n_updates,
    }
