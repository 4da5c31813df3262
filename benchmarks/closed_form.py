"""What the closed form costs: the path over 64 cutoffs against one ridge fit, a fold's seeds and arms that share it against
those that make it alone, and the peak memory of a large start.

    python benchmarks/closed_form.py                       # all, one thread, about twenty minutes, 8 GB
    python benchmarks/closed_form.py --rows fold
    python benchmarks/closed_form.py --shrink 10           # all sizes by ten: a look, not a measurement

Time is CPU time of one process, the least over rounds in which both sides take turns; memory is the peak resident size of a
child process, made of sparse counts in blocks of spots. Goals: the path within 10 times a ridge fit, memory below 8 GB.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from agl_sc.core.arrays import Floats
from agl_sc.core.config import TrainConfig
from agl_sc.core.linear.choose_by_validation import path_search
from agl_sc.core.linear.closed_form import LowRank, RidgeBasis, reduced_rank_ridge, ridge_basis
from agl_sc.core.once import NOT_SHARED, Once
from agl_sc.core.spots.expression import Expression
from agl_sc.core.spots.spots import Spots, Validation
from agl_sc.core.training.plan import Planner
from agl_sc.core.weighting import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

N_TARGETS, N_FIELDS, DENSITY = 50, 100, 0.05
PATH_SIZES, MEMORY_SIZES = (5_000, 18_000, 1_280), (100_000, 18_000, 3_000)
FOLD_SIZES, FOLD_ARMS, N_SEEDS = (1_000, 17_500, 9_216), ("pgl", "agl", "dkgsb"), 3
"""Of HER2ST with the default features, one section held out."""
GOAL_RATIO, GOAL_GB = 10.0, 8.0


def ridge(basis: RidgeBasis, alpha: float) -> Floats:
    """Coefficients of all genes, (n_features, n_genes)."""
    shrunk = basis.singular_values / (basis.singular_values**2 + alpha)
    coefficients: Floats = (basis.loadings * shrunk) @ basis.genes
    return coefficients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=["path", "fold", "memory"], default=["path", "fold", "memory"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shrink", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    memory_sizes = tuple(size // arguments.shrink for size in MEMORY_SIZES)
    if arguments.child:
        closed_form_start(*memory_sizes)
        return
    if "path" in arguments.rows:
        path_against_ridge(tuple(size // arguments.shrink for size in PATH_SIZES), arguments.rounds)
    if "fold" in arguments.rows:
        shared_against_alone(tuple(size // arguments.shrink for size in FOLD_SIZES))
    if "memory" in arguments.rows:
        peak_memory(arguments.shrink, memory_sizes)


def path_against_ridge(sizes: tuple[int, ...], rounds: int) -> None:
    """Both sides on the same arrays, taking turns."""
    n_spots, n_genes, n_features = sizes
    print(f"path over 64 cutoffs, {n_spots} spots x {n_genes} genes x {n_features} features, double precision")
    features, layer = planted(n_spots + n_spots // 5, n_genes, n_features)
    features = features.astype(np.float64)
    held_out = layer[n_spots:, :N_TARGETS].toarray().astype(float)
    validation = Validation(features[n_spots:], held_out, np.zeros(len(held_out), dtype=np.int64))
    expression = Expression.fitted(layer[:n_spots], np.zeros(n_spots, dtype=np.int64))
    features, genes, alpha = features[:n_spots], expression.columns(0, n_genes), float(n_features)
    basis = ridge_basis(features, expression)
    sides: dict[str, Callable[[], Any]] = {
        "path, decomposition reused": lambda: path_search(basis, validation, alpha=alpha),
        "path, decomposition included": lambda: path_search(ridge_basis(features, expression), validation, alpha=alpha),
        "ridge by scikit-learn": lambda: Ridge(alpha=alpha, fit_intercept=False).fit(features, genes),
        "ridge by our basis": lambda: ridge(ridge_basis(features, expression), alpha),
    }
    seconds = {name: float("inf") for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.process_time()
            side()
            seconds[name] = min(seconds[name], time.process_time() - start)
    for name, took in seconds.items():
        print(f"  {name:<30} {took:8.2f} s")
    for path in list(sides)[:2]:
        for ridge in list(sides)[2:]:
            print(f"  {path} / {ridge}: {seconds[path] / seconds[ridge]:.2f} (goal {GOAL_RATIO:.0f})")


def shared_against_alone(sizes: tuple[int, ...]) -> None:
    """Everything in closed form of a fold's arms and seeds, with validation spots and again on all, on both sides."""
    n_spots, n_genes, n_features = sizes
    print(f"{len(FOLD_ARMS)} arms x {N_SEEDS} seeds, {n_spots} spots x {n_genes} genes x {n_features} features")
    features, layer = planted(n_spots, n_genes, n_features)
    sections = np.arange(n_spots) * 5 // n_spots
    training = sections > 0  # of five sections the first picks
    seconds = {"every run alone": 0.0, "shared": 0.0}
    shared = Once()
    found: dict[str, list[LowRank]] = {side: [] for side in seconds}
    for arm in FOLD_ARMS:
        n = N_TARGETS if arm == "pgl" else n_genes
        train, both = (spots(features[rows], layer[rows, :n], sections[rows]) for rows in (training, sections >= 0))
        held_out = Validation(features[~training], layer[~training, :N_TARGETS].toarray(), sections[~training])
        for side, once in [("every run alone", Once(NOT_SHARED)), ("shared", shared)] * N_SEEDS:
            how: dict[str, Any] = {
                "n_targets": N_TARGETS,
                "method": METHODS[arm],
                "config": TrainConfig(),
                "once": once,
            }
            start = time.process_time()
            plan = Planner.of(train, held_out, **how).plan(_no_training)
            again, _ = Planner.of(both, None, **how).start(plan.choices)
            seconds[side] += time.process_time() - start
            found[side] += [plan.start, again]
    same = all(
        np.array_equal(a.trunk, b.trunk) and np.array_equal(a.head, b.head)
        for a, b in zip(*found.values(), strict=True)
    )
    for side, took in seconds.items():
        print(f"  {side:<30} {took:8.2f} s")
    print(f"  alone / shared: {seconds['every run alone'] / seconds['shared']:.2f}; the same to the bit: {same}")


def spots(features: Floats, layer: scipy.sparse.csr_matrix, sections: NDArray[np.int64]) -> Spots:
    """Spots of equal depth."""
    return Spots(features, Expression.fitted(layer, sections), sections)


def _no_training(*_: object) -> float:
    msg = "no arm of this benchmark picks by training"
    raise RuntimeError(msg)


def peak_memory(shrink: int, sizes: tuple[int, ...]) -> None:
    """Of a child process, which also makes the data."""
    print("closed-form start, {} spots x {} genes x {} features".format(*sizes), flush=True)
    command = [sys.executable, str(Path(__file__)), "--child", "--shrink", str(shrink)]
    subprocess.run(command, check=True)


def closed_form_start(n_spots: int, n_genes: int, n_features: int) -> None:
    """Basis, one reduced-rank fit, and the path; resident size after every step."""
    features, layer = planted(n_spots, n_genes, n_features)
    print(f"  {layer.nnz / 1e6:.0f} million counts, {layer.nnz / n_spots / n_genes:.1%} of the matrix")
    lap("data")
    expression = Expression.fitted(layer, np.arange(n_spots) * 8 // n_spots)
    lap("means and spread")
    basis = ridge_basis(features, expression)
    lap("ridge basis")
    reduced_rank_ridge(basis, np.ones(n_genes), alpha=float(n_features), rank=64)
    lap("reduced-rank ridge")
    held_out = slice(0, n_spots // 10)  # scores mean nothing here
    targets = expression.columns(0, N_TARGETS)[held_out]
    path_search(basis, Validation(features[held_out], targets, expression.sections[held_out]), alpha=float(n_features))
    lap(f"path (goal for the peak: {GOAL_GB:.0f} GB)")


def lap(name: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"  {name:<34} CPU time so far {time.process_time():7.1f} s, peak so far {peak:.2f} GB", flush=True)


def planted(n_spots: int, n_genes: int, n_features: int) -> tuple[NDArray[np.float32], scipy.sparse.csr_matrix]:
    """Features and sparse log counts of common fields, strong ones and weak ones, made a block of spots at a time."""
    rng = np.random.default_rng(0)
    strength = 1 / np.sqrt(np.arange(1, N_FIELDS + 1, dtype=np.float32))
    to_features, to_genes = (rng.normal(size=(N_FIELDS, n)).astype(np.float32) for n in (n_features, n_genes))
    level = np.float32(np.log(DENSITY)) + rng.normal(size=n_genes).astype(np.float32) - 0.5
    features, blocks = np.empty((n_spots, n_features), dtype=np.float32), []
    for start in range(0, n_spots, 1000):
        rows = slice(start, min(start + 1000, n_spots))
        fields = rng.normal(size=(rows.stop - start, N_FIELDS)).astype(np.float32) * strength
        features[rows] = fields @ to_features + rng.standard_normal((len(fields), n_features), dtype=np.float32)
        rate = np.exp(0.3 * (fields @ to_genes) + level)
        counts = rng.random(rate.shape, dtype=np.float32) < rate
        blocks.append(scipy.sparse.csr_matrix(counts * np.log1p(np.ceil(4 * rate))).astype(np.float32))
    features -= features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return features, scipy.sparse.vstack(blocks, format="csr")


if __name__ == "__main__":
    main()
