"""``agl-sc benchmark``."""

from pathlib import Path
from typing import Annotated

import typer

from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import KeyAdded, Layer, Store, TableKey, free_place, open_store, written
from agl_sc.cli._train import TrainSettings, train_config


def benchmark(
    context: typer.Context,
    store: Store,
    *,
    output: Annotated[Path, typer.Option(help="Folder for the report and its tables.", show_default=False)],
    force: Force = False,
    methods: Annotated[
        str, typer.Option(help="Comma-separated methods of training and baselines.")
    ] = "ridge,pgl,agl,dkgsb",
    by: Annotated[str, typer.Option(help="What is held out: section, patient, block or spot.")] = "section",
    folds: Annotated[
        int | None, typer.Option(help="Number of folds; one per section or patient, or five, by default.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.", min=1)] = 3,
    settings: TrainSettings = None,
    table_key: TableKey = None,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
) -> Result:
    """Compare methods on the same folds, every spot held out once, with paired differences and their intervals.

    Writes report.md, results.csv, differences.csv and provenance.json.

    For example:
      agl-sc benchmark STORE.zarr --by section --output results
      agl-sc benchmark STORE.zarr --methods ridge,knn,dkgsb --by patient --seeds 5 --output results
    """
    from agl_sc import tl

    place = free_place(output, force=force, folder=True)
    config = train_config(settings or [], None)
    say(f"Reading {store}")
    sdata = open_store(store)
    say(f"Comparing {methods}")
    report = tl.benchmark(
        sdata,
        methods=[name.strip() for name in methods.split(",")],
        by=by,
        n_folds=folds,
        seeds=range(seeds),
        config=config,
        table_key=table_key,
        layer=layer,
        key_added=key_added,
    )
    with written(context, place) as (fresh,):
        report.save(fresh)
    values = {
        "folder": place.path,
        "differences": report.differences.to_dict(orient="records"),
        "provenance": report.provenance,
    }
    return Result(values, f"{report.to_markdown()}\n\n{place.path}")
