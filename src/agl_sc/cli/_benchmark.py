"""``agl-sc benchmark``."""

from pathlib import Path
from typing import Annotated

import typer

from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import ImageMpp, KeyAdded, Layer, Seed, Store, TableKey, free_place, open_store, written
from agl_sc.cli._train import Checkpoint, Targets, TrainSettings, given, number_or_names, train_config


def benchmark(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    *,
    output: Annotated[Path, typer.Option(help="Folder for the report and its tables.", show_default=False)],
    force: Force = False,
    methods: Annotated[
        str | None, typer.Option(help="Comma-separated; all that cost about one training at most, without.")
    ] = None,
    reference: Annotated[str, typer.Option(help="Method that all others are compared with.")] = "ridge",
    by: Annotated[str, typer.Option(help="What is held out: section, patient, block or spot.")] = "section",
    folds: Annotated[
        int | None, typer.Option(help="Number of folds; one per section or patient, five of blocks or spots, without.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = 3,
    targets: Targets = None,
    settings: TrainSettings = None,
    image_mpp: ImageMpp = None,
    checkpoint: Checkpoint = None,
    table_key: TableKey = None,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
    seed: Seed = 0,
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
    say("Comparing methods")
    report = tl.benchmark(
        sdata,
        **given(methods=methods and [name.strip() for name in methods.split(",")], genes=number_or_names(targets)),
        reference=reference,
        by=by,  # type: ignore[arg-type]  # refuses an unknown one
        n_folds=folds,
        seeds=seeds,
        config=config,
        image_mpp=image_mpp,
        checkpoint=checkpoint,
        table_key=table_key,
        layer=layer,
        key_added=key_added,
        seed=seed,
    )
    with written(context, place) as (fresh,):
        report.save(fresh)
    values = {
        "folder": place.path,
        "differences": report.differences.to_dict(orient="records"),
        "provenance": report.provenance,
    }
    return Result(values, f"{report.to_markdown()}\n\n{place.path}")
