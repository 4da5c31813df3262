"""Where results may go, and runs that several processes share."""

import subprocess
import sys
from pathlib import Path

import pytest

from agl_sc._paths import check_folder, check_parent, one_at_a_time, replacing, replacing_all
from agl_sc.core.writing.claims import is_held

HOLD = "import sys; from pathlib import Path; from agl_sc.core.writing.claims import claimed\nwith claimed(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_link_is_judged_by_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "good").symlink_to(tmp_path / "absent")
    (tmp_path / "bad").symlink_to(tmp_path / "no" / "where")
    assert check_parent(tmp_path / "good") == tmp_path / "good"
    with pytest.raises(FileNotFoundError, match=r"The folder .*/no does not exist"):
        check_parent(tmp_path / "bad")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to stand for a read-only place")
def test_a_link_into_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/model")
    with pytest.raises(PermissionError, match="The folder /proc cannot be written to"):
        check_parent(tmp_path / "link")


def test_a_folder_or_none_yet(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert check_folder(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(FileExistsError, match="file is a file, not a folder"):
        check_folder(tmp_path / "file")


def test_one_result_and_several(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as fresh:
        fresh.write_text("1")
    with replacing_all([tmp_path / "a", tmp_path / "b"]) as (a, b):
        a.write_text("2")
        b.mkdir()
    assert (tmp_path / "a").read_text() == "2"
    assert (tmp_path / "b").is_dir()


def test_work_is_held_one_by_one_and_what_another_is_at_comes_last(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in "abc"}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, paths["a"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        done = []
        for work, path in one_at_a_time([*paths.items(), ("d", None)]):
            done.append(work)
            assert path is None or [name for name in "abc" if is_held(paths[name])] == [work]
            if work == "d":
                other.stdin.close()
    assert done == ["b", "c", "d", "a"]
    assert list(tmp_path.iterdir()) == []
