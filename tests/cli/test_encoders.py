"""The list of encoders."""

import json
from collections.abc import Callable

from typer.testing import Result

from agl_sc import pp


def test_all_encoders_are_listed(run: Callable[..., Result]) -> None:
    text, printed = run("encoders").stdout, json.loads(run("encoders", "--json").stdout)
    table = pp.encoders()
    assert [row["name"] for row in printed["encoders"]] == list(table.index)
    assert all(f"\n{name} " in text for name in table.index)
    assert printed["offline"] == "efficientnet_lite0"
    assert "windows of patch tokens" in text
    assert "passes over the tissue once" in text
