"""Planted truth on toy tissue: which cutoff each search finds, and what each arm predicts on held-out sections.

    python benchmarks/toy.py --seeds 0 1 2 3 4

Every seed is four sections and another law of expression: one trains, two pick, one is held out; "refit" arms are fitted
once more on the three first. "denoised" arms have targets denoised: by themselves (pgl), or by auxiliary genes too, which are
trained on (agl) or not (denoiser). Features are those of the default encoder on the drawn tiles. Auxiliary genes are ranked by the
planted prior, and, in a second scenario, shuffled over the spots of every section, gene by gene: pure noise. Intervals are of
the paired difference of mean Pearson over targets, blocks of 500 um drawn with replacement within the held-out section,
2,000 times, and averaged over sections and seeds: they speak of these tissues, the last column of others.
"""

import argparse
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray
from spatialdata import SpatialData

import agl_sc
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import section_of
from agl_sc.core.config import Denoise, Method, Search
from agl_sc.core.linear.baselines import ridge_cv
from agl_sc.datasets import toy_tissue
from agl_sc.tl import GradientSearch, TrainConfig, train
from agl_sc.tl._model.data import training_data

FloatArray = NDArray[np.float64]
BLOCK_PX = 500.0  # at 1 um per pixel
N_DRAWS = 2000
STARTS = (0.1, 0.5, 0.9)
SEARCHES: tuple[Search, ...] = ("path", "race", "gradient")
DKGSB = [f"dkgsb {search} .5" for search in SEARCHES]
DENOISED: dict[str, Method] = {"pgl denoised": "pgl", "denoiser": "denoiser", "agl denoised": "agl"}
ROLES = [("pgl denoised", "pgl"), ("denoiser", "pgl denoised"), ("denoiser", "pgl"), ("agl denoised", "agl")]
PAIRS = [("pgl", "ridge"), ("agl", "pgl"), *ROLES, *((name, arm) for name in DKGSB for arm in ("agl", "pgl"))]
REFIT_PAIRS = [("pgl", "ridge"), ("agl", "pgl"), *ROLES, ("dkgsb path .5", "agl"), ("dkgsb path .5", "pgl")]


@dataclass(frozen=True)
class Outcome:
    """What one arm did on one toy."""

    draws: FloatArray
    """Mean Pearson over targets and held-out sections: as it is, then with blocks drawn again, (1 + N_DRAWS,)."""
    cutoff: float
    """Of the best epoch, NaN without a search."""
    last: float
    """Of the last epoch, NaN without a search."""
    seconds: float
    """Wall time of training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--searches", nargs="+", default=SEARCHES, choices=SEARCHES)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    warnings.simplefilter("ignore")
    planted, noise = {}, {}
    for seed in arguments.seeds:
        begin = time.perf_counter()
        sdata = prepared(seed)
        print(f"seed {seed}: drawn and embedded in {time.perf_counter() - begin:.0f} s", flush=True)
        planted[seed] = outcomes(sdata, arguments.searches, STARTS)
        shuffle_auxiliary(sdata, seed)
        noise[seed] = outcomes(sdata, arguments.searches, (0.5,))
    truth = sdata.tables["table"].uns["truth"]["cutoff_star"]
    print(f"\nPlanted: cutoff found, where the truth is {truth:.3f}\n")
    found = cutoffs(planted)
    within = ((found[arguments.seeds] - truth).abs() <= 0.1).sum(axis=1)
    print(found.assign(within=within).to_string(float_format="{:.3f}".format))
    report(planted)
    print("\nPure noise: cutoff found, where no auxiliary gene helps\n")
    print(cutoffs(noise).to_string(float_format="{:.3f}".format))
    report(noise)


def prepared(seed: int) -> SpatialData:
    """Toy sections ready for training."""
    sdata = toy_tissue(n_sections=4, seed=seed)
    agl_sc.pp.split(sdata, by="section", validation=["section_2", "section_3"], test=["section_4"])
    agl_sc.pp.target_genes(sdata, genes=list(sdata.tables["table"].uns["truth"]["targets"]))
    agl_sc.pp.rank_auxiliary(sdata, score="truth_prior")
    agl_sc.pp.embed(sdata)
    return sdata


def shuffle_auxiliary(sdata: SpatialData, seed: int) -> None:
    """Give every auxiliary gene the counts of other spots of the same section, each gene in its own order."""
    table = sdata.tables["table"]
    rng = np.random.default_rng(seed)
    dense = table.X.toarray()
    auxiliary = np.flatnonzero((table.var["truth_role"] != "target").to_numpy())
    for section in section_of(table).unique():
        rows = np.flatnonzero((section_of(table) == section).to_numpy())
        for gene in auxiliary:
            dense[rows, gene] = dense[rng.permutation(rows), gene]
    table.X = scipy.sparse.csr_matrix(dense)


def outcomes(sdata: SpatialData, searches: Sequence[Search], starts: tuple[float, ...]) -> dict[str, Outcome]:
    """Every arm on one toy."""
    score = scorer(sdata)
    arms: dict[str, tuple[Method, TrainConfig]] = {
        "pgl": ("pgl", TrainConfig(refit=False)),
        "agl": ("agl", TrainConfig(refit=False)),
        **{name: (method, TrainConfig(denoise=Denoise(), refit=False)) for name, method in DENOISED.items()},
    }
    for search, start in itertools.product(searches, starts):
        config = TrainConfig(search=search, gradient=GradientSearch(start_cutoff=start), refit=False)
        arms[f"dkgsb {search} .{start * 10:.0f}"] = "dkgsb", config
    refitted = {"pgl", "agl", *DENOISED, "dkgsb path .5"} & set(arms)
    arms |= {
        f"{name}, refit": (arms[name][0], replace(arms[name][1], refit=True))
        for name in sorted(refitted, key=list(arms).index)
    }
    found = {"ridge": ridge(sdata, score, refit=False), "ridge, refit": ridge(sdata, score, refit=True)}
    return found | {name: trained(sdata, score, arm) for name, arm in arms.items()}


def ridge(sdata: SpatialData, score: Callable[[FloatArray], FloatArray], *, refit: bool) -> Outcome:
    """Ridge on the spots that the arms are fitted on."""
    data = training_data(Study.of(sdata))
    spots = data.spots(data.train | data.validation if refit else data.train, data.n_targets)
    return Outcome(
        score(data.features @ ridge_cv(spots.features, spots.expression.columns(0, data.n_targets))),
        np.nan,
        np.nan,
        0.0,
    )


def trained(sdata: SpatialData, score: Callable[[FloatArray], FloatArray], arm: tuple[Method, TrainConfig]) -> Outcome:
    """One method of the package."""
    method, config = arm
    table = sdata.tables["table"]
    begin = time.perf_counter()
    model = train(sdata, method=method, config=config)
    seconds = time.perf_counter() - begin
    draws = score(table[:, model.genes[: model.n_targets]].layers["agl"])
    if model.cutoff is None:
        return Outcome(draws, np.nan, np.nan, seconds)
    last = model.cutoff_trace["cutoff"].iloc[-1] if config.search == "gradient" else model.cutoff
    return Outcome(draws, model.cutoff, last, seconds)


def scorer(sdata: SpatialData) -> Callable[[FloatArray], FloatArray]:
    """From predictions of the targets to their mean Pearson, as it is and in every draw of blocks."""
    table = sdata.tables["table"]
    data = training_data(Study.of(sdata))
    names = section_of(table).to_numpy()
    measured = data.measured(np.ones(table.n_obs, dtype=bool), data.n_targets)
    held_out = [name for name in np.unique(names) if (table.obs["agl_split"][names == name] == "test").all()]

    def score(predicted: FloatArray) -> FloatArray:
        rng = np.random.default_rng(0)  # the same blocks for every arm
        return np.asarray(np.mean([drawn(predicted, name, rng) for name in held_out], axis=0))

    def drawn(predicted: FloatArray, name: str, rng: np.random.Generator) -> FloatArray:
        rows = names == name
        corner = np.floor(np.asarray(table.obsm["spatial"])[rows] / BLOCK_PX)
        block = np.unique(corner, axis=0, return_inverse=True)[1].ravel()
        x, y = (v[rows] - v[rows].mean(axis=0) for v in (measured, np.asarray(predicted, dtype=float)))
        n_blocks = block.max() + 1
        member = np.equal.outer(np.arange(n_blocks), block).astype(float)
        times = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=N_DRAWS)
        weights = np.vstack([np.ones(n_blocks), times]) @ member
        n = weights.sum(axis=1, keepdims=True)
        mean_x, mean_y, xx, yy, xy = (weights @ v / n for v in (x, y, x * x, y * y, x * y))
        correlation = (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))
        return np.asarray(np.nan_to_num(correlation).mean(axis=1))

    return score


def cutoffs(found: dict[int, dict[str, Outcome]]) -> pd.DataFrame:
    """Cutoff by search and start, a column per seed."""
    table = pd.DataFrame({seed: {name: o.cutoff for name, o in arms.items()} for seed, arms in found.items()})
    table["last epoch"] = [np.mean([arms[name].last for arms in found.values()]) for name in table.index]
    return table.dropna()


def report(found: dict[int, dict[str, Outcome]]) -> None:
    """Print the Pearson of every arm and the differences between arms."""
    table = pd.DataFrame({seed: {name: o.draws[0] for name, o in arms.items()} for seed, arms in found.items()})
    seconds = [np.mean([arms[name].seconds for arms in found.values()]) for name in table.index]
    print("\nMean Pearson of the targets on held-out sections, by seed; seconds of training\n")
    print(table.assign(mean=table.mean(axis=1), seconds=seconds).to_string(float_format="{:.3f}".format))
    print("\nDifference, paired over blocks: mean [95 % interval]; seeds above zero\n")
    for one, other in [*PAIRS, *((f"{one}, refit", f"{other}, refit") for one, other in REFIT_PAIRS)]:
        if {one, other} <= set(table.index):
            difference = np.stack([arms[one].draws - arms[other].draws for arms in found.values()])
            low, high = np.quantile(difference[:, 1:].mean(axis=0), (0.025, 0.975))
            above = f"{(difference[:, 0] > 0).sum()} of {len(difference)}"
            print(f"{one:20s} - {other:12s} {difference[:, 0].mean():+.4f} [{low:+.4f}, {high:+.4f}]  {above}")


if __name__ == "__main__":
    main()
