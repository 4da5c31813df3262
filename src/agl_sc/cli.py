"""``agl-sc``: a thin skin over the package."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agl_sc import cli_hest

if TYPE_CHECKING:
    from spatialdata import SpatialData

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Predict spatial gene expression from H&E.")
app.add_typer(cli_hest.app, name="hest")
app.command()(cli_hest.benchmark)
STORE, FIGURE = "agl_demo.zarr", "agl_demo.png"


@app.callback()
def main() -> None:
    """Predict spatial gene expression from H&E."""


@app.command()
def demo(
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of legacy ST sections ({S}.tsv.gz, {S}_selection.tsv, {S}.jpg); toy tissue without."),
    ] = None,
    output: Annotated[Path, typer.Option(help=f"Folder for {STORE} and {FIGURE}.")] = Path(),
    test: Annotated[
        list[str] | None, typer.Option(help="Section to hold out; repeat for several. The last by default.")
    ] = None,
    validation: Annotated[list[str] | None, typer.Option(help="Section that picks cutoff and epoch.")] = None,
    mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of the images; from the spot pitch by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo in the output folder.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
) -> None:
    """Train on some sections, predict the others, draw measured beside predicted expression.

    Prints the mean Pearson correlation of the target genes on the held-out sections for ridge, targets only, all
    auxiliary genes and DkGSB.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.simplefilter("ignore")  # of dependencies: what this package has to say goes through logging
    try:
        _demo(data, _outputs(output, force=force), split=(test, validation), mpp=mpp, seed=seed)
    except (OSError, KeyError, TypeError, ValueError) as error:
        typer.echo(f"agl-sc: {error.args[0] if error.args else error}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as interrupt:
        typer.echo("agl-sc: interrupted; nothing was written.", err=True)
        raise typer.Exit(130) from interrupt


def _outputs(folder: Path, *, force: bool) -> tuple[Path, Path]:
    """Where store and figure go, refused before any work."""
    from agl_sc._paths import check_parent

    store, figure = check_parent(folder / STORE), check_parent(folder / FIGURE)
    for path in (store, figure):
        if path.exists() and not force:
            msg = f"{path} exists; pass --force to replace it, or another --output."
            raise FileExistsError(msg)
    return store, figure


def _demo(
    data: Path | None,
    outputs: tuple[Path, Path],
    *,
    split: tuple[Sequence[str] | None, Sequence[str] | None],
    mpp: float | None,
    seed: int,
) -> None:
    import matplotlib as mpl

    from agl_sc import pl, pp
    from agl_sc.tl._arms import compare_arms, summary

    mpl.use("Agg")
    store, figure = outputs
    _say("Reading sections" if data else "Making two toy sections")
    sdata, held_out = _sections(data, mpp, test=split[0], seed=seed)
    table = sdata.tables["table"]
    pp.split(sdata, by="section", test=held_out, validation=split[1] or 0.2, seed=seed)
    targets = None if data else list(table.uns["truth"]["targets"])
    pp.target_genes(sdata, genes=targets or 50)
    pp.rank_auxiliary(sdata, seed=seed)
    _say("Embedding tiles")
    pp.embed(sdata)
    _say("Training: targets only, all auxiliary genes, DkGSB")
    result, model = compare_arms(sdata, seed=seed)
    n_selected = int(table.var["agl_selected"].sum())
    typer.echo("\nMean Pearson of the target genes on held-out sections\n")
    typer.echo(summary(result).to_string(float_format="{:.3f}".format))
    if model is not None and model.cutoff is not None:
        typer.echo(
            f"\nDkGSB chose {n_selected} of {len(model.genes) - model.n_targets} auxiliary genes (cutoff {model.cutoff:.2f})."
        )
    _say(f"Drawing {figure.name}, writing {store.name}")
    genes = list(table.var["agl_pearson"].dropna().sort_values(ascending=False).index[:2])
    pl.spatial_pred(sdata, genes, sections=held_out, save=figure, show=False)
    _write(sdata, store)
    typer.echo(f"\n{figure}\n{store}")


def _sections(
    data: Path | None, mpp: float | None, *, test: Sequence[str] | None, seed: int
) -> tuple["SpatialData", list[str]]:
    """The sections, and the names of those to hold out."""
    from agl_sc import datasets
    from agl_sc._boundary import region_of
    from agl_sc.io._st import read_st_folder

    sdata = datasets.toy_tissue(seed=seed) if data is None else read_st_folder(data, mpp=mpp)
    return sdata, list(test or [sorted(set(region_of(sdata.tables["table"])))[-1]])


def _write(sdata: "SpatialData", store: Path) -> None:
    """Write beside the store first, so that an interrupt leaves the earlier one."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix=f".{store.name}-", dir=store.parent) as staged:
        fresh = Path(staged) / "fresh"
        sdata.write(fresh)
        if store.exists():
            store.replace(Path(staged) / "replaced")
        fresh.replace(store)


def _say(text: str) -> None:
    typer.echo(text, err=True)
