"""Two processes with half the batch each train as one does with the whole."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("trains_in_processes.py")
_ALONE = runpy.run_path(str(SCRIPT))
ARMS, SIZES = list(_ALONE["ARMS"]), list(_ALONE["SIZES"])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote; ``accelerate launch --cpu`` would start one only, unless there is MPI."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arm", ARMS)
def test_both_processes_end_with_the_same_bytes_and_again_from_a_checkpoint(two: Path, arm: str, size: str) -> None:
    first, *others = (load_file(two / f"{name}.{arm}.{size}.{i}") for name in ("first", "again") for i in (0, 1))
    assert any(name.startswith("network.") for name in first)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[k].nan_to_num(), other[k].nan_to_num()) for k in first)


@pytest.mark.usefixtures("another_accelerator")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "rounds"])
def test_two_processes_train_as_one(two: Path, arm: str, size: str) -> None:
    one = _ALONE["trained"](arm, size, accelerator=Accelerator(cpu=True))
    found = load_file(two / f"first.{arm}.{size}.0")
    assert found.keys() == one.keys()
    for name, expected in one.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-5, equal_nan=True, msg=name)
    assert one["history.loss"][1:].std() > 1e-4
    assert (len(set(one["history.cutoff"].tolist())) > 2) == (arm == "dkgsb")
    assert (len(one["denoising"]) > 2) == (arm == "denoised")


def test_a_damaged_checkpoint_is_refused_by_both(two: Path) -> None:
    first, second = ((two / f"refused.{i}").read_text() for i in (0, 1))
    assert first == second
    assert "is damaged" in first
