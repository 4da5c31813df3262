"""A checkpoint that is not as it was written is refused in one sentence, whatever was done to it."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agl_sc.core.training.checkpoint import Checkpoint

SETTINGS = {"method": "dkgsb", "lr": 1e-3}
TENSORS = {
    "a": torch.arange(20.0).reshape(4, 5),
    "b": torch.tensor(3),
    "c": torch.tensor([True, False]),
    "d": torch.zeros(0),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path / "state.safetensors", SETTINGS)
    checkpoint.write(TENSORS, {"epoch": 3})
    return checkpoint


def test_goes_to_disk_and_back(checkpoint: Checkpoint) -> None:
    read = checkpoint.read()
    assert read is not None
    assert read[1] == {"epoch": 3}
    assert all(torch.equal(read[0][name], tensor) for name, tensor in TENSORS.items())


def test_random_bytes(checkpoint: Checkpoint) -> None:
    data, n_refused = checkpoint.path.read_bytes(), 0
    for seed in range(300):
        draw, harmed = random.Random(seed), bytearray(data)
        harmed[draw.randrange(len(harmed))] ^= 1 << draw.randrange(8)
        if seed % 5 == 0:
            harmed = harmed[: draw.randrange(len(harmed))]
        checkpoint.path.write_bytes(harmed)
        try:
            read = checkpoint.read()
        except ValueError as error:
            n_refused += 1
            assert_is_a_sentence(error)
        else:  # what was harmed says nothing, such as a blank after the header
            assert read is not None
            assert read[1] == {"epoch": 3}
            assert all(torch.equal(read[0][name], tensor) for name, tensor in TENSORS.items())
    assert n_refused > 280


def assert_is_a_sentence(error: ValueError) -> None:
    assert "is damaged (" in str(error)
    assert str(error).endswith("delete it to start again.")
    assert "\n" not in str(error)


@pytest.mark.parametrize("harm", ["a value", "a tensor less", "progress", "settings", "no checksum"])
def test_what_safetensors_would_take(checkpoint: Checkpoint, harm: str) -> None:
    tensors = load_file(checkpoint.path)
    header = checkpoint.path.read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    if harm == "a value":
        tensors["a"][1, 1] += 1
    elif harm == "a tensor less":
        del tensors["b"]
    elif harm == "no checksum":
        del metadata["sha256"]
    else:
        metadata[harm] = json.dumps({"epoch": 4})
    save_file(tensors, checkpoint.path, metadata=metadata)
    with pytest.raises(ValueError, match=r"is damaged \(it does not have its checksum\); delete it to start again"):
        checkpoint.read()


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is damaged \(.*\); delete it to start again"):
        Checkpoint(tmp_path).read()
