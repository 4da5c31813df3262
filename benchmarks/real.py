"""Every method in the same folds on real sections, by the design that is named; writes the report of tl.benchmark.

    python benchmarks/real.py ../shared/data sections report     # HER2ST, one section held out at a time
    python benchmarks/real.py ../shared/data patients report     # HER2ST, one patient predicted from the other
    python benchmarks/real.py ../shared/data blocks report       # HER2ST, spatial blocks within sections
    python benchmarks/real.py ../shared/data spots report        # HER2ST, random spots, which flatters
    python benchmarks/real.py ../shared/data mousebrain report   # Visium mouse brain A1 from B1 and back, hires image

A run that is stopped goes on where it was. Features are those of ``pp.embed`` by default. Peak memory and the seconds of every step are printed.
"""

import argparse
import logging
import resource
import time
import warnings
from pathlib import Path
from typing import Any

from spatialdata import SpatialData

import agl_sc
from agl_sc.io._st import read_st_folder

METHODS = (
    "mean", "knn", "ridge", "weighted_ridge", "pca_ridge", "reduced_rank_ridge", "gradient_boosting", "random_forest",
    "pgl", "agl", "dkgsb", "random_k", "dkgsb_dispersion", "dkgsb_mean", "dkgsb_moran", "dkgsb_correlation",
    "uncertainty", "cosine", "auxilearn", "amal", "fixed_k", "target_weight",
)  # fmt: skip
DESIGNS: dict[str, dict[str, Any]] = {
    "sections": {"by": "section"},
    "patients": {"by": "patient"},
    "blocks": {"by": "block", "n_folds": 5},
    "spots": {"by": "spot", "n_folds": 5},
    "mousebrain": {"by": "section"},
}
TILES: dict[str, dict[str, Any]] = {"mousebrain": {"mpp": "image", "tile_px": 32}}
"""How a design is embedded, if not by default: 27 px of the hires image are a tile."""


def sections_of(data: Path, design: str) -> SpatialData:
    """Sections of a design, with features to be made."""
    if design == "mousebrain":
        folders = {name: data / "visium" / f"mousebrain_V10F24-078_{name}" for name in ("A1", "B1")}
        return agl_sc.io.read_visium(folders)
    names = ["B4", "C2", "C3", "C4", "C5", "C6"]
    return read_st_folder(data / "her2st", sections=names, patient={name: name[0] for name in names})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("design", choices=list(DESIGNS))
    parser.add_argument("report", type=Path, help="folder for the report")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--orientations", type=int, default=2, help="ways of laying a tile that features are averaged over"
    )
    parser.add_argument("--encoders", nargs="+", default=["efficientnet_lite0"], help="several are put side by side")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.simplefilter("ignore")
    clock = time.perf_counter()
    sdata = sections_of(arguments.data, arguments.design)
    seen: dict[str, Any] = {"encoder": arguments.encoders, "orientations": arguments.orientations}
    agl_sc.pp.embed(sdata, **TILES.get(arguments.design, {}), **seen)
    print(f"read and embedded in {time.perf_counter() - clock:.0f} s", flush=True)
    clock = time.perf_counter()
    result = agl_sc.tl.benchmark(
        sdata,
        methods=arguments.methods,
        seeds=arguments.seeds,
        checkpoint=arguments.report.with_name(f"{arguments.report.name}.runs"),
        **DESIGNS[arguments.design],
    )
    result.save(arguments.report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(arguments.methods)} methods in {time.perf_counter() - clock:.0f} s; peak memory {peak:.2f} GiB")
    print(result.to_markdown())


if __name__ == "__main__":
    main()
