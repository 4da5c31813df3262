"""Held-out scores and distances: kept with the model, written by predict, and genes below the gate left out."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData
from tests.conftest import duplicate

from agl_sc import datasets, pl, pp, tl
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import HeldOutRecord, remembered
from agl_sc._sdata.study import Study
from agl_sc.core.evaluation.gene_scores import COLUMNS
from agl_sc.model import Model
from agl_sc.tl._model.held_out import held_out_of
from agl_sc.tl._model.trust import below_gate, domain_in, domain_of, width_of_tile

Trained = tuple[SpatialData, Model]


def other_tissue() -> SpatialData:
    return datasets.toy_tissue(n_sections=1, n_spots_per_side=7, n_targets=4, n_informative=8, n_auxiliary=20, seed=5)


def without_scores(model: Model) -> Model:
    """As an older version wrote it."""
    card = {name: value for name, value in model.card.items() if name != "scores"}
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("domain.")}
    return replace(model, card=card, tensors=tensors)


def test_every_modelled_gene_has_a_score_of_training_and_validation_spots(trained: Trained) -> None:
    sdata, model = trained
    assert list(model.scores.index) == model.genes
    assert list(model.scores) == list(COLUMNS)
    assert model.scores["pearson"].notna().sum() > len(model.genes) / 2
    assert model.card["scores"]["sections"] == ["section_1", "section_2"]
    found = tl.predictable_genes(sdata, min_spots=1, by="section")
    shared = model.scores.index.intersection(found.index)
    np.testing.assert_allclose(model.scores.loc[shared, "pearson"], found.loc[shared, "pearson"], atol=1e-4)


def test_scores_and_domain_survive_a_file(trained: Trained, tmp_path: Path) -> None:
    model = trained[1]
    model.save(tmp_path / "model")
    loaded = Model.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.scores, model.scores)
    features = np.asarray(trained[0]["table"].obsm["agl_features"])
    codes, means = np.zeros(len(features), dtype=np.int64), {0: features.mean(axis=0, dtype=float)}
    first, second = domain_of(model), domain_of(loaded)
    assert first is not None
    assert second is not None
    expected = first.distance(features, codes, means=means)
    np.testing.assert_array_equal(expected, second.distance(features, codes, means=means))


def test_a_model_that_knows_no_neighbours_measures_as_it_did(trained: Trained, tmp_path: Path) -> None:
    model = trained[1]
    newer = ("domain.measures", "domain.neighbours.")
    older = replace(model, tensors={name: each for name, each in model.tensors.items() if not name.startswith(newer)})
    older.save(tmp_path / "model")
    found = domain_of(Model.load(tmp_path / "model"))
    assert found is not None
    assert found.neighbours is None
    assert found.measures is None
    sdata = other_tissue()
    tl.predict(sdata, Model.load(tmp_path / "model"))
    assert sdata["table"].obs["agl_distance"].between(0, 1).all()


def test_neighbours_without_their_measures_are_refused(trained: Trained, tmp_path: Path) -> None:
    model = trained[1]
    odd = replace(model, tensors={name: each for name, each in model.tensors.items() if name != "domain.measures"})
    odd.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"domain\.neighbours\.\w+' in .* none of a model's"):
        Model.load(tmp_path / "model")


def test_wider_fields_of_view_do_not_count() -> None:
    sdata = datasets.toy_tissue(n_sections=2, n_spots_per_side=6)
    pp.embed(sdata, tile_px=32, mpp=2.0, context=(2,), orientations=1, stages=False)
    study = Study.of(sdata)
    features = np.asarray(study.table.obsm["agl_features"])
    width = width_of_tile(study)
    assert 2 * width == features.shape[1]
    spots = held_out_of(study, np.ones(len(features), dtype=bool))
    before = domain_in(study, spots)
    study.table.obsm["agl_features"] = np.hstack([features[:, :width], 0 * features[:, width:]])
    after = domain_in(study, spots)
    np.testing.assert_array_equal(before.held_out, after.held_out)
    assert before.width == width


def test_training_writes_both_and_leaves_no_gene_out(trained: Trained) -> None:
    sdata, model = trained
    table = sdata["table"]
    written = table.var["agl_held_out_pearson"].reindex(model.genes)
    np.testing.assert_allclose(written, model.scores["pearson"])
    test = (table.obs["agl_split"] == "test").to_numpy()
    assert table.obs["agl_distance"][test].between(0, 1).all()
    assert table.obs["agl_distance"][~test].isna().all()
    assert np.isfinite(table[:, model.predicted_genes].layers["agl"]).all()
    said = remembered(table, Keys(), HeldOutRecord)
    assert said is not None
    assert said.values["by"] == "section"


def test_predict_leaves_genes_below_the_gate_out(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    model, sdata = trained[1], other_tissue()
    scores = model.scores["pearson"].reindex(model.predicted_genes)
    gate = float(scores.sort_values().iloc[1])
    tl.predict(sdata, model, min_r=gate)
    layer = sdata["table"].to_df("agl")
    kept = scores.index[~(scores < gate)]
    assert layer[kept].notna().all(axis=None)
    assert layer.drop(columns=kept).isna().all(axis=None)
    assert f"1 of {model.n_predicted} genes have a held-out r below min_r={gate:g}" in caplog.text
    assert sdata["table"].var["agl_held_out_pearson"].reindex(model.genes).notna().any()
    tl.predict(sdata, model, min_r=None)
    assert sdata["table"].to_df("agl")[scores.index].notna().all(axis=None)


def test_a_gate_that_no_gene_passes_is_refused(trained: Trained) -> None:
    with pytest.raises(ValueError, match=r"No gene of the model has a held-out r of min_r=1 or more, the best is"):
        tl.predict(other_tissue(), trained[1], min_r=1)
    with pytest.raises(ValueError, match=r"min_r=2 is not a correlation from -1 to 1"):
        tl.predict(other_tissue(), trained[1], min_r=2)
    with pytest.raises(ValueError, match=r"min_r='x' is not a correlation"):
        tl.predict(other_tissue(), trained[1], min_r="x")  # type: ignore[arg-type]


def test_older_models_predict_all_genes_and_say_nothing(trained: Trained) -> None:
    model, sdata = without_scores(trained[1]), other_tissue()
    assert model.scores.empty
    assert not below_gate(model, 0.9).any()
    tl.predict(sdata, trained[1])
    tl.predict(sdata, model, min_r=0.9)
    table = sdata["table"]
    assert not [name for name in table.var if name.startswith("agl_held_out")]
    assert "agl_distance" not in table.obs
    assert remembered(table, Keys(), HeldOutRecord) is None


def test_a_slide_of_another_stain_is_told(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    sdata = other_tissue()
    (name,) = sdata.images
    tl.predict(sdata, trained[1])
    assert "lie farther from the training tissue" not in caplog.text
    table = sdata["table"]
    table.obsm["agl_features"] = (10 - 3 * np.asarray(table.obsm["agl_features"])).astype(np.float32)
    tl.predict(sdata, trained[1])
    assert (table.obs["agl_distance"] > 0.99).all()
    assert "100 % of the spots of section_1 lie farther from the training tissue than 99 %" in caplog.text
    assert name in sdata.images


def shown_at(model: Model, power: float) -> SpatialData:
    """Other tissue whose features are moved along what tells the scale, and no farther off otherwise."""
    sdata = other_tissue()
    tl.predict(sdata, model)
    table, domain = sdata["table"], domain_of(model)
    assert domain is not None
    assert domain.seen_scale is not None
    del table.uns["agl"]["reference"]
    features = np.asarray(table.obsm["agl_features"], dtype=float)
    own, slope = features[:, : domain.width], domain.seen_scale.slope
    lacking = power - domain.seen_scale.power(own.mean(axis=0))
    along = slope * domain.reference.scale**2
    own += lacking * along / (slope @ along)
    table.obsm["agl_features"] = features.astype(np.float32)
    return sdata


@pytest.mark.parametrize("power", [1.6, -1.6])
def test_a_slide_at_another_scale_is_told(trained: Trained, caplog: pytest.LogCaptureFixture, power: float) -> None:
    model, told = trained[1], r"3\.0 times smaller" if power > 0 else r"3\.0 times larger"
    sdata = shown_at(model, power)
    with caplog.at_level("WARNING"):
        caplog.clear()
        tl.predict(sdata, model)
    assert re.search(f"The tissue of section_1 looks as that of training does {told}", caplog.text)
    assert caplog.text.count("do not rely on predictions there") == 1
    assert (sdata["table"].obs["agl_distance"] == 1).all()


def test_a_slide_at_its_scale_is_not_told(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    sdata = other_tissue()
    tl.predict(sdata, trained[1])
    assert "image_mpp seems to be" not in caplog.text
    assert (sdata["table"].obs["agl_distance"] < 1).any()


def test_models_that_know_no_scale_say_nothing_of_it(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained[1]
    sdata = shown_at(model, 1.6)
    kept = {name: each for name, each in model.tensors.items() if not name.startswith("domain.seen_scale.")}
    replace(model, tensors=kept).save(tmp_path / "model")
    tl.predict(sdata, Model.load(tmp_path / "model"))
    assert "image_mpp seems to be" not in caplog.text
    lacking = {name: each for name, each in model.tensors.items() if name != "domain.seen_scale.slope"}
    replace(model, tensors=lacking).save(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"'domain\.seen_scale\.slope' in .* is missing"):
        Model.load(tmp_path / "odd")


def check_it_knows_no_scale(prepared: SpatialData, caplog: pytest.LogCaptureFixture, said: str) -> None:
    """Trained all the same, and the log says why no scale is known."""
    with caplog.at_level("INFO"):
        model = tl.train(prepared, config=tl.TrainConfig(batch_size=16, max_epochs=1))
    domain = domain_of(model)
    assert domain is not None
    assert domain.seen_scale is None
    assert said in caplog.text


def test_training_without_the_encoder_goes_on(
    prepared: SpatialData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gone(*_: object, **__: object) -> None:
        msg = "No weights here."
        raise FileNotFoundError(msg)

    monkeypatch.setattr("agl_sc.tl._model.seen_scale.at_other_scales", gone)
    check_it_knows_no_scale(prepared, caplog, "The model cannot tell slides at another scale: No weights here.")


def test_an_encoder_that_only_the_table_names_is_not_fetched_for_scales(
    prepared: SpatialData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agl_sc.tl._model.seen_scale.is_harmless", lambda name: False)
    monkeypatch.delattr("agl_sc.pp._features.other_scales.load_encoder")
    check_it_knows_no_scale(prepared, caplog, "another scale: 'efficientnet_lite0' is not loaded for that.")


def test_a_crop_is_as_far_as_the_whole(trained: Trained) -> None:
    sdata, model = other_tissue(), trained[1]
    tl.predict(sdata, model)
    table = sdata["table"]
    whole = table.obs["agl_distance"].copy()
    assert whole.nunique() > 10
    kept = np.arange(table.n_obs) % 5 == 0
    cropped = duplicate(sdata)
    cropped["table"] = table[kept].copy()
    tl.predict(cropped, model)
    np.testing.assert_array_equal(cropped["table"].obs["agl_distance"], whole[kept])


def test_figures_say_what_is_to_be_expected(trained: Trained) -> None:
    sdata = other_tissue()
    model = trained[1]
    tl.predict(sdata, model, min_r=None)
    sdata["table"].X = None
    gene = model.targets[0]
    axes = pl.spatial_pred(sdata, gene)
    title = axes[0, 1].get_title().replace("\n", " ")
    expected = f"{model.scores['pearson'].iloc[0]:.2f}"
    assert f"held-out r = {expected} on section_1, section_2" in title


def test_altered_scores_are_refused(trained: Trained, tmp_path: Path) -> None:
    from agl_sc._model_file import check_fields

    trained[1].save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    fields = json.loads(path.read_text())
    for name in ("format", "sha256"):
        del fields[name]
    check_fields(fields, path)
    fields["card"]["scores"]["columns"]["pearson"].pop()
    with pytest.raises(ValueError, match=r"len\(card.scores.columns.pearson\)=\d+ in .* is not \d+ numbers"):
        check_fields(fields, path)
    fields["card"]["scores"]["columns"]["pearson"] = "x"
    with pytest.raises(ValueError, match=r"card.scores.columns=.* is not an object of lists"):
        check_fields(fields, path)
