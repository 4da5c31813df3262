"""Downloading HEST-1k, from a folder laid out as its repository."""

import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError
from tests.io.hest_files import write_sample

from agl_sc.datasets import hest1k
from agl_sc.io import read_hest


def refused(status: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    """The hub's answer, which its own constructor wants a request for."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{status} Client Error")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The repository as a folder; what is asked of it is noted, and it raises what is put under ``error``."""
    repository = write_sample(write_sample(tmp_path / "repository", wsi=True), "TENX128", seed=3)
    asked: dict[str, Any] = {"error": None, "folder": tmp_path / "hest", "calls": []}

    def dataset_info(_: Any, repo_id: str, **options: Any) -> SimpleNamespace:
        asked["calls"].append((repo_id, options))
        files = [file.relative_to(repository).as_posix() for file in repository.rglob("*") if file.is_file()]
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=file) for file in files])

    def snapshot_download(repo_id: str, *, local_dir: Path, allow_patterns: list[str], **options: Any) -> str:
        asked["calls"].append((repo_id, options))
        if asked["error"] is not None:
            raise asked["error"]
        for file in (file for file in repository.rglob("*") if file.is_file()):
            path = file.relative_to(repository).as_posix()
            if any(fnmatch(path, pattern) for pattern in allow_patterns):
                (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, local_dir / path)
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_download_and_read(hub: dict[str, Any]) -> None:
    files = hest1k("TENX152", folder=hub["folder"], token="secret")
    assert [file.relative_to(hub["folder"]).as_posix() for file in files] == [
        "st/TENX152.h5ad", "metadata/TENX152.json", "patches/TENX152.h5"
    ]  # fmt: skip
    assert sorted(file for file in hub["folder"].rglob("*") if file.is_file()) == sorted(files)
    (_, info), (repository, options) = hub["calls"]
    assert (repository, options["repo_type"], options["revision"]) == ("MahmoodLab/hest", "dataset", "abc")
    assert options["token"] == info["token"] == "secret"
    assert list(read_hest(hub["folder"]).shapes) == ["TENX152"]


def test_several_with_slides(hub: dict[str, Any]) -> None:
    files = hest1k(["TENX152"], folder=hub["folder"], wsi=True)
    assert files[-1] == hub["folder"] / "wsis/TENX152.tif"
    assert files[-1].is_file()
    assert len(hest1k(["TENX152", "TENX128"], folder=hub["folder"])) == 6


def unreachable() -> Exception:
    return LocalEntryNotFoundError("Cannot find an appropriate snapshot folder.\nMore lines.")


REFUSED: list[Any] = [
    pytest.param(unreachable, ConnectionError, r"could not be downloaded \(Cannot find .* folder\); check the network and HF_HUB_OFFLINE", id="no network"),
    pytest.param(lambda: HfHubHTTPError.__mro__[1]("Name not known"), ConnectionError, r"could not be downloaded \(Name not known\)", id="error of the HTTP library"),
    pytest.param(lambda: RuntimeError(), ConnectionError, r"could not be downloaded \(RuntimeError\)", id="xet"),
    pytest.param(lambda: refused(500), ConnectionError, r"could not be downloaded \(500 Client Error\)", id="server"),
    pytest.param(lambda: refused(401), PermissionError, r"refuses the token; request access at https://huggingface.co/datasets/MahmoodLab/hest, then run `hf auth login`", id="token"),
    pytest.param(lambda: refused(403, GatedRepoError), PermissionError, r"gated: request access at https://.*MahmoodLab/hest.* then run `hf auth login` or set HF_TOKEN", id="gated"),
    pytest.param(lambda: refused(404, RevisionNotFoundError), KeyError, "revision='v9' is none of MahmoodLab/hest; leave it out", id="revision"),
]  # fmt: skip


@pytest.mark.parametrize(("raised", "error", "message"), REFUSED)
def test_refusals_of_the_hub(
    hub: dict[str, Any], *, raised: Callable[[], Exception], error: type[Exception], message: str
) -> None:
    hub["error"] = raised()
    with pytest.raises(error, match=message):
        hest1k("TENX152", folder=hub["folder"], revision="v9")


IDS: list[Any] = [
    pytest.param("TENX153", KeyError, "HEST-1k has no TENX153; did you mean TENX152.*; its samples are listed at https", id="unknown"),
    pytest.param("TENX128", KeyError, r"HEST-1k has no wsis/TENX128\.tif; its samples", id="no slide"),
    pytest.param("*", ValueError, r"ids=\['\*'\] names no sample of HEST-1k; pass such as 'TENX152'", id="pattern"),
    pytest.param([], ValueError, r"ids=\[\] names no sample", id="none"),
]  # fmt: skip


@pytest.mark.parametrize(("ids", "error", "message"), IDS)
def test_ids(hub: dict[str, Any], *, ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        hest1k(ids, folder=hub["folder"], wsi=True)
    assert not hub["folder"].exists()


def test_files_of_an_earlier_download_need_no_network(hub: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    files = hest1k("TENX152", folder=hub["folder"])
    hub["error"] = unreachable()
    assert hest1k("TENX152", folder=hub["folder"]) == files
    assert "; the files of an earlier download are used." in caplog.text
    with pytest.raises(ConnectionError):
        hest1k(["TENX152", "TENX128"], folder=hub["folder"])


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself, told not to use the network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match=r"could not be downloaded \(.*offline.*\); check the network and HF_HUB_OFFLINE"
    ):
        hest1k("TENX152", folder=tmp_path / "hest")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"The folder .*none does not exist"):
        hest1k("TENX152", folder=tmp_path / "none" / "hest")
