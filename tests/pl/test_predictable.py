"""Points, names and notes of the figure of predictable genes."""

from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData

from agl_sc import pl
from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import PredictableRecord, remember


@pytest.fixture
def scored(sdata: SpatialData) -> SpatialData:
    var = sdata.tables["table"].var
    var["agl_predictable_pearson"] = [0.6, 0.3, 0.05, 0.2, np.nan]
    var["agl_predictable_noise_ceiling"] = [0.8, 0.7, 0.6, np.nan, np.nan]
    var["agl_predictable_q_value"] = [0.001, 0.04, 0.5, 0.01, np.nan]
    remember(sdata.tables["table"], Keys(), PredictableRecord({"words": "2 sections, each predicted from the others"}))
    return sdata


def test_every_gene_with_a_ceiling_is_a_point(scored: SpatialData) -> None:
    ax = pl.predictable_genes(scored)
    grey, blue, line = ax.lines[0], ax.lines[1], ax.lines[3]
    np.testing.assert_allclose(np.asarray(grey.get_xydata()), np.array([[0.6, 0.05]]))
    np.testing.assert_allclose(np.asarray(blue.get_xydata()), np.array([[0.8, 0.6], [0.7, 0.3]]))
    assert line.get_label() == "noise ceiling reached"
    texts = [text.get_text() for text in ax.texts]
    assert {"ERBB2", "KRT8"} <= set(texts)
    assert "2 sections, each predicted from the others\n1 genes without a ceiling are not drawn" in texts
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.texts][:2] == ["not told from chance (1)", "shown by the H&E (2)"]


def test_no_names(scored: SpatialData) -> None:
    assert len(pl.predictable_genes(scored, n_names=0).texts) == 1


def test_refusals(sdata: SpatialData, scored: SpatialData, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="n_names=-1 is negative"):
        pl.predictable_genes(scored, n_names=-1, save=tmp_path / "x.png")
    scored.tables["table"].var["agl_predictable_noise_ceiling"] = np.nan
    with pytest.raises(ValueError, match="and a noise ceiling: their counts are too few"):
        pl.predictable_genes(scored)
    del sdata.tables["table"].var["agl_predictable_q_value"]
    with pytest.raises(KeyError, match=r"run agl_sc\.tl\.predictable_genes"):
        pl.predictable_genes(sdata)
