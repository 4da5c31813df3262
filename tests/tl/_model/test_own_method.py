"""Weightings of the user's own in ``train``: those of the documentation, word for word, and what is refused."""

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import agl_sc
from agl_sc import tl
from agl_sc.core.weighting import METHODS
from agl_sc.model import Model

PAGE = Path(__file__).parents[3] / "docs" / "method.md"


def code_of(heading: str) -> list[str]:
    """Python of a section of the page."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## )", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None
    return re.findall(r"^```python\n(.*?)^```$", section[1], re.M | re.S)


def test_weightings_of_the_documentation(prepared: SpatialData, config: tl.TrainConfig, tmp_path: Path) -> None:
    """Run as they stand, but for the settings, which the small tissue needs."""
    models: list[Model] = []

    def train(sdata: SpatialData, **options: Any) -> Model:
        models.append(tl.train(sdata, config=config, **options))
        return models[-1]

    quick = SimpleNamespace(
        tl=SimpleNamespace(train=train, Weighting=tl.Weighting, MethodSpec=tl.MethodSpec), Model=agl_sc.Model
    )
    first, second = code_of("A weighting of your own")
    names: dict[str, Any] = {"sdata": prepared, "__name__": "page"}
    for code in (first, second):
        names["agl"] = quick
        exec(code.replace("import agl_sc as agl\n", ""), names)
    assert [model.method for model in models] == ["EasyGenes", "easy_genes_narrow", "harmonic"]
    easy, narrow, harmonic = models
    n_targets, n_auxiliary = easy.n_targets, len(easy.genes) - easy.n_targets
    for model in (easy, narrow):
        assert (model.weights[:n_targets] == 1).all()
        assert 0 < model.weights[n_targets:].min() < model.weights[n_targets:].max() <= 1
        assert model.selected.all()
    np.testing.assert_allclose(harmonic.weights[n_targets:], 1 / np.arange(1, n_auxiliary + 1))
    assert harmonic.selected.sum() == n_targets + 2, "1 and 1/2 are at least 1/2"
    assert easy.cutoff is None
    assert easy.search is None
    easy.save(tmp_path / "model")
    again = agl_sc.Model.load(tmp_path / "model")
    assert again.method == again.card["params"]["method"] == "EasyGenes"
    np.testing.assert_array_equal(again.weights, easy.weights)


@pytest.mark.parametrize("method", ["pgl", "agl", "dkgsb", "fixed_k"])
def test_a_row_is_taken_as_its_name_is(prepared: SpatialData, config: tl.TrainConfig, method: Any) -> None:
    by_name = tl.train(prepared, method=method, config=config)
    by_row = tl.train(prepared, method=METHODS[method], config=config)
    assert by_row.card["params"] == by_name.card["params"]
    assert all(np.array_equal(by_row.tensors[name], by_name.tensors[name]) for name in by_name.tensors)
    assert by_row.cutoff == by_name.cutoff


def test_a_method_that_is_none_is_refused_before_anything_is_written(prepared: SpatialData) -> None:
    slots = {*prepared["table"].obs, *prepared["table"].var, *prepared["table"].uns["agl"]}
    refused: list[tuple[Any, type[Exception], str]] = [
        ("dgksb", ValueError, "method='dgksb' is not one of 'pgl'"),
        (tl.Weighting(1, 2), TypeError, "is made already"),
        (partial(tl.Weighting, 1), TypeError, "cannot be called with the number of targets"),
        (tl.MethodSpec("dkgsb", "mine"), ValueError, "is called 'dkgsb' as one of the package's own is"),
    ]
    for method, error, message in refused:
        with pytest.raises(error, match=message):
            tl.train(prepared, method=method)
    assert {*prepared["table"].obs, *prepared["table"].var, *prepared["table"].uns["agl"]} == slots
