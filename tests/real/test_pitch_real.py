"""The spot pitch of real sections: complete ones keep their value, and what is left of them tells the same or nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from agl_sc._sdata.geometry import known_pitch_px, spot_pitch_px
from agl_sc._sdata.pitch import array_pitch_px, lattice_pitch_px

SECTIONS = [
    *(("st", f"her2st/{name}_selection.tsv") for name in ("B4", "C2", "C3", "C4", "C5", "C6")),
    *(
        ("visium", f"visium/{name}/spatial/tissue_positions_list.csv")
        for name in ("mousebrain_V10F24-078_A1", "mousebrain_V10F24-078_B1", "kidneyorganoid_V19D02-085_B1")
    ),
]


def read(technology: str, path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Centres and array positions of the spots on tissue."""
    if technology == "st":
        spots = pd.read_csv(path, sep="\t").query("selected == 1")
        return spots[["pixel_x", "pixel_y"]].to_numpy(dtype=float), spots[["x", "y"]].to_numpy()
    spots = pd.read_csv(path, header=None)
    spots = spots[spots[1] == 1]
    return spots[[5, 4]].to_numpy(dtype=float), spots[[2, 3]].to_numpy()


@pytest.mark.parametrize(("technology", "file"), SECTIONS)
def test_pitch_of_a_section_and_of_what_is_left_of_it(data_dir: Path, technology: str, file: str) -> None:
    centres, array = read(technology, data_dir / file)
    pitch = spot_pitch_px(centres, technology)
    assert known_pitch_px(centres, technology) == known_pitch_px(centres, technology, array=array) == pitch
    rng = np.random.default_rng(0)
    n_known = 0
    for fraction in np.repeat([0.05, 0.1, 0.2, 0.35, 0.6, 0.9], 10):
        kept = rng.random(len(centres)) < fraction
        assert array_pitch_px(centres[kept], array[kept], technology) == pytest.approx(pitch, rel=0.02)
        by_lattice = lattice_pitch_px(centres[kept], technology)
        assert np.isnan(by_lattice) or by_lattice == pytest.approx(pitch, rel=0.02)
        n_known += bool(np.isfinite(by_lattice))
    assert n_known >= 40
