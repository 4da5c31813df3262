"""Memory by machine and control groups, on the files that kernels write."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from agl_sc.core.numerics import memory as module
from agl_sc.core.numerics.memory import Memory, limits, memory

NO_LIMIT_V1 = "9223372036854771712"
V1 = "9:name=systemd:/\n4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n"
V2 = "0::/user.slice/job_7\n"


def group(folder: Path, version: int, *, limit: str, used: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    entry = "total_inactive_file" if version == 1 else "inactive_file"
    (folder / "memory.stat").write_text(f"inactive_file 5\nanon 7\n{entry} {cached}\n")


@pytest.mark.parametrize(("version", "text", "own"), [(1, V1, "memory/docker/abc"), (2, V2, "user.slice/job_7")])
def test_the_group_of_the_process_and_those_around_it(tmp_path: Path, *, version: int, text: str, own: str) -> None:
    assert list(limits(text, tmp_path)) == []
    group(tmp_path / own, version, limit="4000", used=1500, cached=300)
    assert list(limits(text, tmp_path)) == [(4000, 1200)]
    group((tmp_path / own).parent, version, limit="3000", used=2500)
    assert list(limits(text, tmp_path)) == [(4000, 1200), (3000, 2500)]
    group((tmp_path / own).parent, version, limit="max", used=2500)
    assert list(limits(text, tmp_path)) == [(4000, 1200)]


@pytest.mark.parametrize(("version", "text"), [(1, V1), (2, V2)])
def test_in_a_container_the_mount_is_the_group(tmp_path: Path, version: int, text: str) -> None:
    group(tmp_path / "memory" if version == 1 else tmp_path, version, limit="4000", used=100)
    assert list(limits(text, tmp_path)) == [(4000, 100)]


def test_version_1_has_no_word_for_no_limit_and_other_controllers_have_none(tmp_path: Path) -> None:
    group(tmp_path / "memory", 1, limit=NO_LIMIT_V1, used=100)
    assert list(limits("4:memory:/\n", tmp_path)) == [(int(NO_LIMIT_V1), 100)]
    assert list(limits("4:cpu:/\n3:name=memory_like:/\nnonsense\n", tmp_path)) == []


@pytest.mark.parametrize("content", ["", "max", "-5", "many", "\x00"])
def test_what_is_no_number_is_no_limit(tmp_path: Path, content: str) -> None:
    group(tmp_path, 2, limit=content, used=100)
    assert list(limits("0::/\n", tmp_path)) == []


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("max", 0, Memory(600, 1000)),
        (NO_LIMIT_V1, 0, Memory(600, 1000)),
        ("900", 100, Memory(600, 900)),
        ("500", 100, Memory(400, 500)),
        ("500", 700, Memory(0, 500)),
    ],
)
def test_the_smaller_of_machine_and_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, limit: str, used: int, expected: Memory
) -> None:
    group(tmp_path, 2, limit=limit, used=used)
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=600, total=1000))
    read = module._text
    monkeypatch.setattr(module, "_text", lambda path: "0::/\n" if path == Path("/proc/self/cgroup") else read(path))
    assert memory() == expected


def test_without_control_groups_the_machine_alone_tells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=600, total=1000))
    assert memory() == Memory(600, 1000)
