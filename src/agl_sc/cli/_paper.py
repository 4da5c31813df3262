"""``agl-sc paper``: the paper's own protocol on a prepared store."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agl_sc.cli._address import (
    BatchSize,
    CoordinateSystem,
    Device,
    ImageKey,
    ImageMpp,
    KeyAdded,
    Layer,
    ShapesKey,
    TableKey,
    TileMpp,
    elements,
    tile_mpp,
)
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._hest import FOLDER, Folder, store_of
from agl_sc.cli._store import Seed, free_destination, open_store, written
from agl_sc.cli._train import Checkpoint, TrainSettings, changed_settings

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


def paper(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Annotated[
        Path, typer.Argument(help="Store of agl-sc hest prepare, or the name of its samples.", show_default=False)
    ],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results; beside the store by default.", show_default=False)
    ] = None,
    force: Force = False,
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "pgl,agl,dkgsb,depth",
    preset: Annotated[str, typer.Option(help="Published variant: paper, released or warmstart.")] = "paper",
    settings: TrainSettings = None,
    targets: Annotated[
        int | None, typer.Option(help="Number of target genes; that of agl-sc hest prepare, or 50, by default.")
    ] = None,
    targets_on: Annotated[
        str, typer.Option(help="Choose targets on training spots, or on all, as the paper does, which flatters.")
    ] = "training",
    encoder: Annotated[str, typer.Option(help="See agl-sc encoders; resnet18 is downloaded once.")] = "resnet18",
    tile_px: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 224,
    mpp: TileMpp = "0.5",
    folder: Folder = FOLDER,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Print the table of an earlier run.")] = False,
    checkpoint: Checkpoint = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
    seed: Seed = 0,
) -> Result:
    """Fine-tune an encoder under the paper's protocol, and print the paper's table: MSE, Pearson, Spearman.

    Beside it stand Pearson beyond depth, and a model that sees nothing of a spot but its total counts. On random spot folds, or with one patient left out at a time. The store is that of "agl-sc hest prepare", also by the name
    of its samples; results.csv and provenance.json go beside it.

    For example:
      agl-sc paper TENX152
      agl-sc paper TENX152 --methods pgl,dkgsb --preset released --set max_epochs=100 --output released
      agl-sc paper TENX152 --evaluate
    """
    from agl_sc.tl import TrainConfig

    changes = changed_settings(settings or [])
    TrainConfig.preset(preset, **changes)  # type: ignore[arg-type]  # refused before any work
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    how: dict[str, Any] = {
        "methods": [name.strip() for name in methods.split(",")], "preset": preset, "n_targets": targets,
        "targets_on": targets_on, "encoder": encoder, "tile_px": tile_px, "mpp": tile_mpp(mpp or "0.5"), "seed": seed,
        "changes": changes, "device": device, "batch_size": batch_size,
        **where, "layer": layer, "key_added": key_added,
    }  # fmt: skip
    asked = PaperRun(store if store.exists() else store_of([str(store)], folder), output, how)
    return table(asked) if evaluate else run(context, asked, checkpoint=checkpoint, force=force)


def run(context: typer.Context, asked: PaperRun, *, checkpoint: Path | None, force: bool) -> Result:
    """Fit every method to every fold, write what came out, and print the paper's table."""
    from agl_sc import tl

    if not asked.store.exists():
        msg = f"{asked.store} does not exist; run `agl-sc hest prepare {asked.store.stem}`, or name a store."
        raise FileNotFoundError(msg)
    place = free_destination(asked.folder, force=force, folder=True)
    say(f"Reading {asked.store}")
    sdata = open_store(asked.store)
    say(f"Fine-tuning {asked.how['encoder']}: {', '.join(asked.how['methods'])}")
    runs = checkpoint or place.path.with_name(f"{place.path.name}_runs")
    found = tl.paper_benchmark(sdata, **asked.how, checkpoint=runs)
    provenance = {**asked.how, **found.provenance["cross_validation"]}
    with written(context, place) as (fresh,):
        fresh.mkdir()
        (fresh / PROVENANCE).write_text(json.dumps(provenance, indent=1, default=_listed), encoding="utf-8")
        found.results.to_csv(fresh / RESULTS, index=False)
    return table(asked)


def table(asked: PaperRun) -> Result:
    """The paper's table, of the results in a folder."""
    import pandas as pd

    from agl_sc import tl

    file = asked.folder / RESULTS
    if not file.is_file():
        msg = f"{file} does not exist; run `agl-sc paper {asked.store.stem}` first, or name another --output."
        raise FileNotFoundError(msg)
    summary = tl.paper_summary(pd.read_csv(file))
    by = json.loads((asked.folder / PROVENANCE).read_text(encoding="utf-8"))["by"]
    titles = {
        "mse": "MSE",
        "pearson": "Pearson",
        "pearson_beyond_depth": "Pearson beyond depth",
        "spearman": "Spearman",
    }
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
