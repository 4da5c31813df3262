"""``agl-sc benchmark``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._hest import FOLDER, Folder, store_of
from agl_sc.cli._paper import PaperRun, run, table
from agl_sc.cli._store import ImageMpp, KeyAdded, Layer, Seed, Store, TableKey, free_place, open_store, written
from agl_sc.cli._train import Checkpoint, PriorScore, Targets, TrainSettings, given, number_or_names, train_config


def benchmark(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    *,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the report and its tables.", show_default=False)
    ] = None,
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
    score: PriorScore = None,
    settings: TrainSettings = None,
    image_mpp: ImageMpp = None,
    checkpoint: Checkpoint = None,
    protocol: Annotated[
        str | None, typer.Option(help="paper: whole encoders on spot folds, or one patient left out at a time.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Of the paper's protocol: paper, released or warmstart.")] = "paper",
    targets_on: Annotated[
        str, typer.Option(help="Of the paper's protocol: training, or all spots, as there, which flatters.")
    ] = "training",
    encoder: Annotated[str, typer.Option(help="Of the paper's protocol; resnet18 is downloaded once.")] = "resnet18",
    tile_px: Annotated[int, typer.Option(help="Of the paper's protocol: side of a tile in pixels.")] = 224,
    mpp: Annotated[float, typer.Option(help="Of the paper's protocol: microns per pixel of a tile.")] = 0.5,
    folder: Folder = FOLDER,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Of the paper's protocol: print the table of an earlier run.")
    ] = False,
    table_key: TableKey = None,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
    seed: Seed = 0,
) -> Result:
    """Compare methods on the same folds, every spot held out once, with paired differences and their intervals.

    Writes report.md, results.csv, differences.csv and provenance.json. With --protocol paper, the store is that of
    "agl-sc hest prepare", also by the name of its samples; results.csv and provenance.json go beside it, and the paper's table
    (MSE, Pearson, Spearman) is printed.

    For example:
      agl-sc benchmark STORE.zarr --by section --output results
      agl-sc benchmark STORE.zarr --methods ridge,knn,dkgsb --by patient --seeds 5 --output results
      agl-sc benchmark TENX152 --methods pgl,agl,dkgsb --protocol paper
      agl-sc benchmark TENX152 --protocol paper --evaluate
    """
    from agl_sc import tl

    names = [name.strip() for name in methods.split(",")] if methods else []
    if protocol is not None or evaluate:
        _check_protocol(protocol)
        named = [name.partition("=")[0] for name in settings or []]
        config = train_config(settings or [], preset)
        how: dict[str, Any] = {
            "methods": names or ["pgl", "agl", "dkgsb"], "preset": preset, "n_targets": _number(targets),
            "targets_on": targets_on, "encoder": encoder, "tile_px": tile_px, "mpp": mpp, "seed": seed,
            "changes": {name: getattr(config, name) for name in named},
            "table_key": table_key, "layer": layer, "key_added": key_added,
        }  # fmt: skip
        asked = PaperRun(store if store.exists() else store_of([str(store)], folder), output, how)
        return table(asked) if evaluate else run(context, asked, checkpoint=checkpoint, force=force)
    if output is None:
        msg = "--output is missing; name a folder for the report."
        raise ValueError(msg)
    place = free_place(output, force=force, folder=True)
    config = train_config(settings or [], None)
    say(f"Reading {store}")
    sdata = open_store(store)
    say("Comparing methods")
    report = tl.benchmark(
        sdata,
        **given(methods=names, genes=number_or_names(targets), score=score),
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


def _check_protocol(protocol: str | None) -> None:
    if protocol not in (None, "paper"):
        msg = f"--protocol {protocol} is unknown; the one there is, is paper."
        raise ValueError(msg)


def _number(targets: list[str] | None) -> int | None:
    """Number of target genes under the paper's protocol, which names none."""
    found = number_or_names(targets)
    if isinstance(found, list):
        msg = f"--targets {found[0]} is not a number of target genes, which --protocol paper takes; 25, 50, 75 and 100 are the paper's."
        raise ValueError(msg)
    return found
