"""``agl-sc export``."""

from pathlib import Path
from typing import Annotated

import typer

from agl_sc.cli._address import CoordinateSystem, ImageKey, ImageMpp, KeyAdded, ShapesKey, TableKey, elements
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._store import Store, free_destination, open_store, written


def export(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    store: Store,
    *,
    output: Annotated[Path, typer.Option(help="File for the predictions, .h5ad.", show_default=False)],
    prediction: Annotated[
        str, typer.Option(help="model, or oof for the out-of-fold predictions of a cross-validation.")
    ] = "model",
    section: Annotated[
        list[str] | None, typer.Option(help="Section to use; repeat for several. All by default.")
    ] = None,
    max_image_px: Annotated[int, typer.Option(help="Longer side of the image that goes along; 0 for none.")] = 600,
    force: Force = False,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    key_added: KeyAdded = "agl",
) -> Result:
    """Write the predicted genes as an h5ad that scanpy and Seurat read.

    For example:
      agl-sc export OUT.zarr --output predicted.h5ad
      agl-sc export OUT.zarr --output C6.h5ad --section C6
    """
    from agl_sc import tl

    if output.suffix != ".h5ad":
        msg = f"--output {output} does not end in .h5ad, by which scanpy and Seurat know it; write such as --output {output.with_suffix('.h5ad')}."
        raise ValueError(msg)
    place = free_destination(output, force=force)
    say(f"Reading {store}")
    sdata = open_store(store)
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    adata = tl.to_anndata(
        sdata,
        prediction=prediction,  # type: ignore[arg-type]  # refuses an unknown one
        sections=section or None,
        max_image_px=max_image_px,
        **where,
        key_added=key_added,
    )
    with written(context, place) as (fresh,):
        adata.write_h5ad(fresh, compression="gzip")
    megabytes = place.path.stat().st_size / 1e6
    values = {"h5ad": place.path, "n_genes": adata.n_vars, "n_spots": adata.n_obs, "megabytes": round(megabytes, 3)}
    return Result(values, f"{adata.n_vars} genes of {adata.n_obs} spots, {megabytes:.1f} MB.\n{place.path}")
