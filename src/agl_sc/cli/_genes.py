"""``agl-sc genes``."""

from pathlib import Path
from typing import Annotated

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
    TilePx,
    elements,
    tile_mpp,
)
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import Seed, Store, free_destination, open_store, written

_SHOWN = 20


def genes(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    *,
    csv: Annotated[Path | None, typer.Option(help="File for the scores of all genes.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Picture of score against noise ceiling, such as genes.png.")
    ] = None,
    force: Force = False,
    by: Annotated[
        str | None, typer.Option(help="What is held out: patient, section or block; the coarsest there is by default.")
    ] = None,
    min_spots: Annotated[int, typer.Option(help="Spots that a gene is detected in at least.")] = 10,
    tile_px: TilePx = None,
    mpp: TileMpp = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    layer: Layer = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    key_added: KeyAdded = "agl",
) -> Result:
    """List the genes that the H&E of a tissue shows, each predicted in spots that were held out.

    Features are computed where the store has none; --tile-px and --mpp are of these.

    For example:
      agl-sc genes STORE.zarr
      agl-sc genes STORE.zarr --csv genes.csv --figure genes.png
      agl-sc genes STORE.zarr --mpp image --by block
    """
    from agl_sc import pl, pp, tl
    from agl_sc.pl._finish import check_save
    from agl_sc.tl._predictable import SIGNIFICANT

    places = [None if path is None else free_destination(path, force=force) for path in (csv, figure)]
    check_save(figure)
    say(f"Reading {store}")
    sdata = open_store(store)
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    tiles = {"device": device, "batch_size": batch_size, "key_added": key_added}
    if tile_px is not None or mpp is not None:
        pp.embed(sdata, tile_px=tile_px, mpp=0.5 if mpp is None else tile_mpp(mpp), **where, **tiles)  # type: ignore[arg-type]
    found = tl.predictable_genes(
        sdata,
        by=by,  # type: ignore[arg-type]  # refuses an unknown one
        min_spots=min_spots,
        **where,
        **tiles,  # type: ignore[arg-type]
        layer=layer,
        seed=seed,
    )
    if places[0] is not None:
        with written(context, places[0]) as (fresh,):
            found.to_csv(fresh)
    if places[1] is not None:
        with written(context, places[1]) as (fresh,):
            pl.predictable_genes(sdata, table_key=table_key, key_added=key_added, save=fresh)
    shown = (found["q_value"] < SIGNIFICANT) & (found["pearson"] > 0)
    made = [None if place is None else place.path for place in places]
    values = {
        "n_genes": len(found),
        "n_shown": int(shown.sum()),
        "csv": made[0],
        "figure": made[1],
        "genes": found.reset_index().to_dict(orient="records"),
    }
    best = found.head(_SHOWN).to_string(float_format="{:.3f}".format)
    text = f"\n{shown.sum()} of {len(found)} detected genes are shown by the H&E; the best {min(_SHOWN, len(found))}\n\n{best}"
    return Result(values, "\n\n".join([text, *(str(path) for path in made if path is not None)]))
