"""Fine-tuning with auxiliary genes: the whole encoder trained on tiles, one section of HER2ST held out at a time.

    python -m benchmarks.finetune ../shared/data report                       # 128 px, three seeds, a GPU for minutes
    python -m benchmarks.finetune ../shared/data report --frozen              # the same tiles, encoder as it is, any machine
    python -m benchmarks.finetune ../shared/data report --px 224 --seeds 1 --methods pgl agl

Folds, sets and targets are those of benchmarks/real.py, so that its results stand beside. Every fold is a process of its own, as
the steps are too small for one to fill a GPU. Writes a report of tl.benchmark and, per fold, the predictions.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from benchmarks.real import sections_of

import agl_sc
from agl_sc._sdata.keys import Keys
from agl_sc.pp._features.tiles import TILE_UM
from agl_sc.pp._splits.folds import folds_of
from agl_sc.tl import CrossValidation, TrainConfig

SECTIONS = ("B4", "C2", "C3", "C4", "C5", "C6")


def fit_fold(section: str, given: argparse.Namespace) -> None:
    """A section held out, by every method and seed."""
    warnings.simplefilter("ignore")
    sdata = sections_of(given.data, "sections")
    alone: dict[str, Any] = {"context": (), "orientations": 1, "maps": "none", "mpp": TILE_UM / given.px}
    agl_sc.pp.embed(sdata, tile_px=given.px, device=given.device, **alone)
    agl_sc.pp.split(sdata, by="section", n_folds=len(SECTIONS))
    (fold,) = [each for each in folds_of(sdata["table"], Keys("agl")) if each.name == section]
    done = agl_sc.tl.cross_validate(
        sdata,
        methods=given.methods,
        folds=[fold.assigned.tolist()],
        seeds=given.seeds,
        metrics=("pearson", "pearson_beyond_depth"),
        finetune=not given.frozen,
        config=TrainConfig(max_epochs=given.epochs, patience=given.patience),
        checkpoint=given.report.with_name(f"{given.report.name}.{section}.runs"),
        device=given.device,
    )
    done.results["fold"] = section
    done.save(given.report.with_name(f"{given.report.name}.{section}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("report", type=Path, help="folder for the report")
    parser.add_argument("--px", type=int, default=128, help="side of a tile in pixels")
    parser.add_argument("--methods", nargs="+", default=["pgl", "agl", "dkgsb"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--frozen", action="store_true", help="leave the encoder as it is")
    parser.add_argument("--device", help="the fastest by default")
    parser.add_argument("--folds", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections held out")
    parser.add_argument("--processes", type=int, default=len(SECTIONS), help="folds at once; 1 on a small CPU")
    parser.add_argument("--fold", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fold is not None:
        fit_fold(given.fold, given)
        return
    start, command = time.perf_counter(), [sys.executable, "-m", "benchmarks.finetune", *sys.argv[1:]]
    with ThreadPoolExecutor(given.processes) as threads:
        list(threads.map(lambda section: subprocess.run([*command, "--fold", section], check=True), given.folds))
    done = [given.report.with_name(f"{given.report.name}.{section}") for section in given.folds]
    results = pd.concat([pd.read_csv(folder / "results.csv") for folder in done])
    provenance = json.loads((done[0] / "provenance.json").read_text(encoding="utf-8"))
    provenance["cross_validation"] |= {"by": "section", "n_folds": len(done)}
    report = CrossValidation(results, provenance).compare(given.methods[0])
    report.save(given.report)
    print(f"{given.px} px, {len(done)} sections held out, {given.seeds} seeds in {time.perf_counter() - start:.0f} s")
    print(report)


if __name__ == "__main__":
    main()
