"""Names in a report are shown as they are spelt, and break no table."""

import pytest

from agl_sc.tl._benchmark.report import _table, literal


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
