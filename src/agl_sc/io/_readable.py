"""What other libraries say of a damaged file, as one sentence that names it; and what does not fit into memory."""

import csv
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from scipy.sparse import csc_matrix, csr_matrix

from agl_sc.core.numerics.memory import memory

# What csv, h5py, zarr, tifffile, imagecodecs, Pillow, pandas and json raise for a damaged file; never MemoryError.
_DAMAGE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SyntaxError),
    *(ArithmeticError, AssertionError, csv.Error, struct.error, zlib.error, tifffile.TiffFileError),
)
COMPLETE = "is the file complete?"


@contextmanager
def readable(path: Path, *, kind: str = "", mend: str = COMPLETE) -> Iterator[None]:
    """Turn what a library says of a damaged file into one sentence.

    Parameters
    ----------
    path
        The file.
    kind
        What it should be, such as ``" as an image"``.
    mend
        What to do about it.

    Raises
    ------
    ValueError
        The file cannot be read.
    """
    try:
        yield
    except Exception as error:
        # anndata has an error of its own for parts that it does not know, in a module that is private.
        if not isinstance(error, _DAMAGE) and not type(error).__module__.startswith("anndata."):
            raise
        said = " ".join(str(error).split()) or type(error).__name__
        msg = f"'{path}' cannot be read{kind} ({said}); {mend}"
        raise ValueError(msg) from error


def refuse_turned(path: Path, orientation: object, *, as_stored: str) -> None:
    """Refuse an image whose metadata ask viewers to turn or mirror it: nothing says in which of the two positions are counted.

    Parameters
    ----------
    path
        The file.
    orientation
        As EXIF and TIFF number it; 1 is as stored, 0 and None say nothing.
    as_stored
        Code that takes the mark away and leaves pixels as they are.
    """
    if orientation in {None, 0, 1}:
        return
    msg = (
        f"'{path}' is marked to be shown turned or mirrored (orientation {orientation}), and nothing says whether positions count its pixels as shown or "
        f"as stored; save it as shown, PIL.ImageOps.exif_transpose(PIL.Image.open(path)).save('shown.png'), or as stored, {as_stored}."
    )
    raise ValueError(msg)


def refuse_beyond_memory(path: Path, needed: int, *, what: str, mend: str) -> None:
    """Refuse to decode what needs more bytes than there are.

    Parameters
    ----------
    path
        The file.
    needed
        Bytes that decoding takes.
    what
        What is decoded, in words.
    mend
        What to do about it.
    """
    available = memory().available
    if needed > available:
        msg = f"Decoding {what} of '{path}' takes {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available; {mend}."
        raise ValueError(msg)


def check_sparse(matrix: csr_matrix | csc_matrix) -> None:
    """Refuse a compressed matrix, as read from a file, whose pointers lead outside it; computing with it could end Python."""
    indptr, indices = np.asarray(matrix.indptr, dtype=np.int64), np.asarray(matrix.indices)
    n_minor = matrix.shape[1 if matrix.format == "csr" else 0]
    is_whole = indptr[0] == 0 and indptr[-1] == len(indices) == len(matrix.data) and (np.diff(indptr) >= 0).all()
    if not is_whole or (indices < 0).any() or (indices >= n_minor).any():
        msg = "its sparse matrix points outside itself"
        raise ValueError(msg)
