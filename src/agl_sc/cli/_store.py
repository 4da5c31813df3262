"""SpatialData stores in, results out: opened by one function, refused before any work, replaced in one move."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agl_sc.cli._settings import NAME, settings_toml

if TYPE_CHECKING:
    from spatialdata import SpatialData

Store = Annotated[Path, typer.Argument(help="SpatialData in zarr.", show_default=False)]
TableKey = Annotated[str | None, typer.Option(help="Table to use; the only one by default.")]
ImageKey = Annotated[list[str] | None, typer.Option(help="Image element to use; repeat for several. All by default.")]
ShapesKey = Annotated[list[str] | None, typer.Option(help="Region to use; repeat for several. All by default.")]
CoordinateSystem = Annotated[
    str | None, typer.Option(help="What joins image and spots; the one they share by default.")
]
ImageMpp = Annotated[float | None, typer.Option(help="Microns per pixel of the images, where they do not say.")]
Layer = Annotated[str | None, typer.Option(help="Layer with raw counts; X by default.")]
KeyAdded = Annotated[str, typer.Option(help="Prefix of all slots.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

_RESULTS = (NAME, "model.json", "zarr.json", ".zgroup")
"""Any of these tells a folder that ``--force`` may replace."""
_MEND = "write one with sdata.write(path), where sdata comes from a reader of agl_sc.io or of spatialdata-io"


def open_store(path: Path) -> "SpatialData":
    """Read a store; images stay on disk.

    Raises
    ------
    FileNotFoundError
        There is nothing at ``path``.
    ValueError
        What is there is not SpatialData, or damaged.
    """
    import spatialdata
    import zarr

    if not path.exists():
        msg = f"{path} does not exist; name a SpatialData store in zarr."
        raise FileNotFoundError(msg)
    try:
        attributes: Any = zarr.open_group(path, mode="r").attrs.asdict() if path.is_dir() else {}
    except (OSError, KeyError, ValueError):  # zarr's, for a folder that is none of its own
        attributes = {}
    if "spatialdata_attrs" not in attributes:
        msg = f"{path} is not a SpatialData store; {_MEND}."
        raise ValueError(msg)
    try:
        return spatialdata.read_zarr(path)
    except (OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{path} is a damaged SpatialData store ({error}); {_MEND}."
        raise ValueError(msg) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where a result goes."""

    path: Path
    """Absolute."""
    folder: bool
    """The result is a folder of files, and holds the options of the run; those of a store or file lie beside it."""

    @property
    def settings(self) -> Path:
        """``agl-sc.toml`` in a folder; beside ``STORE.zarr``, ``STORE.agl-sc.toml``."""
        return self.path / NAME if self.folder else self.path.with_name(f"{self.path.stem}.{NAME}")


def free_place(path: Path, *, force: bool, folder: bool = False) -> Place:
    """Where a result goes, refused before any work.

    Raises
    ------
    FileExistsError
        Something is there and not to be replaced, or is a folder that holds no result.
    FileNotFoundError
        The folder it goes into does not exist.
    PermissionError
        The folder it goes into cannot be written to.
    """
    from agl_sc._paths import check_parent

    place = Place(check_parent(path), folder)
    for each in (place.path, place.settings):
        if each.is_dir() and not any((each / name).exists() for name in _RESULTS):
            msg = f"{each} is a folder that holds no result of agl-sc, and is not replaced; choose another place."
            raise FileExistsError(msg)
        if each.exists() and not force:
            msg = f"{each} exists; pass --force to replace it, or choose another place."
            raise FileExistsError(msg)
    return place


@contextmanager
def written(context: typer.Context, *places: Place) -> Iterator[list[Path]]:
    """Paths to write results to; when the body is through, all of them appear, each with the options of this run."""
    from agl_sc._paths import replacing

    options = settings_toml(context)
    with ExitStack() as stack:
        fresh = [stack.enter_context(replacing(place.path)) for place in places]
        beside = [
            path / NAME if place.folder else stack.enter_context(replacing(place.settings))
            for path, place in zip(fresh, places, strict=True)
        ]
        yield fresh
        for path in beside:
            path.write_text(options, encoding="utf-8")
