"""Spots beyond the training tissue are hatched where they are, and counted."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection
from spatialdata import SpatialData

from agl_sc import pl


def predicted_genes(sdata: SpatialData) -> list[str]:
    table = sdata["table"]
    return [str(name) for name in table.var_names[np.isfinite(table.layers["agl"]).any(axis=0)]]


def hatched(ax: mpl.axes.Axes) -> list[EllipseCollection]:
    return [each for each in ax.collections if isinstance(each, EllipseCollection) and each.get_gid() == "beyond"]


def test_hatches_lie_on_the_spots_beyond(sdata: SpatialData) -> None:
    genes = predicted_genes(sdata)
    table = sdata["table"]
    own = (table.obs["section"] == "C6").to_numpy()
    table.obs["agl_distance"] = np.where(own & (np.arange(table.n_obs) % 4 == 0), 1.0, 0.5)
    n_beyond = int((table.obs["agl_distance"] > 0.99).sum())
    axes = pl.spatial_pred(sdata, genes[:2], sections=["C2", "C6"], hatch_beyond=True)
    assert [[len(hatched(ax)) for ax in row] for row in axes] == [[0, 0], [0, 1], [0, 0], [0, 1]]
    (spots,) = hatched(axes[1, 1])
    assert len(np.asarray(spots.get_offsets())) == n_beyond
    assert spots.get_hatch() == "//////"
    assert f"hatched: {n_beyond} of {own.sum()} spots" in [text.get_text().split("\n")[0] for text in axes[1, 1].texts]
    assert not any(hatched(ax) for ax in pl.spatial_pred(sdata, genes[0]).ravel())


def test_slides_without_counts_are_hatched_too(sdata: SpatialData) -> None:
    genes = predicted_genes(sdata)
    sdata["table"].obs["agl_distance"] = 1.0
    sdata["table"].X = None
    axes = pl.spatial_pred(sdata, genes[:2], sections="C6", hatch_beyond=True)
    assert [len(hatched(ax)) for ax in axes[0]] == [0, 1, 1]


def test_unknown_distances_are_refused(sdata: SpatialData) -> None:
    genes = predicted_genes(sdata)
    with pytest.raises(KeyError, match=r"agl_distance.*is missing; run agl_sc.tl.predict with a model that knows it"):
        pl.spatial_pred(sdata, genes[0], hatch_beyond=True)
    with pytest.raises((TypeError, ValueError), match="hatch_beyond"):
        pl.spatial_pred(sdata, genes[0], hatch_beyond=1)  # type: ignore[arg-type]
