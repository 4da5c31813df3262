"""Denoising within the recipe: what it sees, and what stays measured."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
from spatialdata import SpatialData

from agl_sc._sdata.study import Study
from agl_sc.core.config import Denoise, TrainConfig
from agl_sc.core.linear.choose_denoising import NOT_DENOISED, denoised
from agl_sc.core.spots.denoise import AS_MEASURED, Denoised
from agl_sc.core.training.recipe import TrainingData, fit_arm
from agl_sc.core.weighting import METHODS
from agl_sc.tl._model.data import training_data

FORCED = Denoise(genes=(10,), components=(2,), mix=(0.8,))


@pytest.fixture
def data(prepared: SpatialData) -> TrainingData:
    return training_data(Study.of(prepared))


def planted(data: TrainingData) -> TrainingData:
    """An auxiliary gene equals a target in validation and test spots, and there alone."""
    expression = data.expression.toarray()
    expression[~data.train, data.n_targets] = expression[~data.train, 0]
    return replace(data, expression=scipy.sparse.csr_matrix(expression))


def test_genes_planted_in_validation_and_test_spots_change_nothing(data: TrainingData, config: TrainConfig) -> None:
    found = []
    for each in (data, planted(data)):
        training = each.spots(each.train)
        choice = each.denoising(training, config)
        fixed = denoised(training, each.n_targets, Denoised(20, 3, 0.8))
        found.append((choice.chosen, choice.trace.to_json(), fixed.expression.columns(0, 9).tobytes()))
    assert found[0] == found[1]


def test_training_sees_denoised_targets_and_validation_and_calibration_measured_ones(
    data: TrainingData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "agl_sc.core.training.recipe.choose_denoising",
        lambda *_, **__: replace(NOT_DENOISED, chosen=Denoised(10, 2, 1.0)),
    )
    short = replace(config, max_epochs=1, denoise=FORCED)
    result = fit_arm(data, METHODS["agl"], short)
    plain = fit_arm(data, METHODS["agl"], replace(short, denoise=None))
    assert (result.denoising.chosen, plain.denoising.chosen) == (Denoised(10, 2, 1.0), AS_MEASURED)
    assert any((result.state[name] != plain.state[name]).any() for name in plain.state)
    measured = data.measured(data.train | data.validation, data.n_targets)
    tensors = data.calibrated(result, short)
    assert tensors["intercept"].shape[0] >= data.n_targets
    centred = data.held_out().targets
    np.testing.assert_array_equal(centred, data.measured(data.validation, data.n_targets))
    slope, intercept = (tensors[name][: data.n_targets].numpy() for name in ("slope", "intercept"))
    assert np.isfinite(slope).all()
    assert np.abs(intercept - measured.mean(axis=0)).max() < np.abs(measured).max()


@pytest.mark.parametrize("loss", ["poisson", "negative_binomial"])
def test_a_likelihood_is_of_what_was_measured(data: TrainingData, config: TrainConfig, loss: str) -> None:
    own = TrainConfig.from_plain({**config.plain(), "loss": loss})
    assert data.denoising(data.spots(data.train), own) is NOT_DENOISED


def test_targets_only_are_denoised_by_themselves(data: TrainingData, config: TrainConfig) -> None:
    choice = data.denoising(data.spots(data.train, data.n_targets), config)
    assert set(choice.trace["n_genes"]) <= {0}
