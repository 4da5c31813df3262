"""``agl-sc demo``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import Seed, free_destination, written

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from agl_sc.model import Model

STORE, FIGURE = "agl_demo.zarr", "agl_demo.png"


def demo(
    context: typer.Context,
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of legacy ST sections ({S}.tsv.gz, {S}_selection.tsv, {S}.jpg); toy tissue without."),
    ] = None,
    output: Annotated[Path, typer.Option(help=f"Folder for {STORE} and {FIGURE}.")] = Path(),
    test: Annotated[
        list[str] | None, typer.Option(help="Section to hold out; repeat for several. The last by default.")
    ] = None,
    validation: Annotated[list[str] | None, typer.Option(help="Section that picks cutoff and epoch.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of the images; from the spot pitch by default.")
    ] = None,
    force: Force = False,
    seed: Seed = 0,
) -> Result:
    """Train on some sections, predict the others, draw measured beside predicted expression.

    Prints the mean Pearson correlation of the target genes on the held-out sections for ridge, targets only, all
    auxiliary genes and DkGSB.

    For example:
      agl-sc demo
      agl-sc demo --data her2st --validation C5 --test C6 --test B4 --output results
    """
    import matplotlib as mpl

    from agl_sc import pl, pp
    from agl_sc.tl._benchmark.arms import compare_arms, summary

    mpl.use("Agg")
    store, figure = (free_destination(output / name, force=force) for name in (STORE, FIGURE))
    say("Reading sections" if data else "Making two toy sections")
    sdata, held_out = _sections(data, mpp, test=test, seed=seed)
    table = sdata.tables["table"]
    pp.split(sdata, by="section", test=held_out, validation=validation or 0.2, seed=seed)
    targets = None if data else list(table.uns["truth"]["targets"])
    pp.target_genes(sdata, genes=targets or 50)
    say("Embedding tiles")
    quick: dict[str, Any] = {"context": (), "orientations": 1}  # the toy has nothing to see beyond a tile
    pp.embed(sdata, **(quick if data is None else {}))
    pp.rank_auxiliary(sdata)
    say("Training: targets only, all auxiliary genes, DkGSB")
    result, model = compare_arms(sdata, seed=seed)
    say(f"Drawing {FIGURE}, writing {STORE}")
    genes = list(table.var["agl_pearson"].dropna().sort_values(ascending=False).index[:2])
    with written(context, store, figure) as (fresh_store, fresh_figure):
        drawn = fresh_figure.with_name(FIGURE)  # matplotlib tells the format by the suffix
        pl.spatial_pred(sdata, genes, sections=held_out, save=drawn, show=False)
        drawn.rename(fresh_figure)
        sdata.write(fresh_store)
    return _result(summary(result), model, int(table.var["agl_selected"].sum()), paths=(figure.path, store.path))


def _sections(
    data: Path | None, mpp: float | None, *, test: Sequence[str] | None, seed: int
) -> tuple["SpatialData", list[str]]:
    """The sections, and the names of those to hold out."""
    from agl_sc import datasets
    from agl_sc._sdata.table import region_of
    from agl_sc.io._st import read_st_folder

    sdata = datasets.toy_tissue(seed=seed) if data is None else read_st_folder(data, image_mpp=mpp)
    return sdata, list(test or [sorted(set(region_of(sdata.tables["table"])))[-1]])


def _result(pearson: "pd.DataFrame", model: "Model | None", n_selected: int, *, paths: tuple[Path, Path]) -> Result:
    figure, store = paths
    values: dict[str, Any] = {"pearson": pearson.to_dict(orient="index"), "figure": figure, "store": store}
    lines = [
        "\nMean Pearson of the target genes on held-out sections\n",
        pearson.to_string(float_format="{:.3f}".format),
    ]
    if model is not None and model.cutoff is not None:
        n_auxiliary = len(model.genes) - model.n_targets
        values |= {"cutoff": model.cutoff, "n_selected": n_selected, "n_auxiliary": n_auxiliary}
        lines.append(f"\nDkGSB chose {n_selected} of {n_auxiliary} auxiliary genes (cutoff {model.cutoff:.2f}).")
    return Result(values, "\n".join([*lines, f"\n{figure}\n{store}"]))
