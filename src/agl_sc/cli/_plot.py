"""``agl-sc plot``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agl_sc.cli._address import CoordinateSystem, ImageKey, ImageMpp, KeyAdded, Layer, ShapesKey, TableKey, elements
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import Store, free_destination, open_store, written


def plot(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    genes: Annotated[list[str], typer.Argument(help="Predicted genes.", show_default=False)],
    *,
    output: Annotated[Path, typer.Option(help="Figure; the ending tells the format.", show_default=False)],
    section: Annotated[
        list[str] | None, typer.Option(help="Section to draw; repeat for several. All by default.")
    ] = None,
    out_of_fold: Annotated[bool, typer.Option("--out-of-fold", help="Predictions of cross-validation.")] = False,
    difference: Annotated[bool, typer.Option("--difference", help="Predicted minus measured, too.")] = False,
    hatch_beyond: Annotated[
        bool, typer.Option("--hatch-beyond", help="Hatch spots beyond the tissue that the model was trained on.")
    ] = False,
    force: Force = False,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
) -> Result:
    """Draw predicted expression on the tissue, beside measured expression where there is some.

    For example:
      agl-sc plot OUT.zarr FN1 CD74 --section C6 --output C6.png
    """
    import matplotlib as mpl

    from agl_sc import pl

    mpl.use("Agg")
    place = free_destination(output, force=force)
    say(f"Reading {store}")
    sdata = open_store(store)
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    options: dict[str, Any] = {
        "prediction": "oof" if out_of_fold else "model",
        "difference": difference,
        "hatch_beyond": hatch_beyond,
        "layer": layer,
    }
    with written(context, place) as (fresh,):
        drawn = fresh.with_name(place.path.name)  # matplotlib tells the format by the suffix
        pl.spatial_pred(
            sdata, genes, sections=section or None, **options, **where, key_added=key_added, save=drawn, show=False
        )
        drawn.rename(fresh)
    return Result({"figure": place.path, "genes": genes}, str(place.path))
