"""Scripts that measure run on small tissue: that for a GPU says the same as the CPU, that of distances has every row."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_script_for_a_gpu_runs_here(tmp_path: Path) -> None:
    table = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--small", "--data", str(tmp_path)]
    done = subprocess.run([*command, "--output", str(table)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = table.read_text(encoding="utf-8").splitlines()[4:]
    assert rows == [line for line in done.stdout.splitlines()[4:] if line.startswith("|")]
    named = [row.split("|")[1].strip() for row in rows]
    parts = ["encoder", "embed", "dense", "steps", "hypergradient", "finetune", "same"]
    assert [name.split()[0][1:] for name in named if name.endswith("took)")] == [*parts, "all"]
    assert [row for row in rows if "NOT" in row or "nan" in row] == []
    assert sum("(within" in row for row in rows) == 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_memory_is_measured_of_every_step() -> None:
    command = [sys.executable, "benchmarks/memory.py", "--sizes", "2000x24", "--genes", "200", "--limit", "12"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    steps = [line.split()[0] for line in lines if line.endswith("GB")]
    expected = ["use_features", "split", "target_genes", "rank_auxiliary", "train", "predict", "evaluate"]
    assert steps == [*expected, "spatial_pred"]
    (row,) = (line.split() for line in lines if line.split()[:1] == ["2000x24"] and not line.endswith("genes"))
    assert 0 < float(row[1]) < 12


def test_the_script_of_distances_has_a_row_for_everything() -> None:
    command = [sys.executable, "benchmarks/domain.py", "toy", "coarse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line.startswith("| ")
    ]
    head, *body = rows
    assert head == ["model of", "slide", "kind", "beyond", "spots alone", "moved", "scale", "limit"]
    assert [row[2] for row in body].count("like") == 7
    changes = [row[1].split(", ")[1] for row in body if row[2] == "changed"]
    assert changes[:7] == changes[-7:] == [
        "inverted", "eosin as DAB", "half the dye", "blurred", "scale 4x too coarse", "scale 4x too fine", "glass",
    ]  # fmt: skip
    flagged = {row[1].split(", ")[1]: float(row[3]) for row in body if row[2] == "changed" and row[3] != "refused"}
    assert flagged["glass"] > 0.9
    assert flagged["scale 4x too coarse"] > 0.9 < flagged["scale 4x too fine"]
    assert all(float(row[3]) < 0.2 for row in body if row[2] == "like")
