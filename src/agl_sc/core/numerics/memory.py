"""Memory that there is, by the machine and by the limits of containers and schedulers, which the machine does not tell."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_ROOT = Path("/sys/fs/cgroup")
_OF_VERSION = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Files with the limit and with what is used, and the entry of ``memory.stat`` of cached files that go when room is needed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the machine, or of the part of it that this process may use."""

    available: int
    """Bytes that can be used still."""
    total: int
    """Bytes in all."""


def memory() -> Memory:
    """Memory of the machine, or what the control groups of the process leave of it where that is less."""
    machine = psutil.virtual_memory()
    available, total = int(machine.available), int(machine.total)
    for limit, used in limits(_text(Path("/proc/self/cgroup")), _ROOT):
        available, total = min(available, max(0, limit - used)), min(total, limit)
    return Memory(available, total)


def limits(groups: str, root: Path) -> Iterator[tuple[int, int]]:
    """Limits that control groups set, and what counts against each, in bytes.

    Parameters
    ----------
    groups
        Content of ``/proc/self/cgroup``: a line ``hierarchy:controllers:path`` for each hierarchy.
    root
        Where they are mounted. Of version 2 directly, of version 1 in the folder ``memory``. Within a container the paths are
        often those of the host, which are not there; the mount itself is the container's group then.

    Returns
    -------
    One pair for every group that has a limit: that of the process and those around it. Cached files, which make room when it
    is needed, are not counted as used.
    """
    for line in groups.splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        version = 2 if number == "0" else 1
        if version == 2 or "memory" in controllers.split(","):
            group = PurePosixPath("/", path)
            for each in (group, *group.parents):
                found = _limit((root if version == 2 else root / "memory") / each.relative_to("/"), version)
                if found is not None:
                    yield found


def _limit(folder: Path, version: int) -> tuple[int, int] | None:
    limit_file, used_file, cached_entry = _OF_VERSION[version]
    limit, used = _text(folder / limit_file).strip(), _text(folder / used_file).strip()
    if not (limit.isdecimal() and used.isdecimal()):  # "max", or no such group
        return None
    entries = dict(line.split(None, 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    cached = entries.get(cached_entry, "0").strip()
    return int(limit), max(0, int(used) - (int(cached) if cached.isdecimal() else 0))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
