"""``agl-sc``: a thin skin over the package."""

import typer

from agl_sc.cli._benchmark import benchmark
from agl_sc.cli._demo import demo
from agl_sc.cli._doctor import doctor
from agl_sc.cli._encoders import encoders
from agl_sc.cli._evaluate import evaluate
from agl_sc.cli._export import export
from agl_sc.cli._frame import EXIT_CODES, OneLine, command
from agl_sc.cli._genes import genes
from agl_sc.cli._hest import app as hest
from agl_sc.cli._paper import paper
from agl_sc.cli._plot import plot
from agl_sc.cli._predict import predict
from agl_sc.cli._read import app as read
from agl_sc.cli._train import train

app = typer.Typer(
    cls=OneLine, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, epilog=EXIT_CODES
)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Predict spatial gene expression from H&E.

    Stores are SpatialData in zarr. Results go to standard output, as one JSON object with --json; progress and warnings
    go to standard error. "agl-sc COMMAND --help" shows the options of a command, and examples.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for function in (demo, train, predict, plot, evaluate, export, genes, benchmark, paper, encoders, doctor):
    command(app)(function)
app.add_typer(hest, name="hest")
app.add_typer(read, name="read")
