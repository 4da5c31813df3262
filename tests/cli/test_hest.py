"""``agl-sc hest download``, ``hest prepare`` and ``paper``."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import spatialdata as sd
from tests.io.hest_files import centres, write_encoder, write_sample
from typer.testing import CliRunner

from agl_sc import datasets
from agl_sc.cli import app

GENES = [f"GENE{i}" for i in range(30)]
Invoke = Callable[..., Any]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """``agl-sc`` with these words, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda line: CliRunner().invoke(app, line.split())


@pytest.fixture
def hest(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "hest", positions=centres(7, 6), genes=GENES)


def test_download(invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def hest1k(ids: list[str], **options: Any) -> list[Path]:
        asked.append((ids, options))
        return [tmp_path / "st" / f"{name}.h5ad" for name in ids]

    monkeypatch.setattr(datasets, "hest1k", hest1k)
    done = invoke("hest download TENX152 INT1 --folder data --wsi")
    assert done.exit_code == 0
    assert done.stdout.split() == [str(tmp_path / "st/TENX152.h5ad"), str(tmp_path / "st/INT1.h5ad")]
    assert asked == [(["TENX152", "INT1"], {"folder": Path("data"), "wsi": True, "revision": None})]


def test_three_commands(invoke: Invoke, hest: Path, tmp_path: Path) -> None:
    """From a downloaded folder to the paper's table; nothing is replaced without --force."""
    encoder = write_encoder(tmp_path / "net.pth")
    done = invoke("hest prepare TENX152 --targets 5 --min-genes 20")
    assert done.exit_code == 0, done.output
    assert "41 spots (0 left out), 30 genes (0 left out), 5 targets" in done.stdout
    store = hest / "TENX152.zarr"
    assert sd.read_zarr(store)["table"].uns["agl"]["paper"]["n_targets"] == 5
    line = f"paper TENX152 --methods pgl,dkgsb --encoder {encoder} --tile-px 32 --mpp 3.5 --set batch_size=8 --set max_epochs=1"
    done = invoke(line)
    assert done.exit_code == 0, done.output
    place = hest / "TENX152_paper_paper"
    results = pd.read_csv(place / "results.csv")
    assert results.groupby("method")["fold"].nunique().to_dict() == {"pgl": 5, "dkgsb": 5}
    said = json.loads((place / "provenance.json").read_text())
    assert (said["preset"], said["encoder"], said["targets_on"], said["by"]) == ("paper", encoder, "training", "spot")

    again = invoke("paper TENX152 --evaluate")
    assert again.exit_code == 0, again.output
    assert again.stdout == done.stdout
    old = invoke("benchmark TENX152 --protocol paper --evaluate")
    assert (old.exit_code, old.stdout) == (0, done.stdout)
    told = "The paper's protocol is now the command `agl-sc paper`; --protocol paper goes in the next version."
    assert told in old.stderr
    header, *rows = (row.split() for row in again.stdout.splitlines()[:3])
    assert header == ["MSE", "Pearson", "Pearson", "beyond", "depth", "Spearman"]
    assert [row[0] for row in rows] == ["pgl", "dkgsb"]
    by_fold = results[(results["method"] == "pgl") & (results["metric"] == "mse")].groupby("fold")["value"].mean()
    assert rows[0][1:4] == [f"{by_fold.mean():.3f}", "±", f"{by_fold.std():.3f}"]
    assert "Test spots of random spot folds share pixels" in again.stdout

    spoken = json.loads(invoke("paper TENX152 --evaluate --json").stdout)
    assert spoken["methods"]["pgl"]["mse_mean"] == pytest.approx(by_fold.mean())

    kept = store.stat().st_mtime_ns
    for refused in ("hest prepare TENX152 --targets 5 --min-genes 20", line):
        done = invoke(refused)
        assert done.exit_code == 2
        assert "exists; pass --force to replace it" in done.stderr
    assert store.stat().st_mtime_ns == kept
    assert invoke("hest prepare TENX152 --targets 4 --min-genes 20 --force").exit_code == 0
    assert sd.read_zarr(store)["table"].uns["agl"]["paper"]["n_targets"] == 4
    assert not list(hest.glob(".TENX152*"))


def test_several_samples_go_into_one_store(invoke: Invoke, hest: Path, tmp_path: Path) -> None:
    write_sample(hest, "INT1", seed=1, genes=GENES, patient="Patient 2")
    done = invoke(
        f"hest prepare TENX152 INT1 --targets 5 --min-genes 20 --output {tmp_path / 'both.zarr'} --patient TENX152=P2 --patient INT1=P9"
    )
    assert done.exit_code == 0, done.output
    obs = sd.read_zarr(tmp_path / "both.zarr")["table"].obs
    assert obs.groupby("section", observed=True)["patient"].first().to_dict() == {"TENX152": "P2", "INT1": "P9"}


REFUSED: list[Any] = [
    pytest.param("hest prepare TENX151", "TENX151 is not in .*did you mean TENX152.*hest download TENX151", id="not downloaded"),
    pytest.param("hest prepare TENX152 --image wsi", r"TENX152 has no 'hest/wsis/TENX152\.tif'", id="no slide"),
    pytest.param("hest prepare TENX152", "fewer than n_targets=50; lower min_genes", id="nothing left"),
    pytest.param("hest prepare TENX152 --patient P2", "--patient P2 is not ID=NAME; write such as --patient TENX152=P2", id="patient"),
    pytest.param("hest prepare TENX152 --patient TENX15=P2", "patient has no entry for TENX152; it has TENX15", id="patient of another"),
    pytest.param("hest prepare TENX152 --output none/a.zarr", "none does not exist; make it", id="no folder"),
    pytest.param("paper TENX152", r"hest/TENX152\.zarr does not exist; run `agl-sc hest prepare TENX152`", id="not prepared"),
    pytest.param("paper TENX152 --evaluate", r"results\.csv does not exist; run `agl-sc paper TENX152` first", id="not run"),
    pytest.param("paper TENX152 --targets TP53", "Invalid value for '--targets'", id="named target"),
    pytest.param("paper TENX152 --preset mine", "preset='mine' is not one of 'paper'", id="preset"),
    pytest.param("paper TENX152 --set gradient.inner_step=2", "--set gradient.inner_step=2 is not NAME=VALUE .* did you mean gradient.inner_steps", id="setting"),
    pytest.param("benchmark TENX152 --protocol mine", "--protocol mine is unknown; the one there is, is paper", id="protocol"),
    pytest.param("benchmark TENX152 --protocol paper --targets TP53", "--targets TP53 is not a number of target genes", id="named target, as it was"),
    pytest.param("hest download ../TENX152", r"ids=\['../TENX152'\] names no sample of HEST-1k", id="id"),
]  # fmt: skip


@pytest.mark.usefixtures("hest")
@pytest.mark.parametrize(("line", "message"), REFUSED)
def test_what_is_refused(invoke: Invoke, line: str, message: str) -> None:
    done = invoke(line)
    assert done.exit_code == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("agl-sc: ")
    assert re.search(message, last)


def test_as_a_process(hest: Path) -> None:
    code = "from agl_sc.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, "paper", "TENX152", "--evaluate", "--folder", str(hest)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("agl-sc: ")
    assert "Traceback" not in done.stderr
