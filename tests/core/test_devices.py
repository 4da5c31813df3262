"""Training, embedding and prediction on a device that refuses what the CPU holds, with the numbers of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

import dask.array as da
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests.core.training.test_fit_methods import N_TARGETS, config, make_spots
from tests.device_double import DEVICE, Elsewhere, elsewhere

from agl_sc.core.config import LossName, Method, TrainConfig
from agl_sc.core.encoders.dense import Fields
from agl_sc.core.encoders.encode import Recipe, encoded_blocks
from agl_sc.core.encoders.load import OFFLINE, Encoder, load_encoder
from agl_sc.core.encoders.maps import maps_of
from agl_sc.core.network.sources import EncodedTiles
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.tiles.dataset import TileDataset
from agl_sc.core.tiles.reader import Boxes
from agl_sc.core.training.fit import fit
from agl_sc.core.training.result import FitResult
from agl_sc.core.training.rounds import fit_in_rounds
from agl_sc.core.weighting import method_spec


def test_the_device_refuses_what_the_cpu_holds_and_keeps_values() -> None:
    here = torch.arange(6.0).reshape(2, 3)
    with elsewhere() as device:
        there = here.to(device)
        assert isinstance(there, Elsewhere)
        assert there.device == torch.zeros(3, device=device).device == DEVICE
        assert torch.tensor([2.0, 3.0], device=device).cpu().tolist() == [2, 3]
        for mixed in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.zeros(2).add_(there[0, :2]),
        ):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()  # type: ignore[no-untyped-call]
        assert (there + here.sum()).sum().item() == 15 + 6 * 15  # a single number may lie on the CPU
        assert torch.equal(there[torch.tensor([1])].cpu(), here[1:])
        assert torch.unique(there).cpu().tolist() == list(range(6))
        view = there[0]
        view += 1
        assert there.cpu()[0].tolist() == [1, 2, 3]


def test_a_network_on_the_device_takes_the_steps_that_it_takes_on_the_cpu() -> None:
    inputs = torch.arange(6.0).reshape(2, 3)

    def trained(device: torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            network(inputs.to(device)).square().mean().backward()
            optimizer.step()
        return network.weight.detach().cpu()

    with elsewhere() as device:
        there = trained(device)
    assert torch.equal(there, trained(torch.device("cpu")))


@contextmanager
def accelerated() -> Iterator[Accelerator]:
    """An accelerator that names the device."""
    accelerator = Accelerator(cpu=True)
    accelerator.state.device = DEVICE
    try:
        with elsewhere():
            yield accelerator
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def run(method: Method, *, rounds: bool = False, accelerator: Accelerator | None = None, **changes: Any) -> FitResult:
    spots, validation = make_spots()
    settings: TrainConfig = config(**{"max_epochs": 1, **changes})
    how: dict[str, Any] = {"n_targets": N_TARGETS, "method": method_spec(method), "config": settings}
    how["accelerator"] = accelerator or Accelerator(cpu=True)
    return fit_in_rounds(spots, validation, **how) if rounds else fit(spots, validation, **how)


def check_same(there: FitResult, here: FitResult) -> None:
    np.testing.assert_allclose(there.history["loss"], here.history["loss"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there.weights, here.weights, atol=1e-4)
    assert not any(isinstance(value, Elsewhere) for value in there.state.values())
    for name, value in here.state.items():
        torch.testing.assert_close(there.state[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "search"), [*((method, "path") for method in get_args(Method)), ("dkgsb", "gradient")]
)
def test_methods_train_on_the_device_as_on_the_cpu(method: Method, search: Any) -> None:
    here = run(method, search=search, outer_lr=0.05)
    with accelerated() as accelerator:
        there = run(method, search=search, outer_lr=0.05, accelerator=accelerator)
    check_same(there, here)


@pytest.mark.parametrize("loss", get_args(LossName))
def test_losses_train_on_the_device_as_on_the_cpu(loss: LossName) -> None:
    here = run("agl", loss=loss)
    with accelerated() as accelerator:
        check_same(run("agl", loss=loss, accelerator=accelerator), here)


def test_rounds_train_on_the_device_as_on_the_cpu() -> None:
    changes = {"start": "agl", "search": "gradient", "rounds": True}
    here = run("dkgsb", **changes)  # type: ignore[arg-type]
    with accelerated() as accelerator:
        check_same(run("dkgsb", accelerator=accelerator, **changes), here)  # type: ignore[arg-type]


def seen() -> tuple[Encoder, list[Boxes | Fields]]:
    """Tiles, tiles by maps and wider fields by maps, of an image that all of them reach beyond."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 150, 170), dtype=np.uint8)
    image, white = da.from_array(pixels, chunks=(3, 64, 64)), np.full(3, 255, dtype=np.uint8)  # type: ignore[no-untyped-call]
    origins = np.array([[0, 0], [-8, 90], [100, 140], [60, 60]])
    of: dict[str, Any] = {"background": white, "overview_digest": "", "name": "toy"}
    tiles = Boxes(image=image, origins=origins, side=32, mpp=1.0, **of)
    fields = [
        Fields(image=image, centres=origins + 16.0, side=32.0 * factor, ratio=factor, wider=factor > 1, **of)
        for factor in (1.0, 2.0)
    ]
    return load_encoder(OFFLINE, stages=True), [tiles, *fields]


def fine_tuned(device: torch.device, accelerator: Accelerator) -> FitResult:
    """A whole encoder and the network behind it, on the tiles of eight spots for training and of eight for validation."""
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 128, 128), dtype=np.uint8)
    image, white = da.from_array(pixels, chunks=(3, 64, 64)), np.full(3, 255, dtype=np.uint8)  # type: ignore[no-untyped-call]
    origins = np.stack(np.meshgrid(*2 * [np.arange(4) * 32]), axis=-1).reshape(16, 2)
    boxes = Boxes(image=image, origins=origins, side=32, mpp=1.0, background=white, overview_digest="", name="toy")
    encoder = load_encoder(OFFLINE, stages=False)
    expression = np.random.default_rng(1).normal(size=(16, 6))
    sections, features = np.zeros(8, dtype=np.int64), np.random.default_rng(2).normal(size=(16, encoder.n_features))
    how: dict[str, Any] = {"encoder": encoder, "batch_size": 4, "device": device}
    sources = tuple(
        EncodedTiles(
            TileDataset([(np.arange(8), replace(boxes, origins=origins[rows]))], 32),
            sections,
            np.ones(encoder.n_features),
            **how,
        )
        for rows in (slice(8), slice(8, 16))
    )
    training = Spots(features[:8].astype(np.float32), Expression.from_dense(expression[:8]), sections)
    validation = Validation(features[8:].astype(np.float32), expression[8:, :2], sections)
    settings = config(batch_size=8, max_epochs=1, lr=1e-4, encoder_lr=1e-5)
    common: dict[str, Any] = {"n_targets": 2, "method": method_spec("agl"), "config": settings}
    return fit(training, validation, sources=sources, accelerator=accelerator, **common)  # type: ignore[arg-type]


def test_an_encoder_is_fine_tuned_on_the_device_as_on_the_cpu() -> None:
    here = fine_tuned(torch.device("cpu"), Accelerator(cpu=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    with accelerated() as accelerator:
        there = fine_tuned(DEVICE, accelerator)
    assert any(name.startswith("encoder.") for name in there.state)
    np.testing.assert_allclose(there.history["loss"], here.history["loss"], rtol=1e-3)
    np.testing.assert_allclose(there.history["validation_pearson"], here.history["validation_pearson"], atol=1e-3)


def test_tiles_and_maps_are_embedded_on_the_device_as_on_the_cpu() -> None:
    def embedded(device: str) -> list[np.ndarray[Any, Any]]:
        encoder, fields = seen()
        recipe = Recipe(encoder, 32, orientations=2, batch_size=2, device=device, maps=maps_of(encoder))
        return [values for each in fields for _, values in encoded_blocks(recipe, each, [0])]

    with elsewhere() as device:
        there = embedded(device.type)
    for found, expected in zip(there, embedded("cpu"), strict=True):
        assert found.std() > 0
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
