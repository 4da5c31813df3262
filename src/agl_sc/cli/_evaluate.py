"""``agl-sc evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from agl_sc.cli._address import CoordinateSystem, ImageKey, ImageMpp, KeyAdded, Layer, ShapesKey, TableKey, elements
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import Store, free_destination, open_store, written


def evaluate(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    *,
    on: Annotated[str, typer.Option(help="Spots: test, validation or train; only test spots are evidence.")] = "test",
    csv: Annotated[Path | None, typer.Option(help="File for the metrics of every section and gene.")] = None,
    force: Force = False,
    prediction: Annotated[
        str, typer.Option(help="model, or oof for the out-of-fold predictions of a cross-validation.")
    ] = "model",
    section: Annotated[
        list[str] | None, typer.Option(help="Section to use; repeat for several. All by default.")
    ] = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
) -> Result:
    """Compare predicted with measured expression of the target genes, section by section.

    For example:
      agl-sc evaluate RESULT.zarr
      agl-sc evaluate RESULT.zarr --csv metrics.csv
      agl-sc evaluate RESULT.zarr --json
    """
    from agl_sc import tl

    place = None if csv is None else free_destination(csv, force=force)
    say(f"Reading {store}")
    sdata = open_store(store)
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    metrics = tl.evaluate(
        sdata,
        on=on,
        prediction=prediction,  # type: ignore[arg-type]  # refuses an unknown one
        sections=section or None,
        **where,
        layer=layer,
        key_added=key_added,
    )
    if place is not None:
        with written(context, place) as (fresh,):
            metrics.to_csv(fresh, index=False)
    means = metrics.drop(columns="gene").groupby("section").mean(numeric_only=True)
    values = {
        "on": on,
        "csv": None if place is None else place.path,
        "sections": means.to_dict(orient="index"),
        "genes": metrics.to_dict(orient="records"),
    }
    text = f"\nMeans over {metrics['gene'].nunique()} target genes, {on} spots\n\n{means.to_string(float_format='{:.3f}'.format)}"
    return Result(values, text if place is None else f"{text}\n\n{place.path}")
