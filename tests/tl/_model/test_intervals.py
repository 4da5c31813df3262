"""Intervals around predictions: what is promised, what is refused with the reason, and how they are written."""

import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spatialdata import SpatialData
from tests.conftest import duplicate

from agl_sc import datasets, pp, tl
from agl_sc._sdata.interval import IntervalRecord
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import remembered
from agl_sc.core.evaluation.intervals import LEVELS
from agl_sc.model import Model
from agl_sc.tl import TrainConfig

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
TILES: dict[str, Any] = {"tile_px": 32, "mpp": 1.0, "context": (), "orientations": 1, "stages": False}


@pytest.fixture(scope="module")
def _of_one_patient(config: TrainConfig) -> tuple[SpatialData, Model]:
    """Six sections of one patient, the last two to be predicted."""
    sdata = datasets.toy_tissue(n_sections=6, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20)
    sdata["table"].obs["patient"] = "p"
    pp.embed(sdata, **TILES)
    pp.split(sdata, test=["section_5", "section_6"], validation=["section_4"])
    pp.target_genes(sdata, genes=4)
    pp.rank_auxiliary(sdata, score="truth_prior")
    return sdata, tl.train(sdata, config=config)


@pytest.fixture
def of_one_patient(_of_one_patient: tuple[SpatialData, Model]) -> tuple[SpatialData, Model]:
    return duplicate(_of_one_patient[0]), _of_one_patient[1]


def trusted(model: Model, **changes: Any) -> Model:
    """The model with another entry on intervals."""
    return replace(model, card={**model.card, "intervals": {**model.card["intervals"], **changes}})


def record_of(sdata: SpatialData) -> IntervalRecord:
    found = remembered(sdata["table"], Keys(), IntervalRecord)
    assert found is not None
    return found


def test_a_section_of_the_same_patient_is_covered_but_for_its_level(
    of_one_patient: tuple[SpatialData, Model], caplog: pytest.LogCaptureFixture
) -> None:
    sdata, model = of_one_patient
    with caplog.at_level(logging.INFO):
        tl.predict(sdata, model, interval=0.8)
    assert "Intervals in section_6 hold 80% of its spots but for the level of the section" in caplog.text
    assert 'Wrote layers["agl_lower"] and ["agl_upper"].' in caplog.text
    table = sdata["table"]
    test = table.obs["section"].isin(["section_5", "section_6"]).to_numpy()
    own = table[:, model.predicted_genes]
    lower, middle, upper = (np.asarray(own.layers[name]) for name in ("agl_lower", "agl", "agl_upper"))
    assert np.isnan(lower[~test]).all()
    np.testing.assert_allclose(upper[test] - middle[test], middle[test] - lower[test], rtol=1e-4, atol=1e-5)
    assert (upper[test] > lower[test]).all()
    assert np.isnan(table.layers["agl_lower"][:, ~table.var_names.isin(model.predicted_genes)]).all()
    said = record_of(sdata)
    assert said.level == 0.8
    assert said.covers_level("section_6") is False
    scores = tl.evaluate(sdata, metrics=["pearson", "coverage"])
    assert scores["coverage"].mean() == pytest.approx(0.8, abs=0.1)
    assert scores["coverage"].between(0, 1).all()
    assert table.var["agl_coverage"].notna().sum() == scores["gene"].nunique()
    assert list(tl.evaluate(sdata, metrics=["coverage"])) == ["section", "gene", "n_spots", "coverage"]
    assert list(tl.evaluate(sdata))[-1] == "coverage"


def test_wider_for_more_and_gone_without(of_one_patient: tuple[SpatialData, Model]) -> None:
    sdata, model = of_one_patient
    table, widths = sdata["table"], []
    for level in LEVELS:
        tl.predict(sdata, model, interval=level)
        widths.append(float(np.nanmean(table.layers["agl_upper"] - table.layers["agl_lower"])))
    assert np.all(np.diff(widths) > 0)
    tl.predict(sdata, model)
    assert {"agl_lower", "agl_upper"}.isdisjoint(table.layers)
    assert remembered(table, Keys(), IntervalRecord) is None
    with pytest.raises(ValueError, match=r'metrics="coverage" is that of intervals, and there are none'):
        tl.evaluate(sdata, metrics=["coverage"])


def test_coverage_of_training_is_on_the_card(of_one_patient: tuple[SpatialData, Model], tmp_path: Path) -> None:
    model = of_one_patient[1]
    (entry,) = model.card["intervals"]["patients"]
    assert entry["name"] == "p"
    assert entry["sections"] == [f"section_{number}" for number in range(1, 5)]
    covered = np.array(entry["coverage"])
    assert covered.shape == (4, len(LEVELS))
    np.testing.assert_allclose(covered.mean(axis=0), LEVELS, atol=0.05)
    model.save(tmp_path / "model")
    loaded, sdata = Model.load(tmp_path / "model"), of_one_patient[0]
    tl.predict(sdata, model, interval=0.9)
    upper = sdata["table"].layers["agl_upper"].copy()
    tl.predict(sdata, loaded, interval=0.9)
    np.testing.assert_array_equal(upper, sdata["table"].layers["agl_upper"])


@pytest.mark.parametrize(
    ("patient", "said"),
    [
        pytest.param("q", r"has not seen two sections of patient 'q', the model was trained on two sections or more each of p", id="other"),
        pytest.param(None, r"nobody named its patient, .* or name the patient in obs\['patient'\]", id="unknown"),
    ],
)  # fmt: skip
def test_other_patients_are_refused(
    of_one_patient: tuple[SpatialData, Model], unchanged: Unchanged, *, patient: str | None, said: str
) -> None:
    sdata, model = of_one_patient
    sdata["table"].obs["patient"] = patient
    sdata["table"].obs["patient"] = sdata["table"].obs["patient"].astype(object)
    with (
        unchanged(sdata),
        pytest.raises(ValueError, match=rf"No interval of 90% can be promised. section_5, section_6: .*{said}"),
    ):
        tl.predict(sdata, model, interval=0.9)


def test_one_section_without_a_promise_is_named_and_left_out(
    of_one_patient: tuple[SpatialData, Model], caplog: pytest.LogCaptureFixture
) -> None:
    sdata, model = of_one_patient
    table = sdata["table"]
    other = table.obs["section"] == "section_6"
    table.obs["patient"] = np.where(other, "q", "p")
    tl.predict(sdata, model, interval=0.9)
    assert "No interval of 90 % can be promised in section_6: the model has not seen two sections" in caplog.text
    assert np.isnan(table.layers["agl_lower"][other.to_numpy()]).all()
    assert set(record_of(sdata).values["refused"]) == {"section_6"}
    covered = tl.evaluate(sdata, metrics=["coverage"]).groupby("section")["coverage"].mean()
    assert covered.notna().to_dict() == {"section_5": True, "section_6": False}


def test_what_did_not_hold_in_training_is_not_promised(of_one_patient: tuple[SpatialData, Model]) -> None:
    sdata, model = of_one_patient
    (entry,) = model.card["intervals"]["patients"]
    short = {**entry, "coverage": [[0.5] * len(LEVELS) for _ in entry["coverage"]]}
    with pytest.raises(ValueError, match=r"sections of p that were held out in turn .* were covered to 50 % alone"):
        tl.predict(sdata, trusted(model, patients=[short]), interval=0.9)
    tl.predict(sdata, trusted(model, patients=[short]), interval=0.5)


def test_a_section_beyond_is_promised_nothing(of_one_patient: tuple[SpatialData, Model]) -> None:
    sdata, model = of_one_patient
    limit = {"domain.limit": torch.full((2,), 1e-6)}
    with pytest.raises(ValueError, match=r"section_5, section_6: most of its spots lie beyond the training tissue"):
        tl.predict(sdata, replace(model, tensors={**model.tensors, **limit}), interval=0.9)


def test_older_models_and_odd_levels_are_refused(of_one_patient: tuple[SpatialData, Model]) -> None:
    sdata, model = of_one_patient
    older = replace(model, card={name: value for name, value in model.card.items() if name != "intervals"})
    with pytest.raises(ValueError, match=r"the model knows no residuals of held-out spots"):
        tl.predict(sdata, older, interval=0.9)
    for odd in (0.91, "0.9", True, 90):
        with pytest.raises(ValueError, match=r"interval=.* is not one of 0\.5, 0\.68, 0\.8, 0\.9, 0\.95"):
            tl.predict(sdata, model, interval=odd)  # type: ignore[arg-type]


def test_measured_spots_promise_the_others_of_their_section(
    of_one_patient: tuple[SpatialData, Model], caplog: pytest.LogCaptureFixture
) -> None:
    sdata, model = of_one_patient
    table = sdata["table"]
    inside = np.flatnonzero(table.obs["section"] == "section_6")
    chosen = np.random.default_rng(0).choice(inside, 19, replace=False)
    adapted = tl.adapt(sdata, model, np.isin(np.arange(table.n_obs), chosen))
    with caplog.at_level(logging.INFO):
        tl.predict(sdata, adapted, interval=0.9)
    assert (
        "hold 90% of its spots, if the 19 measured ones were taken at random, and in a gene by nine of ten such choices 77 to 98 %"
        in caplog.text
    )
    assert record_of(sdata).covers_level("section_6") is True
    assert set(record_of(sdata).values["sections"]) == {"section_6"}
    lower = table[:, model.predicted_genes].layers["agl_lower"]
    assert np.isfinite(lower[inside]).all()
    assert (lower[inside] >= 0).all()
    pp.target_genes(sdata, genes=4)
    assert tl.evaluate(sdata, metrics=["coverage"])["coverage"].mean() == pytest.approx(0.9, abs=0.1)
    few = tl.adapt(sdata, model, np.isin(np.arange(table.n_obs), chosen[:6]))
    with pytest.raises(ValueError, match=r"section_6: 6 measured spots are too few; measure 9 spots or more of it"):
        tl.predict(sdata, few, interval=0.9)
    tl.predict(sdata, few, interval=0.8)


def test_nine_patients_promise_a_tenth(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    sdata = datasets.toy_tissue(n_sections=11, n_spots_per_side=6, n_targets=4, n_informative=4, n_auxiliary=6)
    pp.embed(sdata, **TILES)
    pp.split(sdata, test=["section_1", "section_2"], validation=["section_3"])
    pp.target_genes(sdata, genes=4)
    pp.rank_auxiliary(sdata, score="truth_prior")
    model = tl.train(sdata, config=config)
    assert model.card["intervals"]["n_donors"] == 9
    with caplog.at_level(logging.INFO):
        tl.predict(sdata, model, interval=0.9)
    assert "Intervals in section_1 hold 90% of the spots of a further patient, level included" in caplog.text
    assert tl.evaluate(sdata, metrics=["coverage"])["coverage"].mean() > 0.85
    with pytest.raises(ValueError, match=r"across patients it takes 19 that were held out \(there were 9\)"):
        tl.predict(sdata, model, interval=0.95)


def test_bounds_follow_predictions_into_a_table_and_out(of_one_patient: tuple[SpatialData, Model]) -> None:
    sdata, model = of_one_patient
    tl.predict(sdata, model, interval=0.9)
    layer = sdata["table"][:, model.predicted_genes].layers["agl_upper"]
    covered = tl.evaluate(sdata, metrics=["coverage"])["coverage"]
    tl.predict(sdata, model, interval=0.9, write_to="table")
    assert "agl_upper" not in sdata["table"].layers
    own = sdata["agl_prediction"]
    np.testing.assert_array_equal(own.layers["agl_upper"], layer)
    np.testing.assert_array_equal(tl.evaluate(sdata, metrics=["coverage"])["coverage"], covered)
    adata = tl.to_anndata(sdata, sections="section_6")
    test = (sdata["table"].obs["section"] == "section_6").to_numpy()
    np.testing.assert_array_equal(adata.layers["upper"], layer[test])
    assert set(adata.layers) - {None} == {"lower", "upper"}  # newer anndata count X among them


def test_an_altered_card_is_refused(of_one_patient: tuple[SpatialData, Model], tmp_path: Path) -> None:
    model = of_one_patient[1]
    for changes in ({"by": "nobody"}, {"patients": [{"name": "p"}]}, {"n_donors": -1}, {"donors": [[2.0]]}):
        trusted(model, **changes).save(tmp_path / "model")
        assert "intervals" in json.loads((tmp_path / "model" / "model.json").read_text())["card"]
        with pytest.raises(ValueError, match=r"card.intervals=.* is not what is known of held-out residuals"):
            Model.load(tmp_path / "model")
    wrong = {"intervals.sections": model.tensors["intervals.sections"][:, :, :2].contiguous()}
    replace(model, tensors={**model.tensors, **wrong}).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"'intervals.sections' in .* is torch.float32 of shape"):
        Model.load(tmp_path / "model")


def test_a_model_gives_an_anndata_and_leaves_the_sections_alone(
    of_one_patient: tuple[SpatialData, Model], unchanged: Unchanged
) -> None:
    sdata, model = of_one_patient
    with unchanged(sdata):
        adata = model.to_anndata(sdata, interval=0.9)
    assert adata.shape == (sdata["table"].n_obs, model.n_predicted)
    tl.predict(sdata, model, interval=0.9)
    expected = tl.to_anndata(sdata)
    np.testing.assert_array_equal(adata.X, expected.X)
    np.testing.assert_array_equal(adata.layers["upper"], expected.layers["upper"])
    assert set(adata.uns["spatial"]) == set(expected.uns["spatial"])
