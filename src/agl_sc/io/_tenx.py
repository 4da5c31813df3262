"""Count matrices as 10x Genomics writes them: one HDF5 file, or a folder with a Matrix Market file and two lists."""

import gzip
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from scipy.io import mmread
from scipy.sparse import csr_matrix

from agl_sc.io._layout import refuse_duplicates
from agl_sc.io._readable import check_sparse, readable

logger = logging.getLogger(__name__)

_GENES = "Gene Expression"
_KIND = " as counts of Space Ranger"
_DATASETS = ("data", "indices", "indptr", "shape", "barcodes", "features/id", "features/name")
_MATRIX = re.compile(r"matrix\.mtx(?:\.gz)?$")
_LISTS = {"matrix": ("matrix.mtx",), "features": ("features.tsv", "genes.tsv"), "barcodes": ("barcodes.tsv",)}


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """Counts of genes, features of other kinds left out."""

    path: Path
    """Where they are from."""
    matrix: csr_matrix
    """(n_barcodes, n_genes)."""
    barcodes: list[str]
    """Rows, unique."""
    gene_ids: list[str]
    """Columns."""
    symbols: list[str]
    """Symbols of the genes, which may repeat; a gene without one has its id."""


def read_counts(path: Path) -> Counts:
    """Read counts of genes.

    Parameters
    ----------
    path
        HDF5 file, or folder with ``matrix.mtx``, ``features.tsv`` and ``barcodes.tsv``, each plain or with ``.gz``; or that
        matrix, with something in front of its name that the names of the others have too.

    Raises
    ------
    FileNotFoundError
        The folder lacks one of its files.
    KeyError
        The file lacks an entry.
    ValueError
        A file is damaged; barcodes repeat; nothing is of the type "Gene Expression", or probes were counted.
    """
    folder, prefix = (path.parent, _MATRIX.sub("", path.name)) if _MATRIX.search(path.name) else (path, "")
    matrix, barcodes, features = _read_folder(folder, prefix) if folder.is_dir() else _read_h5(path)
    refuse_duplicates(barcodes, f"barcodes of '{path}'")
    ids, symbols, kinds = features
    is_gene = np.array([kind == _GENES for kind in kinds], dtype=bool)
    if not is_gene.any():
        there = ", ".join(sorted(set(kinds))) or "nothing"
        msg = f"'{path}' has no features of the type {_GENES!r} (it has {there}); give the counts of genes."
        raise ValueError(msg)
    if not is_gene.all():
        others = Counter(kind for kind in kinds if kind != _GENES)
        listed = ", ".join(f"{n} of {kind or 'no type'}" for kind, n in others.items())
        logger.info("'%s': left out %d features that are no genes (%s)", path, (~is_gene).sum(), listed)
        matrix = matrix[:, is_gene]
    matrix.sum_duplicates()
    genes = np.flatnonzero(is_gene)
    return Counts(path, matrix, barcodes, [ids[i] for i in genes], [symbols[i] or ids[i] for i in genes])


Features = tuple[list[str], list[str], list[str]]
"""Ids, names and types."""


def _read_h5(path: Path) -> tuple[csr_matrix, list[str], Features]:
    with readable(path, kind=_KIND), h5py.File(path) as file:
        missing = [name for name in _DATASETS if f"matrix/{name}" not in file]
        has_probes = not missing and "gene_id" in file["matrix/features"]
        there = ", ".join(map(repr, file)) or "nothing"
        parts: dict[str, Any] = {} if missing else {name: file["matrix"][name] for name in _DATASETS}
        barcodes, ids, names = (parts[name].asstr()[:].tolist() if parts else [] for name in _DATASETS[-3:])
        arrays = [parts[name][:] for name in _DATASETS[:4]] if parts else []
        has_types = not missing and "feature_type" in file["matrix/features"]
        kinds = file["matrix/features/feature_type"].asstr()[:].tolist() if has_types else [_GENES] * len(ids)
    if missing:
        msg = f"'{path}' has no 'matrix/{missing[0]}' (it has {there}); give the filtered_feature_bc_matrix.h5 of Space Ranger with counts_file=."
        raise KeyError(msg)
    if has_probes:
        msg = f"'{path}' counts probes, not genes; give the filtered_feature_bc_matrix.h5 of the same folder with counts_file=."
        raise ValueError(msg)
    with readable(path, kind=_KIND):
        matrix = _matrix(arrays, n_features=[len(ids), len(names), len(kinds)], n_barcodes=len(barcodes))
    return matrix, barcodes, (ids, names, kinds)


def _matrix(arrays: Sequence[NDArray[Any]], *, n_features: list[int], n_barcodes: int) -> csr_matrix:
    """Barcodes in rows; every number of the file is looked at before anything is computed with it."""
    data, indices, indptr, shape = arrays
    if data.dtype.kind not in "iuf" or indices.dtype.kind not in "iu" or indptr.dtype.kind not in "iu":
        msg = f"its numbers are of {data.dtype}, {indices.dtype} and {indptr.dtype}"
        raise ValueError(msg)
    if {*n_features} != {int(shape[0])} or n_barcodes != int(shape[1]):
        msg = f"its shape is {shape.tolist()}, with {n_features[0]} features and {n_barcodes} barcodes"
        raise ValueError(msg)
    matrix = csr_matrix((data, indices, indptr), shape=(n_barcodes, n_features[0]))
    check_sparse(matrix)
    return matrix


def _read_folder(folder: Path, prefix: str) -> tuple[csr_matrix, list[str], Features]:
    files = {}
    for part, stems in _LISTS.items():
        there = [
            file
            for name in stems
            for file in (folder / f"{prefix}{name}.gz", folder / f"{prefix}{name}")
            if file.is_file()
        ]
        if not there:
            msg = f"'{folder}' has no {prefix}{stems[0]}.gz; give the folder that Space Ranger wrote, or its .h5 file, with counts_file=."
            raise FileNotFoundError(msg)
        files[part] = there[0]
    with readable(files["matrix"], kind=_KIND):
        matrix = csr_matrix(mmread(files["matrix"], spmatrix=False)).T.tocsr()
    barcodes = [cells[0] for cells in _cells(files["barcodes"])]
    features = _cells(files["features"])
    if matrix.shape != (len(barcodes), len(features)):
        msg = (
            f"'{files['matrix']}' has {matrix.shape[1]} features and {matrix.shape[0]} barcodes, but '{folder}' lists "
            f"{len(features)} and {len(barcodes)}; are the files complete, and of one run?"
        )
        raise ValueError(msg)
    padded = [(cells + [cells[0], _GENES][len(cells) - 1 :])[:3] if len(cells) < 3 else cells[:3] for cells in features]
    ids, names, kinds = ([cells[i] for cells in padded] for i in range(3))
    return matrix, barcodes, (ids, names, kinds)


def _cells(path: Path) -> list[list[str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with readable(path, kind=" as a list"), opener(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\r\n").split("\t") for line in file if line.strip()]
