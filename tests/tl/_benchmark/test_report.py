"""Names in a report are shown as they are spelt, and break no table."""

import pandas as pd
import pytest

from agl_sc.tl._benchmark.report import _table, literal, of_depth


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("|a|", r"\|a\|"),
        ("*b*", r"\*b\*"),
        ("a\nb", "a b"),
        ("a\\b", r"a\\b"),
        ("`x`", r"\`x\`"),
        ("<b>", r"\<b>"),
        ("pca_ridge", "pca_ridge"),
        ("=cmd()", "=cmd()"),
    ],
)
def test_markup_is_escaped(name: str, written: str) -> None:
    assert literal(name) == written


def test_a_table_keeps_its_cells() -> None:
    lines = _table(["gene", "value"], [["a|b\nc", "1"]]).splitlines()
    assert lines == ["| gene | value |", "| --- | --- |", r"| a\|b c | 1 |"]


@pytest.mark.parametrize(
    ("method", "metric", "said"),
    [
        ("ridge", "pearson", []),
        ("depth", "pearson", ["it is no competitor"]),
        ("ridge", "pearson_beyond_depth", ["the partial Pearson correlation"]),
    ],
)
def test_what_depth_means_is_said_where_it_stands_in_a_table(method: str, metric: str, said: list[str]) -> None:
    found = list(of_depth(pd.DataFrame({"method": [method], "metric": [metric]})))
    assert len(found) == len(said)
    assert all(words in text for words, text in zip(said, found, strict=True))
