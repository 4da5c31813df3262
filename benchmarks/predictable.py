"""Which genes H&E shows in two sections of mouse brain, all that are detected: seconds, peak memory, and the best.

    python benchmarks/predictable.py ../shared/data [--figure genes.png] [--quick]

Features are made before the clock starts: those of ``pp.embed`` by default, or of the tile alone with ``--quick``. Wall-clock and
processor seconds are printed, for the machine may be shared.
"""

import argparse
import logging
import resource
import time
import warnings
from pathlib import Path

import agl_sc

SECTIONS = ("A1", "B1")
KNOWN = ("Nrgn", "Hpca", "Slc17a7")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.simplefilter("ignore")
    folders = {name: arguments.data / "visium" / f"mousebrain_V10F24-078_{name}" for name in SECTIONS}
    sdata = agl_sc.io.read_visium(folders)
    views = {"context": (), "orientations": 1} if arguments.quick else {}
    agl_sc.pp.embed(sdata, mpp="image", tile_px=32, **views)  # type: ignore[arg-type]
    wall, own = time.perf_counter(), time.process_time()
    genes = agl_sc.tl.predictable_genes(sdata)
    wall, own = time.perf_counter() - wall, time.process_time() - own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{len(genes)} genes: {wall:.0f} s, {own:.0f} s of processor time; peak memory {peak:.2f} GiB")
    print(genes.head(20).round(3).to_string())
    print(genes.loc[list(KNOWN)].round(3).to_string())
    if arguments.figure:
        agl_sc.pl.predictable_genes(sdata, save=arguments.figure)


if __name__ == "__main__":
    main()
