"""``agl-sc demo``."""

import logging
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
_ALIKE = 0.3
"""Correlation from which on two genes show the same pattern."""


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
    auxiliary genes and DkGSB. The genes that are drawn are predicted best on validation spots; each panel has its own scale.

    For example:
      agl-sc demo
      agl-sc demo --data her2st --validation C5 --test C6 --test B4 --output results
    """
    import matplotlib as mpl

    from agl_sc import pl, pp
    from agl_sc.tl._benchmark.arms import compare_arms, summary

    mpl.use("Agg")
    store, figure = (free_destination(output / name, force=force) for name in (STORE, FIGURE))
    say("Reading sections" if data else "Making three toy sections")
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
    best = _predicted_best(sdata)
    with written(context, store, figure) as (fresh_store, fresh_figure):
        drawn = fresh_figure.with_name(FIGURE)  # matplotlib tells the format by the suffix
        look: dict[str, Any] = {"image_panel": True, "scale": "own", "ncols": 1}
        pl.spatial_pred(sdata, best, sections=held_out, save=drawn, show=False, **look)
        drawn.rename(fresh_figure)
        sdata.write(fresh_store)
    return _result(summary(result), model, int(table.var["agl_selected"].sum()), paths=(figure.path, store.path))


def _sections(
    data: Path | None, mpp: float | None, *, test: Sequence[str] | None, seed: int
) -> tuple["SpatialData", list[str]]:
    """The sections, and the names of those to hold out."""
    from agl_sc._sdata.table import region_of
    from agl_sc.datasets._demo_tissue import demo_tissue
    from agl_sc.io._st import read_st_folder

    sdata = demo_tissue(seed=seed) if data is None else read_st_folder(data, image_mpp=mpp)
    return sdata, list(test or [sorted(set(region_of(sdata.tables["table"])))[-1]])


def _predicted_best(sdata: "SpatialData") -> list[str]:
    """Two targets that are predicted best on validation spots, the second of another pattern than the first."""
    import numpy as np

    from agl_sc import tl

    logging.disable(logging.WARNING)  # that scores on validation spots are no evidence: none is made of them
    try:
        scores = tl.evaluate(sdata, on="validation", metrics=["pearson"]).groupby("gene")["pearson"].mean()
    finally:
        logging.disable(logging.NOTSET)
    first, *others = scores.dropna().sort_values(ascending=False).index
    table = sdata.tables["table"]
    counts = table[:, [first, *others]].X.toarray()
    alike = np.abs(np.corrcoef(np.log1p(counts / counts.sum(axis=1, keepdims=True)).T)[0, 1:])
    unlike = [gene for gene, value in zip(others, alike, strict=True) if value < _ALIKE]
    return [first, *(unlike or others)[:1]]


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
