"""Which column of a table a gene is: by its name, or by the other naming that a column of ``var`` holds."""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from agl_sc._sdata.table import near_matches

if TYPE_CHECKING:
    from anndata import AnnData

    from agl_sc.core.arrays import BoolArray, IntArray

NAMINGS = frozenset({
    "accession", "ensembl", "ensemblgeneid", "ensemblid", "ensemblids", "ensg", "externalgenename", "featureid", "featureids",
    "featurename", "featurenames", "gene", "geneid", "geneids", "genename", "genenames", "genes", "geneshortname", "genesymbol",
    "genesymbols", "hgncsymbol", "mgisymbol", "symbol", "symbols",
})  # fmt: skip
"""Columns of ``var`` that name genes, in lower case and without punctuation: ``gene_ids``, ``gene_symbols``, ``feature_name``."""

_ENSEMBL = re.compile(r"^(ENS[A-Z]*G\d{6,})\.\d+$")
_SHOWN = 3

logger = logging.getLogger(__name__)


def find_genes(table: "AnnData", names: Iterable[str], *, quiet: bool = False) -> "IntArray":
    """Column of every gene in the table, -1 where it is not there, (n_names,).

    ``var_names`` win, then they win without the versions of Ensembl ids (``.12``), then columns of ``var`` that name genes.

    Parameters
    ----------
    table
        The table; its ``var_names`` are unique.
    names
        Symbols or Ensembl ids.
    quiet
        Do not say which were found by something else than ``var_names``.

    Raises
    ------
    ValueError
        Two namings give one of the names to different genes, or one naming gives it to several.
    """
    wanted = [str(name) for name in names]
    found: IntArray = table.var_names.get_indexer(pd.Index(wanted, dtype=object)).astype(np.int64)
    namings = list(_namings(table, wanted))
    by: dict[str, list[int]] = {}
    for number, name in enumerate(wanted):
        hits = [naming for naming in namings if unversioned(name) in naming.where]
        if found[number] < 0 and hits:
            found[number] = _only(table, name, hits[0])
            by.setdefault(hits[0].label, []).append(number)
        for naming in hits:
            _check_agreement(table, name, int(found[number]), naming=naming)
    for label, numbers in {} if quiet else by.items():
        _tell(table, label, [(wanted[number], int(found[number])) for number in numbers])
    return found


def own_names(table: "AnnData", names: Iterable[str]) -> list[str]:
    """The table's own names of genes, all of which are there."""
    return [str(name) for name in table.var_names[find_genes(table, names, quiet=True)]]


def near_genes(table: "AnnData", missing: Sequence[str]) -> str:
    """As :func:`near_matches`, among all names that the genes of a table have."""
    known = [*map(str, table.var_names)]
    for column in _columns(table):
        known += table.var[column].dropna().astype(str).tolist()
    return near_matches(missing, known)


@dataclass(frozen=True, slots=True, eq=False)
class _Naming:
    """Names of the genes of a table, beside ``var_names``."""

    label: str
    """What a message calls it."""
    where: dict[str, list[int]]
    """Columns of the table with a name, of the names without versions that are asked for."""
    mend: str
    """What to do about a name that it gives to the wrong gene."""


def unversioned(name: str) -> str:
    """An Ensembl id without its version, another name as it is."""
    match = _ENSEMBL.match(name)
    return match[1] if match else name


def _columns(table: "AnnData") -> list[str]:
    """Columns of ``var`` that name genes."""
    named = [name for name in table.var.columns if re.sub(r"[^a-z]", "", str(name).lower()) in NAMINGS]
    return [name for name in named if not pd.api.types.is_numeric_dtype(table.var[name])]


def _namings(table: "AnnData", wanted: Sequence[str]) -> Iterator[_Naming]:
    """What knows any of the names, beside ``var_names`` as they are."""
    asked = {unversioned(name) for name in wanted} - {""}
    own = _where(table.var_names, asked)
    versioned = any(unversioned(name) != name for name in (*wanted, *map(str, table.var_names)))
    if versioned and own:
        yield _Naming("var_names without versions", own, "name it with its version")
    for column in _columns(table):
        where = _where(table.var[column].astype(object).dropna(), asked, within=table.var[column].notna().to_numpy())
        if where:
            yield _Naming(f'var["{column}"]', where, f"fix or drop that column: del table.var[{column!r}]")


def _where(names: Iterable[object], asked: set[str], *, within: "BoolArray | None" = None) -> dict[str, list[int]]:
    """Columns of the table with a name, of those asked for; ``names`` are of the genes ``within``, all by default."""
    found: dict[str, list[int]] = {}
    listed = list(names)
    numbers = range(len(listed)) if within is None else np.flatnonzero(within).tolist()
    for number, name in zip(numbers, map(str, listed), strict=True):
        plain = unversioned(name)
        if plain in asked:
            found.setdefault(plain, []).append(number)
    return found


def _only(table: "AnnData", name: str, naming: _Naming) -> int:
    """The one gene of a name."""
    genes = naming.where[unversioned(name)]
    if len(genes) > 1:
        listed = ", ".join(map(repr, table.var_names[genes[:_SHOWN]]))
        msg = f"{len(genes)} genes of the table are called {name!r} by {naming.label} ({listed}); name the one that is meant as var_names do."
        raise ValueError(msg)
    return genes[0]


def _check_agreement(table: "AnnData", name: str, found: int, *, naming: _Naming) -> None:
    """Refuse a name that a naming gives to other genes than the one that was found."""
    genes = naming.where[unversioned(name)]
    if found not in genes:
        own, other = (str(table.var_names[number]) for number in (found, genes[0]))
        what = "a gene of its own by var_names" if own == name else f"{own!r} by another naming"
        msg = f"{name!r} is {what} and {other!r} by {naming.label}; {naming.mend}."
        raise ValueError(msg)


def _tell(table: "AnnData", label: str, pairs: list[tuple[str, int]]) -> None:
    """Say by what genes were found."""
    shown = ", ".join(f"{name} is {table.var_names[column]}" for name, column in pairs[:_SHOWN])
    logger.info("%d genes were found by %s (%s).", len(pairs), label, shown)
