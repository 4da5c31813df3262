"""Output paths are refused before any work, not after it, and get all of a result or nothing."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_parent(path: str | Path) -> Path:
    """Absolute ``path``, whose folder exists and can be written to.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    PermissionError
        The folder cannot be written to.
    """
    path = Path(path).absolute()
    parent = path.parent
    if not parent.is_dir():
        msg = f"The folder {parent} does not exist; make it, or choose another path."
        raise FileNotFoundError(msg)
    try:
        tempfile.TemporaryFile(dir=parent).close()  # permissions alone do not tell: read-only mounts, root
    except OSError as error:
        msg = f"The folder {parent} cannot be written to ({error.strerror}); choose another path."
        raise PermissionError(msg) from error
    return path


def check_folder(path: str | Path) -> Path:
    """Absolute ``path`` of a folder that exists or can be made.

    Raises
    ------
    FileExistsError
        It is a file.
    """
    folder = check_parent(path)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file, not a folder; choose another path."
        raise FileExistsError(msg)
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to, which becomes ``path`` in one move; on an error ``path`` stays as it was."""
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    fresh, older = staged / "fresh", staged / "older"
    try:
        yield fresh
        if path.exists():
            path.rename(older)
        fresh.rename(path)
    finally:
        if older.exists() and not path.exists():
            older.rename(path)
        shutil.rmtree(staged, ignore_errors=True)
