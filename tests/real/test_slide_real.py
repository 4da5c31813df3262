"""Tissue of real slides."""

from pathlib import Path

import numpy as np
import pandas as pd

from agl_sc._sdata.mask import mask_of
from agl_sc.io import read_slide


def test_spots_that_were_selected_by_hand_are_in_the_mask_fat_too_and_glass_is_not(data_dir: Path) -> None:
    folder = data_dir / "her2st"
    sdata = read_slide(folder / "B4.jpg", image_mpp=0.69)
    mask = mask_of(sdata, "B4", "B4_image")
    assert mask is not None
    table = pd.read_csv(folder / "B4_selection.tsv", sep="\t").query("selected == 1")
    selected = table[["pixel_x", "pixel_y"]].to_numpy()
    from_image = np.linalg.inv(mask.to_image)
    column, row = (selected @ from_image[:2, :2].T + from_image[:2, 2]).astype(int).T
    assert mask.is_tissue[row, column].mean() >= 0.99
    assert 0.25 < mask.is_tissue.mean() < 0.3  # of the slide; by hand 284 of 1,064 spots of the array, or .27
    assert len(sdata["table"]) > 1300
