"""Output paths are refused before any work, not after it, and get all of a result or nothing.

Everything that is written goes through :func:`replacing`, or, where several belong together, :func:`replacing_all`;
:func:`agl_sc.core.writing.claims.claimed` keeps others away for as long as the work before it takes.
"""

import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from agl_sc.core.arguments import from_home
from agl_sc.core.writing.claims import claimed, real
from agl_sc.core.writing.staging import staged

T = TypeVar("T")
_LONGEST_RUN_S = 7 * 24 * 3600.0


def check_parent(path: str | Path) -> Path:
    """Absolute ``path``, whose folder exists and can be written to; where it is a link, that of what it points to.

    Raises
    ------
    FileNotFoundError
        The folder does not exist.
    PermissionError
        The folder cannot be written to.
    """
    if not isinstance(path, str | Path):
        msg = f"{path!r} is a {type(path).__name__}, not a path; pass a string or a pathlib.Path."
        raise TypeError(msg)
    path = from_home(Path(path)).absolute()
    parent = real(path).parent if path.is_symlink() else path.parent
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
    """A place beside ``path`` to write to, which becomes ``path`` in one step; on an error ``path`` stays as it was."""
    with staged([path]) as (fresh,):
        yield fresh


def holding(folder: Path | None) -> AbstractContextManager[None]:
    """Keep other processes from a folder that this one continues in; nothing to hold where there is none."""
    return nullcontext() if folder is None else claimed(folder)


replacing_all = staged
"""The same for several paths, which all change or none."""


def one_at_a_time(todo: Iterable[tuple[T, Path | None]]) -> Generator[tuple[T, Path | None], None, None]:
    """Pieces of work with the file that each ends in, held by this process while it is at them.

    Pieces that another process is at come last, when that is done with them: look whether the file is there by then.
    """
    later = []
    for work, path in todo:
        if path is None or path.exists():
            yield work, path
            continue
        try:
            with claimed(path):
                yield work, path
        except BlockingIOError:
            later.append((work, path))
    for work, path in later:
        with claimed(path, wait_s=_LONGEST_RUN_S):
            yield work, path
