"""``agl-sc benchmark``."""

from pathlib import Path
from typing import Annotated, Any

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
    elements,
)
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._paper import paper
from agl_sc.cli._store import Seed, Store, free_destination, open_store, written
from agl_sc.cli._train import Checkpoint, PriorScore, Targets, TrainSettings, given, number_or_names, train_config

_OF_PAPER = typer.Option(hidden=True)
"""What is left of ``--protocol paper``, for one version."""


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
    checkpoint: Checkpoint = None,
    protocol: Annotated[str | None, _OF_PAPER] = None,
    preset: Annotated[str | None, _OF_PAPER] = None,
    targets_on: Annotated[str | None, _OF_PAPER] = None,
    encoder: Annotated[str | None, _OF_PAPER] = None,
    tile_px: Annotated[int | None, _OF_PAPER] = None,
    mpp: Annotated[str | None, _OF_PAPER] = None,
    folder: Annotated[Path | None, _OF_PAPER] = None,
    evaluate: Annotated[bool | None, typer.Option("--evaluate", hidden=True)] = None,
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
    """Compare methods on the same folds, every spot held out once, with paired differences and their intervals.

    Writes report.md, results.csv, differences.csv and provenance.json. The paper's own protocol is "agl-sc paper".

    For example:
      agl-sc benchmark STORE.zarr --by section --output results
      agl-sc benchmark STORE.zarr --methods ridge,knn,dkgsb --by patient --seeds 5 --output results
    """
    from agl_sc import tl

    where: dict[str, Any] = {
        "table_key": table_key, "image_key": image_key, "shapes_key": shapes_key,
        "coordinate_system": coordinate_system, "image_mpp": image_mpp,
    }  # fmt: skip
    common: dict[str, Any] = {
        "checkpoint": checkpoint, "device": device, "batch_size": batch_size, "layer": layer, "key_added": key_added, "seed": seed
    }  # fmt: skip
    own = given(
        preset=preset,
        targets_on=targets_on,
        encoder=encoder,
        tile_px=tile_px,
        mpp=mpp,
        folder=folder,
        evaluate=evaluate,
    )
    if protocol is not None or own:
        _check_protocol(protocol)
        own |= given(methods=methods, targets=_number(targets), settings=settings, output=output)
        return paper(context, store, **own, **where, **common, force=force)
    names = [name.strip() for name in methods.split(",")] if methods else []
    if output is None:
        msg = "--output is missing; name a folder for the report."
        raise ValueError(msg)
    place = free_destination(output, force=force, folder=True)
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
        **elements(**where),
        **common,
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
        msg = f"--protocol {protocol} is unknown; the one there is, is paper, and its command is `agl-sc paper`."
        raise ValueError(msg)
    say("The paper's protocol is now the command `agl-sc paper`; --protocol paper goes in the next version.")


def _number(targets: list[str] | None) -> int | None:
    """Number of target genes under the paper's protocol, which names none."""
    found = number_or_names(targets)
    if isinstance(found, list):
        msg = f"--targets {found[0]} is not a number of target genes, which --protocol paper takes; 25, 50, 75 and 100 are the paper's."
        raise ValueError(msg)
    return found
