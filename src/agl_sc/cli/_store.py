"""SpatialData stores in, results out: opened by one function, refused before any work, replaced in one move."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agl_sc.cli._settings import NAME, settings_toml

if TYPE_CHECKING:
    from spatialdata import SpatialData

Store = Annotated[Path, typer.Argument(help="SpatialData in zarr.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

_RESULTS = (NAME, "model.json", "zarr.json", ".zgroup")
"""Any of these tells a folder that ``--force`` may replace."""
_ELEMENTS = ("images", "labels", "points", "shapes", "table", "tables")
_SLIDES = (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".bif", ".czi", ".dcm", ".jpg", ".jpeg", ".png")
_CLAIMS: ContextVar[ExitStack | None] = ContextVar("claims", default=None)
"""What holds the places of the running command until it is through."""
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
    is_older = any((path / kind).is_dir() for kind in _ELEMENTS)  # the first versions wrote no attributes
    if "spatialdata_attrs" not in attributes and not is_older:
        msg = f"{path} is not a SpatialData store; {_read_first(path)}."
        raise ValueError(msg)
    try:
        return _with_older_table(spatialdata.read_zarr(path), path)
    except (OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{path} is a damaged SpatialData store ({error}); {_MEND}."
        raise ValueError(msg) from error


def _read_first(path: Path) -> str:
    """The command that makes a store of what is there instead of one."""
    if path.suffix == ".h5ad":
        return f"make one of it: agl-sc read h5ad '{path}' --output STORE.zarr"
    if any((folder / "spatial").is_dir() for folder in (path, path / "outs")):
        return f"make one of it: agl-sc read visium '{path}' --output STORE.zarr"
    if path.is_file() and path.suffix.lower() in _SLIDES:
        return f"make one of it: agl-sc read slide '{path}' --output STORE.zarr"
    return _MEND


def _with_older_table(sdata: "SpatialData", path: Path) -> "SpatialData":
    """The same with the table of ``table/table``, where the first versions of spatialdata kept their only one."""
    older = path / "table" / "table"
    if not sdata.tables and older.is_dir():
        import anndata
        from spatialdata.models import TableModel

        sdata.tables["table"] = TableModel.parse(anndata.read_zarr(older))
    return sdata


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a result goes."""

    path: Path
    """Absolute."""
    folder: bool
    """The result is a folder of files, and holds the options of the run; those of a store or file lie beside it."""

    @property
    def settings(self) -> Path:
        """``agl-sc.toml`` in a folder; beside ``STORE.zarr``, ``STORE.agl-sc.toml``; beside a file its whole name goes before that."""
        if self.folder:
            return self.path / NAME
        is_store = self.path.suffix == ".zarr"  # a figure may be named as its store is
        stem = self.path.stem if is_store else self.path.name
        return self.path.with_name(f"{stem}.{NAME}")


@contextmanager
def holding_destinations() -> Iterator[None]:
    """Keep the places that :func:`free_destination` gives out from other processes until the body is through."""
    with ExitStack() as stack:
        token = _CLAIMS.set(stack)
        try:
            yield
        finally:
            _CLAIMS.reset(token)


def free_destination(path: Path, *, force: bool, folder: bool = False) -> Destination:
    """Where a result goes, refused before any work, and kept from other processes while the command runs.

    Raises
    ------
    BlockingIOError
        Another process is writing there.
    FileExistsError
        Something is there and not to be replaced, is a folder that holds no result, or was named for another result.
    FileNotFoundError
        The folder it goes into does not exist.
    PermissionError
        The folder it goes into cannot be written to.
    """
    from agl_sc._paths import check_parent
    from agl_sc.core.writing.claims import claimed, is_held

    place = Destination(check_parent(path), folder)
    claims = _CLAIMS.get()
    if claims is not None:
        if is_held(place.path):
            msg = f"{place.path} is named for two results; choose another place for one of them."
            raise FileExistsError(msg)
        claims.enter_context(claimed(place.path))
    for each in (place.path, place.settings):
        if each.is_dir() and not any((each / name).exists() for name in _RESULTS):
            msg = f"{each} is a folder that holds no result of agl-sc, and is not replaced; choose another place."
            raise FileExistsError(msg)
        if each.exists() and not force:
            msg = f"{each} exists; pass --force to replace it, or choose another place."
            raise FileExistsError(msg)
    return place


@contextmanager
def written(context: typer.Context, *places: Destination) -> Iterator[list[Path]]:
    """Paths to write results to; when the body is through, all of them appear, each with the options of this run."""
    from agl_sc._paths import replacing_all

    options = settings_toml(context)
    beside = list(dict.fromkeys(place.settings for place in places if not place.folder))
    with replacing_all([*(place.path for place in places), *beside]) as staged:
        fresh: Sequence[Path] = staged[: len(places)]
        yield list(fresh)
        within = [path / NAME for path, place in zip(fresh, places, strict=True) if place.folder]
        for path in (*within, *staged[len(places) :]):
            path.write_text(options, encoding="utf-8")
