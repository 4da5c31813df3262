"""All of a result or nothing: written beside its place, brought to the disk, exchanged with what was there."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agl_sc.core.writing.claims import STAGED, abandoned, all_claimed, hidden_name, real
from agl_sc.core.writing.exchange import ASIDE, exchange, move, sync_folder, to_disk

WAIT_S = 30.0
"""How long a short write waits for that of another process."""
_finished: dict[Path, None] = {}
"""What this process has written to, in order."""
_active: set[Path] = set()
"""Where this process writes beside the places of its results."""


def note_written(path: Path) -> None:
    """Remember that something at ``path`` is finished and stays, whatever happens after."""
    _finished[path] = None


def written_so_far() -> list[Path]:
    """What was written since :func:`forget_written` and is still there."""
    return [path for path in _finished if os.path.lexists(path)]


def forget_written() -> None:
    """Begin anew."""
    _finished.clear()


@dataclass(slots=True)
class _Staged:
    """One result on its way."""

    path: Path
    """Where it goes; never a symbolic link."""
    folder: Path
    """Beside it, of this process alone."""
    existed: bool
    """Whether there is something to replace."""
    inode: tuple[int, int] | None = field(default=None)
    """Of what is to come, once it is written."""

    @property
    def fresh(self) -> Path:
        """Where to write; by the same name, for some formats go by its ending."""
        return self.folder / self.path.name

    def swap(self) -> None:
        if self.existed and os.path.lexists(self.path):
            exchange(self.fresh, self.path)
            return
        try:
            move(self.fresh, self.path)
        except FileExistsError as error:
            msg = f"{self.path} has come into being meanwhile, and is not replaced; choose another path."
            raise FileExistsError(msg) from error

    def undo(self) -> None:
        """Put back what was there, where the exchange had happened."""
        if not os.path.lexists(self.path) or _inode(self.path) != self.inode:
            return
        if os.path.lexists(self.fresh):
            exchange(self.fresh, self.path)
        else:
            move(self.path, self.fresh)


@contextmanager
def staged(paths: Sequence[Path], *, wait_s: float = WAIT_S) -> Iterator[list[Path]]:
    """Positions to write results to; when the body is through, all of them take the places of ``paths`` together.

    On an error or an interrupt, in the body or while they are exchanged, everything is as it was.

    Parameters
    ----------
    paths
        Where the results go. A symbolic link stays, and what it points to is replaced.
    wait_s
        How long to wait for another process that writes there, in seconds.

    Raises
    ------
    BlockingIOError
        Another process is writing there.
    FileExistsError
        Something appeared at a path that was free, or what is there is neither file nor folder.
    """
    places = [real(path) for path in paths]
    with all_claimed(places, wait_s=wait_s), ExitStack() as stack:
        for folder in sorted({place.parent for place in places}):
            sweep(folder)
        entries = [stack.enter_context(_beside(place)) for place in places]
        yield [entry.fresh for entry in entries]
        _commit(entries)
        for path in paths:
            note_written(path)


def _commit(entries: Sequence[_Staged]) -> None:
    """Exchange all, or none."""
    for entry in entries:
        to_disk(entry.fresh)
        entry.inode = _inode(entry.fresh)
    begun: list[_Staged] = []
    try:
        for entry in entries:
            begun.append(entry)
            entry.swap()
    except BaseException:
        for entry in reversed(begun):
            entry.undo()
        raise
    for folder in {entry.path.parent for entry in entries}:
        sync_folder(folder)


@contextmanager
def _beside(place: Path) -> Iterator[_Staged]:
    existed = os.path.lexists(place)
    if existed and not (place.is_file() or place.is_dir()):
        msg = f"{place} is neither a file nor a folder; choose another path."
        raise FileExistsError(msg)
    folder = Path(tempfile.mkdtemp(prefix=hidden_name(place, STAGED), dir=place.parent))
    _active.add(folder)
    try:
        yield _Staged(place, folder, existed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _active.discard(folder)


def sweep(folder: Path) -> None:
    """Delete what dead processes left in a folder while they wrote; an older result that had stepped aside comes back."""
    for leftover in abandoned(folder, _active):
        for aside in leftover.glob(f"*{ASIDE}"):
            if not os.path.lexists(folder / aside.name.removesuffix(ASIDE)):
                aside.rename(folder / aside.name.removesuffix(ASIDE))
        shutil.rmtree(leftover, ignore_errors=True)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace one file by what ``write`` writes, in one step."""
    with staged([path]) as (fresh,):
        write(fresh)


def _inode(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
