"""``agl-sc hest`` and the paper's protocol: download, prepare, benchmark."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(no_args_is_help=True, help="HEST-1k: download samples, and prepare them as the paper does.")
RESULTS, PROVENANCE, RUNS = "results.csv", "provenance.json", "runs"
_CAVEAT = (
    " Test spots of random spot folds share pixels and expression with training spots of the same section, so these numbers "
    "are higher than those of another section."
)

Ids = Annotated[list[str], typer.Argument(help="Samples of HEST-1k, such as TENX152.", show_default=False)]
Folder = Annotated[Path, typer.Option(help="Folder of the downloaded files.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at the place of the results.")]


@app.command()
def download(
    ids: Ids,
    *,
    folder: Folder = Path("hest"),
    wsi: Annotated[bool, typer.Option("--wsi", help="Whole-slide images too, about a gigabyte each.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; the newest by default.")] = None,
) -> None:
    """Download samples of HEST-1k (CC BY-NC-SA 4.0; request access on its page once, then run "hf auth login")."""
    with _one_line():
        from agl_sc import datasets

        for file in datasets.hest1k(ids, folder=folder, wsi=wsi, revision=revision):
            typer.echo(file)


@app.command()
def prepare(
    ids: Ids,
    *,
    folder: Folder = Path("hest"),
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
        list[str] | None,
        typer.Option(
            help="ID=NAME, for every sample, where the metadata are wrong; theirs by default.", show_default=False
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Filter spots and genes and choose target genes as the paper does, and write a SpatialData store.

    Several samples go into one store, for leave-one-patient-out.
    """
    with _one_line():
        from agl_sc import io, tl

        store = _free(_store_of(ids, folder) if output is None else output, force=force)
        _say(f"Reading {', '.join(ids)}")
        patients = None if not patient else _pairs(patient)
        sdata = io.read_hest(folder, ids, image=image, patient=patients, gene_names=gene_names)  # type: ignore[arg-type]
        prepared = tl.paper_prepare(sdata, n_targets=targets, min_genes=min_genes, min_spots=min_spots)
        _say(f"Writing {store}")
        _write(prepared, store)
        table = prepared.tables["table"]
        left_out = table.uns["agl"]["paper"]
        typer.echo(
            f"{table.n_obs} spots ({left_out['n_spots_left_out']} left out), {table.n_vars} genes "
            f"({left_out['n_genes_left_out']} left out), {targets} targets\n{store}"
        )


def benchmark(  # noqa: PLR0913 -- the options of a command
    ids: Annotated[
        list[str], typer.Argument(help="Samples that were prepared together, or a store.", show_default=False)
    ],
    *,
    protocol: Annotated[
        str, typer.Option(help="paper: random spot folds, or one patient left out at a time.")
    ] = "paper",
    methods: Annotated[str, typer.Option(help="Comma-separated.")] = "pgl,agl,dkgsb",
    preset: Annotated[str, typer.Option(help="paper, released or warmstart.")] = "paper",
    targets: Annotated[
        int | None, typer.Option(help="Number of target genes; that of the preparation by default.", show_default=False)
    ] = None,
    targets_on: Annotated[
        str, typer.Option(help="training: chosen in every fold; all: on all spots, as the paper's, which flatters.")
    ] = "training",
    encoder: Annotated[str, typer.Option(help="Encoder to fine-tune; resnet18 is downloaded once.")] = "resnet18",
    tile_px: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 224,
    mpp: Annotated[float, typer.Option(help="Microns per pixel of a tile.")] = 0.5,
    max_epochs: Annotated[
        int | None, typer.Option(help="Epochs at most; the preset's by default.", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Spots per batch.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    folder: Folder = Path("hest"),
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; IDS_paper_PRESET beside the store by default.", show_default=False),
    ] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Print the table of an earlier run.")] = False,
    force: Force = False,
) -> None:
    """Fine-tune under the paper's protocol and measure MSE, Pearson and Spearman on the test spots of every fold.

    A run that was interrupted goes on where it stopped. --evaluate prints the table of a finished one.
    """
    with _one_line():
        if protocol != "paper":
            msg = f"--protocol {protocol} is unknown; the one there is, is paper."
            raise ValueError(msg)
        store = Path(ids[0]) if len(ids) == 1 and Path(ids[0]).exists() else _store_of(ids, folder)
        place = store.with_name(f"{store.stem}_paper_{preset}") if output is None else output
        if not evaluate:
            epochs = {} if max_epochs is None else {"max_epochs": max_epochs}
            how: dict[str, Any] = {
                "methods": [name.strip() for name in methods.split(",")], "preset": preset, "n_targets": targets,
                "targets_on": targets_on, "encoder": encoder, "tile_px": tile_px, "mpp": mpp,
                "changes": {"batch_size": batch_size, **epochs}, "seed": seed,
            }  # fmt: skip
            _run(store, place, how, force=force)
        typer.echo(_table(place, command=f"agl-sc benchmark {' '.join(ids)} --protocol paper"))


def _run(store: Path, place: Path, how: dict[str, Any], *, force: bool) -> None:
    """Fit every method to every fold and write what came out."""
    import spatialdata

    from agl_sc import tl

    if not store.exists():
        msg = f"{store} does not exist; run `agl-sc hest prepare {store.stem}`, or name a store."
        raise FileNotFoundError(msg)
    _free(place / RESULTS, force=force, parents=True)
    _say(f"Reading {store}")
    sdata = spatialdata.read_zarr(store)
    place.mkdir(exist_ok=True)
    _say(f"Fine-tuning {how['encoder']}: {', '.join(how['methods'])}")
    results = tl.paper_benchmark(sdata, **how, checkpoint=place / RUNS)
    provenance = sdata.tables["table"].uns["agl"]["cross_validation"]
    (place / PROVENANCE).write_text(json.dumps({**how, **provenance}, indent=1, default=_plain), encoding="utf-8")
    results.to_csv(place / RESULTS, index=False)


def _plain(value: Any) -> Any:
    return value.tolist()  # of numpy


def _table(place: Path, *, command: str) -> str:
    """The paper's table, of the results in a folder."""
    import pandas as pd

    from agl_sc import tl

    file = place / RESULTS
    if not file.is_file():
        msg = f"{file} does not exist; run `{command}` first, or name another --output."
        raise FileNotFoundError(msg)
    summary = tl.paper_summary(pd.read_csv(file))
    by = json.loads((place / PROVENANCE).read_text(encoding="utf-8"))["by"]
    titles = {"mse": "MSE", "pearson": "Pearson", "spearman": "Spearman"}
    text = _cells(summary).rename(columns=titles).to_string()
    return f"\n{text}\n\nMean ± standard deviation over folds.{_CAVEAT if by == 'spot' else ''}\n{file}"


def _cells(summary: "pd.DataFrame") -> "pd.DataFrame":
    """Mean and standard deviation as one text, a column per metric."""
    import pandas as pd

    metrics = list(dict.fromkeys(summary.columns.get_level_values(0)))
    cells = {
        metric: [f"{mean:.3f} ± {sd:.3f}" for mean, sd in summary[metric].itertuples(index=False)] for metric in metrics
    }
    return pd.DataFrame(cells, index=summary.index)


def _pairs(given: list[str]) -> dict[str, str]:
    """``ID=NAME`` as a mapping."""
    for each in given:
        if not all(each.partition("=")):
            msg = f"--patient {each} is not ID=NAME; write such as --patient TENX152=P2."
            raise ValueError(msg)
    return dict(each.split("=", 1) for each in given)


def _store_of(ids: list[str], folder: Path) -> Path:
    return folder / f"{'_'.join(ids)}.zarr"


def _free(path: Path, *, force: bool, parents: bool = False) -> Path:
    """A place to write to, refused before any work."""
    from agl_sc._paths import check_parent

    check_parent(path.parent if parents else path)
    if path.exists() and not force:
        msg = f"{path} exists; pass --force to replace it, or another --output."
        raise FileExistsError(msg)
    return path


def _write(sdata: Any, store: Path) -> None:
    """Write beside the store first, so that an interrupt leaves the earlier one."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix=f".{store.name}-", dir=store.parent) as staged:
        fresh = Path(staged) / "fresh"
        sdata.write(fresh)
        if store.exists():
            store.replace(Path(staged) / "replaced")
        fresh.replace(store)


@contextmanager
def _one_line() -> Iterator[None]:
    """Errors of the library as one line on standard error, and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dependencies: what this package has to say goes through logging
        try:
            yield
        except (OSError, KeyError, TypeError, ValueError) as error:
            typer.echo(f"agl-sc: {error.args[0] if len(error.args) == 1 else error}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("agl-sc: interrupted; nothing was half written.", err=True)
            raise typer.Exit(130) from interrupt


def _say(text: str) -> None:
    typer.echo(text, err=True)
