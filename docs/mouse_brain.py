"""Draw the figure that README and start page open with: ``python docs/mouse_brain.py ../shared/data docs/mouse_brain.png``.

Two Visium sections of mouse brain (Gracia Villacampa et al., Cell Genomics 2021, CC BY 4.0): one to learn from, the other,
which the model has not seen, to predict. The image is the one that Space Ranger shrank to 2,000 px. Prints what it took.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import matplotlib as mpl

import agl_sc

TRAIN, TEST = "A1", "B1"
GENES = ["Nrgn", "Plp1"]


def main() -> None:
    """Read, split, embed, train, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("figure", type=Path)
    given = parser.parse_args()
    mpl.use("Agg")
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    folders = {name: given.data / "visium" / f"mousebrain_V10F24-078_{name}" for name in (TRAIN, TEST)}
    sdata = agl_sc.io.read_visium(folders)
    agl_sc.pp.split(sdata, by="section", test=TEST, validation=0.2)
    agl_sc.pp.embed(sdata, mpp="image", tile_px=32, orientations=1)
    embedded = time.perf_counter()
    agl_sc.tl.train(sdata)
    metrics = agl_sc.tl.evaluate(sdata, metrics=["pearson"])
    agl_sc.pl.spatial_pred(
        sdata, GENES, sections=TEST, image_panel=True, scale="own", ncols=1, save=given.figure, show=False
    )
    scores = ", ".join(f"{row.gene} {row.pearson:.2f}" for row in metrics[metrics["gene"].isin(GENES)].itertuples())
    seconds = f"{embedded - start:.0f} s to read and embed, {time.perf_counter() - embedded:.0f} s to train and draw"
    found = f"{len(metrics)} genes, mean Pearson {metrics['pearson'].mean():.3f}; {scores}"
    sys.stdout.write(f"{sdata['table'].n_obs} spots: {seconds}; {found}\n")


if __name__ == "__main__":
    main()
