"""``agl-sc predict``."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from agl_sc.cli._address import (
    BatchSize,
    CoordinateSystem,
    Device,
    ImageKey,
    ImageMpp,
    KeyAdded,
    ShapesKey,
    TableKey,
    elements,
)
from agl_sc.cli._frame import Force, Result, say
from agl_sc.cli._read import Distrust, LatticeOption, Spacing, read_slides
from agl_sc.cli._store import free_destination, open_store, written


def predict(  # noqa: PLR0913 -- an entry point
    context: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="STORE|SLIDE", help="SpatialData in zarr, or a slide.", show_default=False)
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="Folder of a model.", show_default=False)
    ] = None,
    *,
    model: Annotated[Path | None, typer.Option(help="The same by name.", show_default=False)] = None,
    output: Annotated[Path, typer.Option(help="Store for the sections with predictions.", show_default=False)],
    h5ad: Annotated[
        Path | None, typer.Option(help="The predicted genes for scanpy and Seurat, too.", show_default=False)
    ] = None,
    trust_encoder: Annotated[
        bool, typer.Option("--trust-encoder", help="Fetch the encoder that the model names, wherever it is.")
    ] = False,
    min_r: Annotated[
        float | None, typer.Option(help="Genes of a smaller held-out Pearson correlation are not written.")
    ] = None,
    interval: Annotated[
        float | None, typer.Option(help="Share of spots that intervals are to cover, such as 0.9.", show_default=False)
    ] = None,
    write_to: Annotated[
        str,
        typer.Option(help="Predictions as layer, as a table of their own, or auto: as a table where a layer is large."),
    ] = "auto",
    force: Force = False,
    spacing_um: Spacing = 100.0,
    lattice: LatticeOption = "hex",
    distrust_file: Distrust = False,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    image_mpp: ImageMpp = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    key_added: KeyAdded = "agl",
) -> Result:
    """Predict expression of sections that the model has never seen.

    Predictions are layers["agl"] of the table, or a table of their own, in the units that the model was trained in. Of a
    slide the tissue is found first, and spots are laid on it.

    For example:
      agl-sc predict STORE.zarr model --output OUT.zarr
      agl-sc predict STORE.zarr model --output STORE.zarr --force
      agl-sc predict slide.svs --model model --output OUT.zarr --h5ad OUT.h5ad
    """
    from agl_sc import Model, tl
    from agl_sc._sdata.predictions import predicted_of
    from agl_sc._sdata.study import Address, Study
    from agl_sc.io._slide import is_slide

    place = free_destination(output, force=force)
    beside = [] if h5ad is None else [free_destination(h5ad, force=force)]
    trained = Model.load(_model_of(folder, model), trust_encoder=trust_encoder)
    say(f"Reading {source}")
    bare = is_slide(source)
    sdata = (
        read_slides([str(source)], spacing_um, lattice, image_mpp=image_mpp, distrust_file=distrust_file)
        if bare
        else open_store(source)
    )
    image_mpp = None if bare else image_mpp  # the reader has taken it
    say("Predicting")
    where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
    tl.predict(
        sdata,
        trained,
        **where,
        device=device,
        batch_size=batch_size,
        min_r=min_r,
        interval=interval,
        write_to=write_to,  # type: ignore[arg-type]  # refuses an unknown one
        key_added=key_added,
    )
    found = predicted_of(Study.of(sdata, Address(table_key=table_key), key_added), "model")
    known = np.isfinite(found.values)
    say(f"Writing {place.path}")
    with written(context, place, *beside) as (fresh, *others):
        sdata.write(fresh)
        for other in others:
            tl.to_anndata(sdata, **where, key_added=key_added).write_h5ad(other, compression="gzip")
    n_genes, n_spots = int(known.any(axis=0).sum()), int(known.any(axis=1).sum())
    values: dict[str, Any] = {
        "store": place.path,
        "layer": key_added if found.slot.startswith("layers") else None,
        "predictions": found.slot,
        "n_genes": n_genes,
        "n_spots": n_spots,
        "n_obs": len(known),
    }
    if h5ad is not None:
        values["h5ad"] = beside[0].path
    paths = "\n".join(str(each.path) for each in (place, *beside))
    return Result(values, f"Predicted {n_genes} genes of {n_spots} of {len(known)} spots.\n{paths}")


def _model_of(folder: Path | None, model: Path | None) -> Path:
    """The folder of the model, which has been named once.

    Raises
    ------
    ValueError
        It has been named twice, or not at all.
    """
    if (folder is None) == (model is None):
        said = "is named nowhere" if model is None else f"is named twice, as {folder} and as --model {model}"
        msg = f"The model {said}; name its folder once, such as --model {model or 'my_model'}."
        raise ValueError(msg)
    return folder or model or Path()
