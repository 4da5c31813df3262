"""Peak memory and time of training, prediction, evaluation and drawing, from a Visium section to half a million bins.

    python benchmarks/memory.py                                     # all sizes, one thread, some hours
    python benchmarks/memory.py --sizes 20000x1280 100000x1280      # some of them, spots x features

Every size is a child process of its own: synthetic sections with sparse counts (300 of a spot) of 18,000 genes and features
in place of an encoder's, then `pp.use_features`, `pp.split`, `pp.target_genes`, `pp.rank_auxiliary`, `tl.train`, `tl.predict`,
`tl.evaluate`, `pl.spatial_pred`, one after the other as a user calls them, with their defaults but for the number of epochs.
Seconds are of the processor; memory is the peak resident size of the step, and at the end of the process, data that the steps
start from included; `--limit` refuses the process more. Goal: at most 12 GB, and training
500,000 spots at most 5.5 times as long as 100,000.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

SIZES = ("4000x1280", "20000x1280", "100000x64", "100000x1280", "20000x9216", "500000x1280")
N_SECTIONS, N_PROGRAMMES, N_COUNTS, BLOCK = 4, 12, 300, 10_000
GOAL_GB, GOAL_GROWTH = 12.0, 5.5
PEAKS: list[float] = []
"""Of earlier steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="spots x features")
    parser.add_argument("--genes", type=int, default=18_000)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--limit", type=float, help="GB of memory that a process may have")
    parser.add_argument("--stacks", action="store_true", help="say where memory grew")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        if asked.limit:
            resource.setrlimit(resource.RLIMIT_DATA, (int(asked.limit * 1e9),) * 2)
        n_spots, n_features = map(int, asked.sizes[0].split("x"))
        whole_row((n_spots, n_features, asked.genes), asked.epochs, stacks=asked.stacks)
        return
    rows = [row for size in asked.sizes if (row := in_child(size, asked)) is not None]
    print(f"\n{'spots x features':>18} {'GB':>6} {'train s':>9} {'all s':>9}")
    for row in rows:
        seconds = row["seconds"]
        print(f"{row['size']:>18} {row['gb']:6.1f} {seconds['train']:9.0f} {sum(seconds.values()):9.0f}")
    trained = {row["size"]: row["seconds"]["train"] for row in rows}
    for small, large in ((a, b) for a in trained for b in trained if a == "100000x1280" and b == "500000x1280"):
        print(f"train {small} -> {large}: {trained[large] / trained[small]:.2f} times (goal {GOAL_GROWTH})")
    print(f"largest {max((row['gb'] for row in rows), default=float('nan')):.1f} GB (goal {GOAL_GB})")


def in_child(size: str, asked: argparse.Namespace) -> dict[str, Any] | None:
    """What a process of its own says of one size; None where it failed."""
    print(f"\n{size} x {asked.genes} genes", flush=True)
    command = [sys.executable, __file__, "--child", "--sizes", size, "--genes", str(asked.genes)]
    command += ["--limit", str(asked.limit)] if asked.limit else []
    command += ["--epochs", str(asked.epochs), *(["--stacks"] if asked.stacks else [])]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout or ():
            print(line, end="", flush=True)
            last = line
    if child.returncode:
        print(f"failed with {child.returncode}")
        return None
    return {"size": size, **json.loads(last)}


def whole_row(sizes: tuple[int, int, int], n_epochs: int, *, stacks: bool) -> None:
    """Every step in turn, as a user takes them."""
    import matplotlib as mpl

    mpl.use("Agg")
    warnings.simplefilter("ignore")
    from agl_sc import pl, pp, tl

    if stacks:
        threading.Thread(target=watch, daemon=True).start()
    seconds: dict[str, float] = {}
    sdata, features = sections(*sizes)
    said: dict[str, Any] = {"encoder": "synthetic", "tile_px": 224, "mpp": 0.5}
    config = tl.TrainConfig(max_epochs=n_epochs)
    step("use_features", seconds, partial(pp.use_features, sdata, features, **said))
    del features
    step("split", seconds, lambda: pp.split(sdata, by="section"))
    step("target_genes", seconds, lambda: pp.target_genes(sdata))
    step("rank_auxiliary", seconds, lambda: pp.rank_auxiliary(sdata))
    model = step("train", seconds, lambda: tl.train(sdata, config=config))
    step("predict", seconds, lambda: tl.predict(sdata, model))
    scores = step("evaluate", seconds, lambda: tl.evaluate(sdata))
    step("spatial_pred", seconds, lambda: pl.spatial_pred(sdata, model.targets[:2], sections="section_1", show=False))
    print(f"{model.n_predicted} genes predicted; targets' Pearson {scores['pearson'].mean():.3f}")
    print(json.dumps({"gb": max(*PEAKS, peak_gb()), "seconds": seconds}), flush=True)


def step(name: str, seconds: dict[str, float], call: Callable[[], Any]) -> Any:
    """Take a step, and say what it took."""
    start = time.process_time()
    PEAKS.append(peak_gb())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now what is resident now
    found = call()
    seconds[name] = time.process_time() - start
    print(f"{name:>16} {seconds[name]:8.1f} s {peak_gb():6.2f} GB", flush=True)
    return found


def peak_gb() -> float:
    """Peak resident size since it was last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def watch() -> None:
    """Where memory grew by a twentieth."""
    highest = 1e9
    while True:
        time.sleep(0.05)
        resident = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096.0
        if resident > 1.05 * highest:
            highest = resident
            frames = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])
            own = [
                f"{Path(each.filename).stem}.{each.name}:{each.lineno}" for each in frames if "agl_sc" in each.filename
            ]
            print(f"    {resident / 1e9:5.2f} GB in {' > '.join(own[-5:])}", file=sys.stderr, flush=True)


def sections(n_spots: int, n_features: int, n_genes: int) -> tuple[Any, NDArray[np.float32]]:
    """Squares of bins whose features and counts follow the same smooth programmes."""
    from anndata import AnnData
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel

    randomness = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n_spots / N_SECTIONS)))
    number = np.arange(n_spots)
    section, within = number % N_SECTIONS, number // N_SECTIONS
    places = np.column_stack([within % side, within // side]).astype(float)
    mixing = randomness.standard_normal((N_PROGRAMMES, n_features)).astype(np.float32)
    genes = np.cumsum(
        randomness.gamma(2.0, size=(N_PROGRAMMES, n_genes)) * randomness.lognormal(sigma=2.2, size=n_genes), axis=1
    )
    genes /= genes[:, -1:]
    waves = randomness.normal(scale=6 / side, size=(2, N_PROGRAMMES))
    features, counts = np.empty((n_spots, n_features), dtype=np.float32), []
    for start in range(0, n_spots, BLOCK):
        rows = slice(start, min(start + BLOCK, n_spots))
        programmes = np.sin(places[rows] @ waves + section[rows, None])
        noise = randomness.standard_normal((len(programmes), n_features), dtype=np.float32)
        features[rows] = programmes.astype(np.float32) @ mixing + noise
        counts.append(drawn(programmes, genes, randomness))
    names = np.array([f"section_{code + 1}" for code in range(N_SECTIONS)])
    obs = pd.DataFrame({"region": pd.Categorical(names[section]), "instance": within}, index=number.astype(str))
    var = pd.DataFrame(index=[f"gene_{gene}" for gene in range(n_genes)])
    table = AnnData(scipy.sparse.vstack(counts, format="csr"), obs=obs, var=var)
    table = TableModel.parse(table, region=list(names), region_key="region", instance_key="instance")
    shapes = {
        name: ShapesModel.parse(100 * places[section == code], geometry=0, radius=27.0)
        for code, name in enumerate(names)
    }
    return SpatialData(shapes=shapes, tables={"table": table}), features


def drawn(
    programmes: NDArray[np.float64], genes: NDArray[np.float64], randomness: np.random.Generator
) -> scipy.sparse.csr_matrix:
    """Counts of some spots: each of a programme, which are more or less active, and of a gene of that programme."""
    share = np.exp(2 * programmes)
    share = np.cumsum(share / share.sum(axis=1, keepdims=True), axis=1)
    uniform = randomness.random((len(share), N_COUNTS))
    which = sum((uniform > share[:, [number]]).astype(int) for number in range(N_PROGRAMMES - 1))
    found = np.empty(uniform.shape, dtype=np.int64)
    for number in range(N_PROGRAMMES):
        inside = which == number
        found[inside] = np.searchsorted(genes[number], randomness.random(int(np.sum(inside))))
    rows = np.repeat(np.arange(len(share)), N_COUNTS)
    ones = np.ones(rows.size, dtype=np.float32)
    return scipy.sparse.coo_matrix((ones, (rows, found.ravel())), shape=(len(share), genes.shape[1])).tocsr()


if __name__ == "__main__":
    main()
