"""Denoising within the recipe: what it sees, and what stays measured."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from spatialdata import SpatialData
from tests.core.spots.dense_calibration import calibrate

from agl_sc._sdata.study import Study
from agl_sc.core.config import Denoise, TrainConfig
from agl_sc.core.linear.choose_denoising import NOT_DENOISED, denoised
from agl_sc.core.network.network import network_from
from agl_sc.core.numerics.tensors import part
from agl_sc.core.spots.denoise import AS_MEASURED, Denoised
from agl_sc.core.spots.spots import Spots
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
        choice = each.denoising(training, replace(config, denoise=Denoise()))
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
    assert not all(torch.equal(result.state[name], plain.state[name]) for name in plain.state)
    measured = data.measured(data.train | data.validation, data.n_targets)
    tensors = data.calibrated(result, short)
    network = network_from(part(result.state, "network."))
    with torch.inference_mode():
        raw = network(torch.from_numpy(data.features[data.train | data.validation]), data.n_targets).double().numpy()
    slope, intercept = calibrate(raw, measured, shrinkage=result.shrinkage)
    np.testing.assert_allclose(tensors["slope"][: data.n_targets], slope, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(tensors["intercept"][: data.n_targets], intercept, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["poisson", "negative_binomial", "multinomial"])
def test_a_likelihood_is_of_what_was_measured(data: TrainingData, config: TrainConfig, loss: str) -> None:
    own = TrainConfig.from_plain({**config.plain(), "loss": loss, **FORCED.plain()})
    assert data.denoising(data.spots(data.train), own) is NOT_DENOISED


def test_auxiliary_genes_that_only_denoise_are_not_modelled(
    *, data: TrainingData, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The denoiser is targets only, trained on targets that auxiliary genes have denoised."""
    chosen = replace(NOT_DENOISED, chosen=Denoised(10, 2, 1.0))
    monkeypatch.setattr("agl_sc.core.training.recipe.choose_denoising", lambda *_, **__: chosen)
    short = replace(config, max_epochs=1, denoise=FORCED)
    result = fit_arm(data, METHODS["denoiser"], short)
    assert result.selected.tolist() == [True] * data.n_targets
    assert "no auxiliary genes" not in caplog.text

    def by_all_genes(spots: Spots, n_targets: int, _: Denoised) -> Spots:
        rows = data.train if len(spots.sections) == data.train.sum() else data.train | data.validation
        whole = denoised(data.spots(rows), n_targets, chosen.chosen).expression
        return replace(spots, expression=spots.expression.replacing(whole.columns(0, n_targets)))

    monkeypatch.setattr("agl_sc.core.training.recipe.denoised", by_all_genes)
    alone = fit_arm(data, METHODS["pgl"], replace(short, denoise=None))
    inputs = torch.from_numpy(data.features[data.train])
    with torch.inference_mode():
        found, expected = (
            network_from(part(each.state, "network."))(inputs, data.n_targets) for each in (result, alone)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_targets_only_are_denoised_by_themselves(data: TrainingData, config: TrainConfig) -> None:
    choice = data.denoising(data.spots(data.train, data.n_targets), replace(config, denoise=Denoise(components=(1, 2))))
    assert not choice.trace.empty
    assert set(choice.trace["n_genes"]) <= {0}
