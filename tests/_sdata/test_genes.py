"""A gene is found by either of its names, and by nothing that two columns claim differently."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_sc._sdata.genes import find_genes, near_genes, own_names

SYMBOLS = ["TP53", "ERBB2", "ACTB", "KRT8"]
IDS = [f"ENSG0000014151{number}" for number in range(4)]
COLUMNS = ["gene_ids", "gene_symbols", "symbol", "feature_name", "gene_name", "SYMBOL", "Ensembl.ID", "gene_ids-0", "gene_short_name"]  # fmt: skip

VERSIONS = st.lists(st.integers(0, 30), min_size=4, max_size=4)


def table(names: list[str], **columns: Any) -> AnnData:
    return AnnData(var=pd.DataFrame(columns, index=pd.Index(names)))


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("kind", ["object", "category", "string"])
@pytest.mark.parametrize(("own", "other"), [(SYMBOLS, IDS), (IDS, SYMBOLS)], ids=["symbols", "ids"])
def test_genes_are_found_by_the_other_naming(
    *, own: list[str], other: list[str], column: str, kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = table(own, **{column: pd.Series(other, index=own).astype(kind)})
    with caplog.at_level(logging.INFO):
        assert find_genes(found, [other[2], "none", own[0]]).tolist() == [2, -1, 0]
    assert caplog.messages == [f'1 genes were found by var["{column}"] ({other[2]} is {own[2]}).']
    assert own_names(found, [other[3]]) == [own[3]]


@pytest.mark.parametrize("column", ["chromosome", "n_cells", "highly_variable", "feature_types"])
def test_other_columns_name_no_genes(column: str) -> None:
    assert find_genes(table(SYMBOLS, **{column: IDS}), IDS).tolist() == [-1] * 4


@settings(max_examples=100, deadline=None)
@given(theirs=VERSIONS, asked=VERSIONS, order=st.permutations(range(4)), in_column=st.booleans())
def test_versions_of_ensembl_ids_do_not_matter(
    *, theirs: list[int], asked: list[int], order: list[int], in_column: bool
) -> None:
    versioned = [f"{name}.{number}" if number else name for name, number in zip(IDS, theirs, strict=True)]
    found = table(SYMBOLS, gene_ids=versioned) if in_column else table(versioned)
    wanted = [f"{IDS[i]}.{asked[i]}" if asked[i] else IDS[i] for i in order]
    assert find_genes(found, wanted).tolist() == list(order)


@pytest.mark.parametrize("suffixed", ["TP53.1", "ENSG00000141510.15_PAR_Y", "ENST00000141510.2", "AC1234.5"])
def test_other_suffixes_are_names_of_their_own(suffixed: str) -> None:
    assert find_genes(table([suffixed]), [suffixed.partition(".")[0]]).tolist() == [-1]
    assert find_genes(table([suffixed.partition(".")[0]]), [suffixed]).tolist() == [-1]


def test_var_names_win_where_a_column_agrees_or_is_silent() -> None:
    made_unique = table(["TP53", "TP53-1", "ACTB"], gene_symbols=["TP53", "TP53", None])
    assert find_genes(made_unique, ["TP53", "TP53-1", "ACTB"]).tolist() == [0, 1, 2]


CLAIMS = [
    pytest.param(table(["A", "B"], symbol=["C", "A"]), "A", r"'A' is a gene of its own by var_names and 'B' by var\[\"symbol\"\]; fix or drop that column: del table.var\['symbol'\]", id="names and a column"),
    pytest.param(table(["g0", "g1"], symbol=["A", "B"], gene_name=["B", "A"]), "A", r"'A' is 'g0' by another naming and 'g1' by var\[\"gene_name\"\]", id="two columns"),
    pytest.param(table(["g0", "g1"], symbol=["A", "A"]), "A", r"2 genes of the table are called 'A' by var\[\"symbol\"\] \('g0', 'g1'\); name the one that is meant", id="one column twice"),
    pytest.param(table([f"{IDS[0]}.1", f"{IDS[0]}.2"]), IDS[0], "2 genes of the table are called 'ENSG.*' by var_names without versions", id="two versions"),
]  # fmt: skip


@pytest.mark.parametrize(("claimed", "name", "message"), CLAIMS)
def test_a_name_of_several_genes_is_refused(claimed: AnnData, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_genes(claimed, [name])


def test_missing_names_are_no_name() -> None:
    gaps = table(["g0", "g1", "g2"], symbol=["A", None, ""], gene_id=[np.nan, "nan", "B"])
    assert find_genes(gaps, ["", "A", "B"]).tolist() == [-1, 0, 2]
    assert find_genes(gaps, []).tolist() == []


def test_near_matches_are_of_all_names() -> None:
    assert near_genes(table(IDS, symbol=SYMBOLS), ["ERBB3"]) == "; did you mean ERBB2"
