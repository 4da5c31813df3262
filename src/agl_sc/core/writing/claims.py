"""Who may write to a path: one process at a time, and one that died holds nothing."""

import hashlib
import os
import sys
import threading
import time
from collections.abc import Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_held: dict[Path, tuple[int, int]] = {}
"""Positions that this process writes to, with process and thread."""
_sure: set[Path] = set()
"""Those of them that the file system keeps from others."""
_PAUSE_S = 0.05
_SHORTEST_WAIT_S = 0.25
"""In which another process that only looks for leftovers is through."""
_LONGEST_NAME = 150
LOCK, STAGED = ".agl-lock", ".agl-"


def real(path: Path) -> Path:
    """The place itself: what a symbolic link at ``path`` points to, else ``path``, in a folder without links.

    Raises
    ------
    OSError
        The links go round in a circle.
    """
    path = path.absolute()
    try:
        return path.resolve() if path.is_symlink() or path.name == ".." else path.parent.resolve() / path.name
    except RuntimeError as error:  # before Python 3.13
        msg = f"{path} is a symbolic link that leads to itself; choose another path."
        raise OSError(msg) from error


def hidden_name(path: Path, ending: str) -> str:
    """Name of a companion of ``path`` in its folder, however long its own name is."""
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f"{name[:30]}~{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}"
    return f".{name}{ending}"


def is_held(path: Path) -> bool:
    """Whether this thread has claimed ``path``."""
    return _held.get(_lock_of(path)) == _me()


@contextmanager
def claimed(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Be the only one that writes to ``path``; within the same thread once more is no claim of its own.

    Parameters
    ----------
    path
        A file or a folder, there or not; its folder exists.
    wait_s
        How long to wait for another process, in seconds.

    Raises
    ------
    BlockingIOError
        Another process is writing there.
    """
    lock = _lock_of(path)
    if _held.get(lock) == _me():
        yield
        return
    with _locked(lock, path, wait_s=wait_s) as is_sure:
        _held[lock] = _me()
        if is_sure:
            _sure.add(lock)
        try:
            yield
        finally:
            del _held[lock]
            _sure.discard(lock)


@contextmanager
def all_claimed(paths: Iterable[Path], *, wait_s: float = 0.0) -> Iterator[None]:
    """Claim several paths, always in the same order, so that two processes do not wait for each other."""
    with ExitStack() as stack:
        for path in sorted(set(paths)):
            stack.enter_context(claimed(path, wait_s=wait_s))
        yield


def abandoned(folder: Path, own: Container[Path] = ()) -> Iterator[Path]:
    """What dead processes left in a folder while they wrote; each is held by this process while it is yielded.

    Parameters
    ----------
    folder
        Where they wrote.
    own
        What this process is writing itself.
    """
    for entry in sorted(folder.iterdir()):
        stem, staged, token = entry.name.rpartition(STAGED)
        if not (entry.name.startswith(".") and staged and stem and len(token) == 8):
            continue
        lock = folder / f"{stem}{LOCK}"
        if _held.get(lock) == _me():
            if lock in _sure and entry not in own:
                yield entry
            continue
        descriptor = _try(lock)
        if descriptor is not None and descriptor >= 0:
            try:
                yield entry
            finally:
                _release(lock, descriptor)
    for lock in folder.glob(f".*{LOCK}"):
        if lock not in _held and (descriptor := _try(lock)) is not None:
            _release(lock, descriptor)


def _me() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _lock_of(path: Path) -> Path:
    place = real(path)
    return place.with_name(hidden_name(place, LOCK))


@contextmanager
def _locked(lock: Path, path: Path, *, wait_s: float) -> Iterator[bool]:
    """Hold a lock; whether the file system keeps it from others."""
    until = time.monotonic() + max(wait_s, _SHORTEST_WAIT_S)
    while (descriptor := _try(lock)) is None:
        if time.monotonic() >= until:
            msg = f"Another process is writing to {path}; wait until it is done, or choose another path."
            raise BlockingIOError(msg)
        time.sleep(_PAUSE_S)
    try:
        yield descriptor >= 0
    finally:
        _release(lock, descriptor)


if sys.platform == "win32":

    def _try(lock: Path) -> int | None:
        """Lock without waiting; None where another has it."""
        import msvcrt

        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT)
        except PermissionError:  # about to be deleted by who had it
            return None
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _release(lock: Path, descriptor: int) -> None:
        os.close(descriptor)
        try:
            lock.unlink(missing_ok=True)
        except PermissionError:  # another has it by now
            return

else:

    def _try(lock: Path) -> int | None:
        """Lock without waiting; None where another has it, -1 where the file system has no locks."""
        import fcntl

        while True:
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except PermissionError:
                if not lock.exists():
                    raise
                return _try_read_only(lock)  # of another user, who holds it or died with it
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except OSError:
                os.close(descriptor)
                return -1
            if _is_at(lock, descriptor):
                return descriptor
            os.close(descriptor)  # who had it deleted it meanwhile

    def _try_read_only(lock: Path) -> int | None:
        import fcntl

        try:
            descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return -1
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            return -1
        return descriptor

    def _is_at(lock: Path, descriptor: int) -> bool:
        try:
            return os.path.samestat(lock.stat(), os.fstat(descriptor))
        except FileNotFoundError:
            return False

    def _release(lock: Path, descriptor: int) -> None:
        if descriptor < 0:
            return
        try:
            lock.unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone
        except OSError:  # of another user, in a folder where only owners delete
            pass
        finally:
            os.close(descriptor)
