"""``agl-sc benchmark --protocol paper``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from agl_sc.cli._frame import Result, say
from agl_sc.cli._store import free_place, open_store, written

if TYPE_CHECKING:
    import pandas as pd

RESULTS, PROVENANCE = "results.csv", "provenance.json"
_CAVEAT = (
    " Test spots of random spot folds share pixels and expression with training spots of the same section, so these numbers "
    "are higher than those of another section."
)


@dataclass(frozen=True, slots=True)
class PaperRun:
    """What is asked for."""

    store: Path
    """Prepared samples."""
    output: Path | None
    """Folder for the results; beside the store if None."""
    how: dict[str, Any]
    """Arguments of :func:`agl_sc.tl.paper_benchmark`."""

    @property
    def folder(self) -> Path:
        return self.output or self.store.with_name(f"{self.store.stem}_paper_{self.how['preset']}")


def run(context: typer.Context, asked: PaperRun, *, checkpoint: Path | None, force: bool) -> Result:
    """Fit every method to every fold, write what came out, and print the paper's table."""
    from agl_sc import tl

    if not asked.store.exists():
        msg = f"{asked.store} does not exist; run `agl-sc hest prepare {asked.store.stem}`, or name a store."
        raise FileNotFoundError(msg)
    place = free_place(asked.folder, force=force, folder=True)
    say(f"Reading {asked.store}")
    sdata = open_store(asked.store)
    say(f"Fine-tuning {asked.how['encoder']}: {', '.join(asked.how['methods'])}")
    runs = checkpoint or place.path.with_name(f"{place.path.name}_runs")
    results = tl.paper_benchmark(sdata, **asked.how, checkpoint=runs)
    provenance = {**asked.how, **sdata.tables["table"].uns[asked.how["key_added"]]["cross_validation"]}
    with written(context, place) as (fresh,):
        fresh.mkdir()
        (fresh / PROVENANCE).write_text(json.dumps(provenance, indent=1, default=_listed), encoding="utf-8")
        results.to_csv(fresh / RESULTS, index=False)
    return table(asked)


def table(asked: PaperRun) -> Result:
    """The paper's table, of the results in a folder."""
    import pandas as pd

    from agl_sc import tl

    file = asked.folder / RESULTS
    if not file.is_file():
        msg = f"{file} does not exist; run `agl-sc benchmark {asked.store.stem} --protocol paper` first, or name another --output."
        raise FileNotFoundError(msg)
    summary = tl.paper_summary(pd.read_csv(file))
    by = json.loads((asked.folder / PROVENANCE).read_text(encoding="utf-8"))["by"]
    titles = {"mse": "MSE", "pearson": "Pearson", "spearman": "Spearman"}
    text = _cells(summary).rename(columns=titles).to_string()
    values = summary.set_axis(["_".join(pair) for pair in summary.columns], axis=1).to_dict(orient="index")
    caveat = _CAVEAT if by == "spot" else ""
    return Result(
        {"folder": asked.folder, "by": by, "methods": values},
        f"{text}\n\nMean ± standard deviation over folds.{caveat}\n{file}",
    )


def _listed(value: Any) -> Any:
    return value.tolist()  # of numpy


def _cells(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Mean and standard deviation as one text, a column per metric."""
    import pandas as pd

    metrics = list(dict.fromkeys(summary.columns.get_level_values(0)))
    cells = {
        metric: [f"{mean:.3f} ± {sd:.3f}" for mean, sd in summary[metric].itertuples(index=False)] for metric in metrics
    }
    return pd.DataFrame(cells, index=summary.index)
