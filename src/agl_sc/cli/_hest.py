"""``agl-sc hest download`` and ``agl-sc hest prepare``."""

from pathlib import Path
from typing import Annotated

import typer

from agl_sc.cli._frame import Force, OneLine, Result, command, say
from agl_sc.cli._store import free_destination, written

app = typer.Typer(
    cls=OneLine, no_args_is_help=True, help="HEST-1k: download samples, and prepare them as the paper does."
)
FOLDER = Path("hest")

Ids = Annotated[list[str], typer.Argument(help="Samples of HEST-1k, such as TENX152.", show_default=False)]
Folder = Annotated[Path, typer.Option(help="Folder of the downloaded files.")]


def download(
    ids: Ids,
    *,
    folder: Folder = FOLDER,
    wsi: Annotated[bool, typer.Option("--wsi", help="Whole-slide images too, about a gigabyte each.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; the newest by default.")] = None,
) -> Result:
    """Download samples of HEST-1k (CC BY-NC-SA 4.0).

    Request access on the page of the data set once, then run "hf auth login" or set HF_TOKEN.

    For example:
      agl-sc hest download TENX152
    """
    from agl_sc import datasets

    files = datasets.hest1k(ids, folder=folder, wsi=wsi, revision=revision)
    return Result({"files": files}, "\n".join(map(str, files)))


def prepare(
    context: typer.Context,
    ids: Ids,
    *,
    folder: Folder = FOLDER,
    output: Annotated[
        Path | None, typer.Option(help="Store to write; IDS.zarr in the folder by default.", show_default=False)
    ] = None,
    targets: Annotated[int, typer.Option(help="Number of target genes; the paper has 25, 50, 75 and 100.")] = 50,
    min_genes: Annotated[int, typer.Option(help="Genes that a spot has at least.")] = 200,
    min_spots: Annotated[int, typer.Option(help="Spots that a gene is in at least.")] = 3,
    image: Annotated[str, typer.Option(help="patches, or wsi for the whole-slide image.")] = "patches",
    gene_names: Annotated[
        str | None, typer.Option(help="Column of var with gene symbols, where genes are named by Ensembl ids.")
    ] = None,
    patient: Annotated[
        list[str] | None, typer.Option(help="ID=NAME, for every sample, where the metadata are wrong.")
    ] = None,
    force: Force = False,
) -> Result:
    """Filter spots and genes and choose target genes as the paper does, and write a SpatialData store.

    Several samples go into one store, for leave-one-patient-out.

    For example:
      agl-sc hest prepare TENX152
      agl-sc hest prepare TENX152 TENX156 --patient TENX152=P2 --patient TENX156=P1
    """
    from agl_sc import io, tl
    from agl_sc._sdata.keys import Keys
    from agl_sc._sdata.records import PaperRecord, remembered

    place = free_destination(store_of(ids, folder) if output is None else output, force=force)
    patients = _pairs(patient) if patient else None
    say(f"Reading {', '.join(ids)}")
    sdata = io.read_hest(folder, ids, image=image, patient=patients, gene_names=gene_names)  # type: ignore[arg-type]
    prepared = tl.paper_prepare(sdata, n_targets=targets, min_genes=min_genes, min_spots=min_spots)
    say(f"Writing {place.path}")
    with written(context, place) as (fresh,):
        prepared.write(fresh)
    table = prepared.tables["table"]
    said = (remembered(table, Keys(), PaperRecord) or PaperRecord({})).values
    text = (
        f"{table.n_obs} spots ({said['n_spots_left_out']} left out), {table.n_vars} genes "
        f"({said['n_genes_left_out']} left out), {targets} targets\n{place.path}"
    )
    return Result({"store": place.path, "n_spots": table.n_obs, "n_genes": table.n_vars, **said}, text)


def store_of(ids: list[str], folder: Path) -> Path:
    """Where the store of samples is by default."""
    return folder / f"{'_'.join(ids)}.zarr"


def _pairs(given: list[str]) -> dict[str, str]:
    """``ID=NAME`` as a mapping."""
    for each in given:
        if not all(each.partition("=")):
            msg = f"--patient {each} is not ID=NAME; write such as --patient TENX152=P2."
            raise ValueError(msg)
    return dict(each.split("=", 1) for each in given)


for function in (download, prepare):
    command(app)(function)
