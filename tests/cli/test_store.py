"""What is opened, where results may go, and that they come whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from spatialdata import SpatialData
from spatialdata._io.format import SpatialDataContainerFormatV01
from typer.testing import Result

from agl_sc.cli._store import free_destination, holding_destinations, open_store
from agl_sc.core.writing.claims import is_held

Run = Callable[..., Result]


def folder(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("x")


def other_zarr(path: Path) -> None:
    zarr.open_group(path, mode="w").create_group("X")


def damaged(path: Path) -> None:
    group = zarr.open_group(path, mode="w")
    group.attrs["spatialdata_attrs"] = {"version": "0.2", "spatialdata_software_version": "0.7"}
    group.create_group("tables/table")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda path: None, r"a.zarr does not exist; name a SpatialData store in zarr", id="nothing"),
        pytest.param(folder, r"a.zarr is not a SpatialData store; write one with sdata.write", id="folder"),
        pytest.param(text, r"a.zarr is not a SpatialData store; write one with sdata.write", id="file"),
        pytest.param(other_zarr, r"a.zarr is not a SpatialData store; write one with sdata.write", id="other zarr"),
        pytest.param(damaged, r"a.zarr is a damaged SpatialData store \(.*\); write one", id="damaged"),
    ],
)
def test_what_is_no_store_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path / "a.zarr")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        open_store(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("name", "command"),
    [("a.h5ad", "h5ad"), ("slide.svs", "slide"), ("A/spatial/x.csv", "visium"), ("A/outs/spatial/x", "visium")],
)
def test_what_can_be_made_a_store_is_said_to_be_by_which_command(tmp_path: Path, name: str, command: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    given = tmp_path / Path(name).parts[0]
    with pytest.raises(
        ValueError,
        match=rf"not a SpatialData store; make one of it: agl-sc read {command} '{given}' --output STORE\.zarr",
    ):
        open_store(given)


@pytest.mark.filterwarnings("ignore")  # of zarr and spatialdata about a version of old
def test_the_only_table_of_the_first_versions_is_read(tmp_path: Path, tissue: SpatialData) -> None:
    """In 2023 it lay in ``table/table``, and the container had no attributes."""
    path = tmp_path / "old.zarr"
    tissue.write(path, sdata_formats=SpatialDataContainerFormatV01())
    (path / "table").mkdir()
    (path / "tables" / "table").rename(path / "table" / "table")
    (path / "tables").rename(tmp_path / "gone")
    (path / ".zattrs").write_text("{}")
    (path / ".zmetadata").unlink(missing_ok=True)
    read = open_store(path)
    assert list(read["table"].obs["section"]) == list(tissue["table"].obs["section"])
    assert read["table"].uns["spatialdata_attrs"]["region_key"] == "region"


def test_place_is_free_or_forced(tmp_path: Path) -> None:
    place = free_destination(tmp_path / "new.zarr", force=False)
    assert (place.path, place.settings) == (tmp_path / "new.zarr", tmp_path / "new.agl-sc.toml")
    model = free_destination(tmp_path / "model", force=False, folder=True)
    assert model.settings == tmp_path / "model" / "agl-sc.toml"
    other_zarr(place.path)
    with pytest.raises(
        FileExistsError, match=r"new.zarr exists; pass --force to replace it, or choose another place\."
    ):
        free_destination(place.path, force=False)
    assert free_destination(place.path, force=True) == place
    assert free_destination(tmp_path / "new.png", force=False).settings == tmp_path / "new.png.agl-sc.toml"
    text(tmp_path / "fresh.csv.agl-sc.toml")
    with pytest.raises(FileExistsError, match=r"fresh.csv.agl-sc.toml exists; pass --force"):
        free_destination(tmp_path / "fresh.csv", force=False)


def test_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    text(tmp_path / "thesis" / "chapter_1.md")
    with pytest.raises(FileExistsError, match="thesis is a folder that holds no result of agl-sc, and is not replaced"):
        free_destination(tmp_path / "thesis", force=True, folder=True)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"The folder {tmp_path / 'no'} does not exist")):
        free_destination(tmp_path / "no" / "a.zarr", force=True)


def test_failure_while_writing_leaves_what_was_there(
    run: Run, *, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    csv = tmp_path / "m.csv"
    assert run("evaluate", results / "result.zarr", "--csv", csv).exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(self: pd.DataFrame, path: Path, **options: object) -> None:
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", interrupted)
    done = run("evaluate", results / "result.zarr", "--csv", csv, "--force")
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (130, "agl-sc: interrupted; nothing was written.")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_places_are_kept_while_a_command_runs_and_free_again_after(tmp_path: Path) -> None:
    for _ in range(2):
        with holding_destinations():
            free_destination(tmp_path / "new.zarr", force=False)
            assert is_held(tmp_path / "new.zarr")
            with pytest.raises(FileExistsError, match=r"new\.zarr is named for two results; choose another place"):
                free_destination(tmp_path / "new.zarr", force=True)
        assert not is_held(tmp_path / "new.zarr")
    free_destination(tmp_path / "new.zarr", force=False)
    assert not is_held(tmp_path / "new.zarr")  # of no command
