"""Genes of a model are found in a table that names them otherwise; those that it lacks are told, or refused."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

from agl_sc.model import Model
from agl_sc.tl import TrainConfig, evaluate, predict, train

Trained = tuple[SpatialData, Model]


def ids(sdata: SpatialData, version: str = "") -> list[str]:
    """An Ensembl id for every gene, from its number."""
    return [f"ENSG0000000{name.removeprefix('G')}{version}" for name in sdata["table"].var_names]


def renamed(sdata: SpatialData, column: str | None, *, version: str = "") -> None:
    """Name genes by Ensembl ids, and keep the symbols in a column."""
    table = sdata["table"]
    symbols = list(table.var_names)
    table.var_names = ids(sdata, version)
    if column is not None:
        table.var[column] = symbols


@pytest.mark.parametrize("column", ["gene_symbols", "feature_name", "symbol", "gene_name"])
@pytest.mark.parametrize("version", ["", ".12"])
def test_predictions_are_written_to_the_genes_found(
    *, trained: Trained, column: str, version: str, caplog: pytest.LogCaptureFixture
) -> None:
    sdata, model = trained
    expected = sdata["table"].layers["agl"].copy()
    renamed(sdata, column, version=version)
    with caplog.at_level(logging.INFO):
        predict(sdata, model)
    np.testing.assert_array_equal(sdata["table"].layers["agl"], expected)
    told = [text for text in caplog.messages if "were found by" in text]
    assert len(told) == 1
    assert told[0].startswith(f'{model.n_predicted} genes were found by var["{column}"] ({model.genes[0]} is ENSG')
    assert len(evaluate(sdata, metrics=["mse"])) == model.n_targets


@pytest.mark.parametrize("versions", [(".3", ".12"), ("", ".12"), (".3", "")], ids=["other", "none before", "none now"])
def test_a_model_of_ids_predicts_a_table_of_symbols_and_of_other_versions(
    *, prepared: SpatialData, config: TrainConfig, versions: tuple[str, str]
) -> None:
    symbols = list(prepared["table"].var_names)
    renamed(prepared, None, version=versions[0])
    model = train(prepared, method="pgl", config=config)
    expected = prepared["table"].layers["agl"].copy()
    table = prepared["table"]
    table.var["gene_ids"] = ids_of = [name.partition(".")[0] + versions[1] for name in table.var_names]
    table.var_names = symbols
    predict(prepared, model)
    np.testing.assert_array_equal(table.layers["agl"], expected)
    table.var_names, table.var["gene_ids"] = ids_of, "none"
    predict(prepared, model)
    np.testing.assert_array_equal(table.layers["agl"], expected)


def claimed_twice(sdata: SpatialData, model: Model) -> None:
    renamed(sdata, "symbol")
    sdata["table"].var["gene_name"] = list(np.roll(sdata["table"].var["symbol"].to_numpy(), 1))


def named_twice(sdata: SpatialData, model: Model) -> None:
    renamed(sdata, "symbol")
    sdata["table"].var["symbol"] = model.targets[0]


def swapped(sdata: SpatialData, model: Model) -> None:
    sdata["table"].var["symbol"] = list(sdata["table"].var_names[::-1])


def all_but(n_kept: int) -> Callable[[SpatialData, Model], None]:
    def drop(sdata: SpatialData, model: Model) -> None:
        lost = model.targets[n_kept:]
        sdata.tables["table"] = sdata["table"][:, ~sdata["table"].var_names.isin(lost)].copy()

    return drop


BAD = [
    pytest.param(claimed_twice, r"'G\d+' is 'ENSG\d+' by another naming and 'ENSG\d+' by var\[\"gene_name\"\]; fix or drop", id="two columns"),
    pytest.param(named_twice, r"24 genes of the table are called 'G\d+' by var\[\"symbol\"\]", id="one column"),
    pytest.param(swapped, r"'G\d+' is a gene of its own by var_names and 'G\d+' by var\[\"symbol\"\]", id="names and a column"),
    pytest.param(all_but(1), r"lacks 3 of the model's 4 target genes \(G\d+, G\d+, G\d+\), more than 50%.*; name its genes as in training", id="most missing"),
    pytest.param(all_but(0), "none of the model's 4 target genes", id="all missing"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_refusals(
    *, trained: Trained, unchanged: Any, spoil: Callable[[SpatialData, Model], None], message: str
) -> None:
    sdata, model = trained
    spoil(sdata, model)
    with unchanged(sdata), pytest.raises(ValueError, match=message):
        predict(sdata, model)


def test_what_is_missing_is_one_sentence_with_counts(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    sdata, model = trained
    selected = [name for name in model.predicted_genes if name not in model.targets]
    assert len(selected) > 6
    lost = [*model.targets[:2], *selected[:4]]
    sdata.tables["table"] = sdata["table"][:, ~sdata["table"].var_names.isin(lost)].copy()
    with caplog.at_level(logging.WARNING):
        predict(sdata, model)
    told = [text for text in caplog.messages if "not in the table" in text]
    assert told == [
        f"2 of 4 target genes and 4 of {len(selected)} selected auxiliary genes are not in the table "
        f"(e.g. {', '.join(lost[:5])}, ...) and are not written."
    ]


def test_auxiliary_genes_that_are_missing_are_told(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    sdata, model = trained
    (lost, *rest) = [name for name in model.predicted_genes if name not in model.targets]
    sdata.tables["table"] = sdata["table"][:, sdata["table"].var_names != lost].copy()
    with caplog.at_level(logging.WARNING):
        predict(sdata, model)
    assert (
        f"1 of {len(rest) + 1} selected auxiliary genes are not in the table (e.g. {lost}) and are not written."
        in caplog.messages
    )


def test_two_genes_of_a_model_that_are_one_in_the_table(prepared: SpatialData, config: TrainConfig) -> None:
    table = prepared["table"]
    names = ids(prepared)
    table.var_names = [f"{names[0]}.1", f"{names[0]}.2", *names[2:]]
    model = train(prepared, method="agl", config=config)
    table.var_names = names
    table.var["gene_name"] = [*"abcdefghijklmnopqrstuvwx"]
    with pytest.raises(
        ValueError, match=r"'ENSG\S+\.[12]' and 'ENSG\S+\.[12]' of the model are both 'ENSG\S+' in the table"
    ):
        predict(prepared, model)
