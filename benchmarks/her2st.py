"""Held-out Pearson of every arm on HER2ST: train on C2-C4, C5 picks, C6 and B4 (another patient) are predicted.

    python benchmarks/her2st.py ../shared/data/her2st --seeds 3
    python benchmarks/her2st.py ../shared/data/her2st --arms ridge agl fixed_k uncertainty --figures docs

Prints the mean over the 50 targets per arm and section as mean and range over seeds, the paired difference to ridge with a
bootstrap interval over target genes (of these two sections alone; targets are correlated), wall time and peak memory.
"""

import argparse
import logging
import resource
import time
import warnings
from pathlib import Path
from typing import get_args

import matplotlib.pyplot as plt
import pandas as pd
from spatialdata import SpatialData

import agl_sc
from agl_sc.core.config import Search
from agl_sc.core.differences import bootstrap_interval
from agl_sc.io._st import read_st_folder
from agl_sc.tl import TrainConfig
from agl_sc.tl._arms import ARMS, compare_arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search", default="path", choices=get_args(Search))
    parser.add_argument("--arms", nargs="+", default=["ridge", "pgl", "agl", "dkgsb"], choices=list(ARMS))
    parser.add_argument("--figures", type=Path, help="folder for figures of DkGSB's searches")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    clock = Clock()
    sdata = read_st_folder(arguments.folder, sections=["C2", "C3", "C4", "C5", "C6", "B4"])
    agl_sc.pp.split(sdata, by="section", validation=["C5"], test=["C6", "B4"])
    agl_sc.pp.target_genes(sdata)
    agl_sc.pp.rank_auxiliary(sdata)
    clock.lap("read, targets, ranks")
    agl_sc.pp.embed(sdata)
    clock.lap("embed")
    tables = []
    for seed in range(arguments.seeds):
        result, model = compare_arms(sdata, arguments.arms, config=TrainConfig(search=arguments.search), seed=seed)
        tables.append(result)
        clock.lap(f"{len(arguments.arms)} arms, seed {seed}")
        if model is not None and model.cutoff is not None:
            n_selected = int((model.weights[model.n_targets :] >= 0.5).sum())
            print(f"seed {seed}: cutoff {model.cutoff:.4f}, {n_selected} auxiliary genes, epoch {model.best_epoch}")
    report(pd.concat(tables, ignore_index=True))
    if arguments.figures is not None:
        draw_searches(sdata, arguments.figures)
        clock.lap("figures")
    print(clock.text())


def draw_searches(sdata: SpatialData, folder: Path) -> None:
    """Validation path over k, and the cutoff's trace under the hyper-gradient from three starts."""
    model = agl_sc.tl.train(sdata, config=TrainConfig(search="path"))
    agl_sc.pl.cutoff(model, save=folder / "her2st_path.png")
    traces = {}
    for start in (0.1, 0.5, 0.9):
        config = TrainConfig(search="gradient", start_cutoff=start, max_epochs=30, patience=30, refit=False)
        traces[start] = agl_sc.tl.train(sdata, config=config).cutoff_trace
    draw_traces(traces, folder / "her2st_gradient.png")


def draw_traces(traces: dict[float, pd.DataFrame], path: Path) -> None:
    """Cutoff against epoch, a curve per start."""
    figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for start, trace in traces.items():
        ax.plot(trace["step"], trace["cutoff"], label=f"from {start}")
    ax.set(xlabel="epoch", ylabel="cutoff on the rank axis", ylim=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(traces))
    figure.savefig(path, dpi=150)


def report(result: pd.DataFrame) -> None:
    """Print both tables."""
    by_seed = result.groupby(["arm", "section", "seed"], sort=False)["pearson"].mean()
    spread = by_seed.groupby(["arm", "section"], sort=False).agg(["mean", "min", "max"]).unstack("section")
    print("\nMean Pearson of the targets: mean, min, max over seeds")
    print(spread.rename(index={name: arm.label for name, arm in ARMS.items()}).to_string(float_format="{:.3f}".format))
    genes = result.groupby(["arm", "section", "gene"], sort=False)["pearson"].mean().unstack("arm")
    if "ridge" not in genes:
        return
    print("\nDifference to ridge, paired over targets: mean [95 % bootstrap interval]")
    for arm in [name for name in genes.columns if name != "ridge"]:
        for section, rows in genes.groupby("section"):
            difference = (rows[arm] - rows["ridge"]).dropna().to_numpy()
            low, high = bootstrap_interval(difference)
            print(f"{ARMS[arm].label:28s} {section}: {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")


class Clock:
    """Wall time of the steps, and peak memory of the process."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.laps: list[str] = []

    def lap(self, what: str) -> None:
        now = time.perf_counter()
        self.laps.append(f"{what}: {now - self.last:.1f} s")
        self.last = now

    def text(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return "\n" + "; ".join(self.laps) + f"; peak memory {peak:.2f} GiB"


if __name__ == "__main__":
    main()
