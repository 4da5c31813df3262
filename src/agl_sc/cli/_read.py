"""``agl-sc read``: files of every kind into a store."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agl_sc.cli._address import ImageMpp, scales
from agl_sc.cli._frame import Force, OneLine, Result, command, say
from agl_sc.cli._store import free_destination, written

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger(__name__)

app = typer.Typer(
    cls=OneLine, no_args_is_help=True, help="Read sections or slides, and write them as a SpatialData store."
)

Output = Annotated[Path, typer.Option(help="Store to write.", show_default=False)]
Patient = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATIENT|NAME=PATIENT", help="Whom the sections are from; NAME is a section, repeat for several."
    ),
]


def visium(
    context: typer.Context,
    folders: Annotated[
        list[str], typer.Argument(metavar="[NAME=]FOLDER...", help="Space Ranger's outs.", show_default=False)
    ],
    *,
    output: Output,
    image: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]FILE", help="Full-resolution image of a section; repeat for several."),
    ] = None,
    image_mpp: ImageMpp = None,
    patient: Patient = None,
    counts_file: Annotated[
        str, typer.Option(help="Count file in the folder, or folder in it with counts in Matrix Market format.")
    ] = "filtered_feature_bc_matrix.h5",
    force: Force = False,
) -> Result:
    """Read Space Ranger folders of 10x Visium.

    For example:
      agl-sc read visium A1=run1/outs B1=run2/outs --image A1=a1.tif --image B1=b1.tif --output brain.zarr
    """
    from agl_sc import io

    place = free_destination(output, force=force)
    paths = _named(folders, drop=("outs",))
    images = _per_section(image, list(paths), option="--image")
    sdata = io.read_visium(
        paths,
        fullres_image=images or None,
        image_mpp=scales(image_mpp),
        patient=_patients(patient),
        counts_file=counts_file,
    )
    return _write(context, place, sdata)


def visium_hd(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Space Ranger's outs.", show_default=False)],
    *,
    output: Output,
    bin_um: Annotated[int, typer.Option("--bin", help="Side of the bins in microns: 2, 8 or 16.")] = 8,
    image: Annotated[Path | None, typer.Option(help="Full-resolution image.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="Name of the section; the folder's without.")] = None,
    force: Force = False,
) -> Result:
    """Read bins of one side, genes alone, from a Space Ranger folder of Visium HD, by spatialdata-io.

    For example:
      agl-sc read visium-hd outs --bin 8 --image slide.tif --output hd.zarr
    """
    from spatialdata_io import visium_hd as read

    from agl_sc.io._readable import readable

    place = free_destination(output, force=force)
    if not folder.is_dir():
        msg = f"The folder '{folder}' does not exist; name Space Ranger's outs."
        raise FileNotFoundError(msg)
    _check_bins(folder, bin_um)
    own = {} if image is None else {"fullres_image_file": image}
    whole = folder.resolve()
    section = name or (whole.parent.name if whole.name == "outs" else whole.name)
    options = {"bin_size": bin_um, "load_segmentations_only": False, "gex_only": True, "var_names_make_unique": False}
    with readable(folder, kind=" by spatialdata_io.visium_hd"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique", category=UserWarning)  # they will be
        sdata = read(folder, dataset_id=section, **options, **own)
    _drop_cells(sdata)
    _tell_unique_names(sdata.tables[f"square_{bin_um:03d}um"])
    return _write(context, place, sdata)


def _check_bins(folder: Path, bin_um: int) -> None:
    """Refuse bins of a side that the folder does not have."""
    there = sorted({each.name for each in (*folder.glob("square_*um"), *folder.glob("*/square_*um"))})
    if f"square_{bin_um:03d}um" not in there:
        sides = ", ".join(str(int(each[7:10])) for each in there) or "none"
        msg = f"'{folder}' has no bins of {bin_um} um; those of these sides are there: {sides}; pass one with --bin, or name Space Ranger's outs."
        raise ValueError(msg)


def _drop_cells(sdata: "SpatialData") -> None:
    """Take out the cells that Space Ranger 4 segments, which spatialdata-io reads beside the bins that it is asked for."""
    for elements in (sdata.tables, sdata.shapes):
        for name in [name for name in elements if name.endswith("_segmentations")]:
            del elements[name]


def _tell_unique_names(table: "AnnData") -> None:
    """Number the symbols that several genes share, as spatialdata-io does, and say so."""
    n_shared = int(table.var_names.duplicated().sum())
    if n_shared:
        table.var_names_make_unique()
        logger.warning(
            "%d genes share their symbol with an earlier gene and were named SYMBOL-1, SYMBOL-2 and so on.", n_shared
        )


def st(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder of {S}.tsv.gz, {S}_selection.tsv and {S}.jpg.", show_default=False)
    ],
    *,
    output: Output,
    section: Annotated[
        list[str] | None, typer.Option(help="Section to read; repeat for several. All by default.")
    ] = None,
    image_mpp: ImageMpp = None,
    patient: Patient = None,
    force: Force = False,
) -> Result:
    """Read sections of legacy Spatial Transcriptomics.

    For example:
      agl-sc read st her2st --patient B4=B --patient C5=C --patient C6=C --output her2st.zarr
    """
    from agl_sc.io._st import read_st_folder

    place = free_destination(output, force=force)
    sdata = read_st_folder(folder, image_mpp=scales(image_mpp), sections=section or None, patient=_patients(patient))
    return _write(context, place, sdata)


def h5ad(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="AnnData in the layout of scanpy and squidpy.", show_default=False)],
    *,
    output: Output,
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME=FILE", help="Full-resolution image, where the file is to take none of its own."
        ),
    ] = None,
    library_key: Annotated[
        str | None, typer.Option(help="Column of obs that says which section a spot is from.")
    ] = None,
    image_key: Annotated[str | None, typer.Option(help="Image of uns to take; the finest by default.")] = None,
    technology: Annotated[
        str | None, typer.Option(help="st, visium or visium_hd, whose pitch tells the scale.")
    ] = None,
    image_mpp: ImageMpp = None,
    patient: Patient = None,
    force: Force = False,
) -> Result:
    """Read an AnnData with positions and an image.

    For example:
      agl-sc read h5ad brain.h5ad --technology visium --output brain.zarr
    """
    import anndata

    from agl_sc import io
    from agl_sc.io._readable import readable

    place = free_destination(output, force=force)
    if not file.is_file():
        msg = f"{file} does not exist; name an h5ad file."
        raise FileNotFoundError(msg)
    with readable(file, kind=" as an AnnData"):
        adata = anndata.read_h5ad(file)
    sdata = io.from_anndata(
        adata,
        image=_one_or_per_section(image),
        library_key=library_key,
        image_key=image_key,
        technology=technology,
        image_mpp=scales(image_mpp),
        patient=_patients(patient),
    )
    return _write(context, place, sdata)


def hest(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of downloaded samples.", show_default=False)],
    ids: Annotated[
        list[str] | None, typer.Argument(help="Samples, such as TENX152; all without.", show_default=False)
    ] = None,
    *,
    output: Output,
    image: Annotated[str | None, typer.Option(help="wsi or patches; the whole slide where there is one.")] = None,
    gene_names: Annotated[str | None, typer.Option(help="Column of var with gene symbols.")] = None,
    patient: Patient = None,
    force: Force = False,
) -> Result:
    """Read samples of HEST-1k that "agl-sc hest download" left in a folder, all spots and genes.

    For example:
      agl-sc read hest hest TENX152 --output tenx152.zarr
    """
    from agl_sc import io

    place = free_destination(output, force=force)
    options: dict[str, Any] = {"image": image, "gene_names": gene_names, "patient": _patients(patient)}
    return _write(context, place, io.read_hest(folder, ids=ids or None, **options))


Spacing = Annotated[float, typer.Option(help="Distance of the spots in microns.")]
LatticeOption = Annotated[str, typer.Option(help="hex, as on Visium, or square.")]
Distrust = Annotated[
    bool, typer.Option("--distrust-file", help="Take --image-mpp even where the slide says otherwise.")
]


def slide(
    context: typer.Context,
    files: Annotated[list[str], typer.Argument(metavar="[NAME=]FILE...", help="Slides.", show_default=False)],
    *,
    output: Output,
    spacing_um: Spacing = 100.0,
    lattice: LatticeOption = "hex",
    image_mpp: ImageMpp = None,
    distrust_file: Distrust = False,
    patient: Patient = None,
    force: Force = False,
) -> Result:
    """Read slides that were never sequenced: find the tissue, and lay spots on it.

    For example:
      agl-sc read slide slide.svs --output slide.zarr
    """
    place = free_destination(output, force=force)
    sdata = read_slides(files, spacing_um, lattice, image_mpp=image_mpp, distrust_file=distrust_file, patient=patient)
    return _write(context, place, sdata)


def read_slides(
    files: list[str],
    spacing_um: float,
    lattice: Any,
    *,
    image_mpp: list[str] | None,
    distrust_file: bool,
    patient: list[str] | None = None,
) -> "SpatialData":
    """Slides as the options of a command name them."""
    from agl_sc import io

    return io.read_slide(
        _named(files),
        spacing_um=spacing_um,
        lattice=lattice,
        image_mpp=scales(image_mpp),
        trust_file=not distrust_file,
        patient=_patients(patient),
    )


def _named(values: list[str], *, drop: tuple[str, ...] = ()) -> dict[str, Path]:
    """Paths by section: as named before ``=``, else the name of the file up to its first dot, or of the folder.

    Raises
    ------
    ValueError
        Two have the same name.
    """
    from agl_sc.io._layout import name_after

    found: dict[str, Path] = {}
    for value in values:
        name, path = _split(value)
        if not name:
            whole = path.resolve()
            name = name_after(
                whole.parent.name if whole.name in drop else whole.name if whole.is_dir() else whole.name.split(".")[0]
            )
        if name in found:
            msg = f"{found[name]} and {path} would both be section {name!r}; name them, as in A1={path}."
            raise ValueError(msg)
        found[name] = path
    return found


def _split(value: str) -> tuple[str, Path]:
    name, equals, path = value.partition("=")
    return (name, Path(path)) if equals and not Path(value).exists() else ("", Path(value))


def _per_section(values: list[str] | None, sections: list[str], *, option: str) -> dict[str, str | Path]:
    """Files by section; of one section the name may be missing."""
    found: dict[str, str | Path] = {}
    for value in values or []:
        name, path = _split(value)
        name = name or (sections[0] if len(sections) == 1 else "")
        if name not in sections:
            msg = f"{option} {value} names no section; write {option} NAME={path}, where NAME is {', '.join(sections)}."
            raise ValueError(msg)
        found[name] = path
    return found


def _one_or_per_section(values: list[str] | None) -> Any:
    split = [_split(value) for value in values or []]
    if len(split) == 1 and not split[0][0]:
        return split[0][1]
    return dict(split) or None


def _patients(values: list[str] | None) -> Any:
    """One patient of all sections, or by section.

    Raises
    ------
    ValueError
        There are several, and one is of no section.
    """
    if not values:
        return None
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    split = [value.partition("=") for value in values]
    for value, (_, equals, _) in zip(values, split, strict=True):
        if not equals:
            msg = f"--patient {value} is not NAME=PATIENT, which several are given as, such as --patient C6=C."
            raise ValueError(msg)
    return {name: patient for name, _, patient in split}


def _write(context: typer.Context, place: Any, sdata: "SpatialData") -> Result:
    say(f"Writing {place.path}")
    with written(context, place) as (fresh,):
        sdata.write(fresh)
    tables = {name: list(table.shape) for name, table in sdata.tables.items()}
    shown = [f"{name}: {n_obs:,} spots, {n_vars:,} genes" for name, (n_obs, n_vars) in tables.items()]
    values = {"store": place.path, "images": sorted(sdata.images), "tables": tables}
    return Result(values, "\n".join([*shown, str(place.path)]))


command(app)(visium)
command(app, "visium-hd")(visium_hd)
for function in (st, h5ad, hest, slide):
    command(app)(function)
