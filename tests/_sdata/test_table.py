"""Tables in as arrays: which table, which counts, which scale, and no trace of what failed."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import PaperRecord, SettingsRecord, SplitRecord, remember, remembered
from agl_sc._sdata.rollback import unchanged_on_failure
from agl_sc._sdata.sections import Section
from agl_sc._sdata.table import canonical, counts_of, get_table, near_matches, off_tissue, region_of, section_of

Unchanged = Callable[[SpatialData], AbstractContextManager[None]]
STOP = "stop"


def table(genes: str = "ABC") -> AnnData:
    counts = scipy.sparse.csr_matrix(np.arange(15, dtype=np.float32).reshape(5, 3))
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 5), "spot_id": list("vwxyz")}, index=list("12345"))
    adata = AnnData(counts, obs=obs)
    adata.var_names = list(genes)
    return TableModel.parse(adata, region="spots", region_key="region", instance_key="spot_id")


def wrap(**tables: AnnData) -> SpatialData:
    frame = gpd.GeoDataFrame({"geometry": shapely.points(np.eye(5)[:, :2]), "radius": 1.0}, index=list("vwxyz"))
    return SpatialData(shapes={"spots": ShapesModel.parse(frame)}, tables=tables)


BAD_TABLES = [
    pytest.param(
        table,
        {},
        TypeError,
        "sdata is a AnnData, not a SpatialData; .* convert an AnnData with agl_sc.io.from_anndata",
        id="AnnData",
    ),
    pytest.param(wrap, {}, KeyError, "sdata has no table; add one", id="no table"),
    pytest.param(
        lambda: wrap(table=table(), more=table()),
        {},
        ValueError,
        r"several tables \(more, table\); name one with table_key=",
        id="two tables",
    ),
    pytest.param(
        lambda: wrap(table=table()),
        {"table_key": "tables"},
        KeyError,
        "table_key='tables' is not in sdata; its tables are table",
        id="table unknown",
    ),
    pytest.param(
        lambda: wrap(table=table("ABA")),
        {},
        ValueError,
        r"1 gene names stand twice in the table \(A\); make them unique",
        id="duplicate genes",
    ),
]


@pytest.mark.parametrize(("make", "options", "error", "match"), BAD_TABLES)
def test_tables_that_cannot_be_used_are_refused(
    *, make: Callable[[], Any], options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        get_table(make(), **{"table_key": None, **options})


def test_a_table_is_taken_by_name_or_because_it_is_the_only_one() -> None:
    sdata = wrap(table=table(), more=table())
    assert get_table(sdata, "more") is sdata["more"]
    only_one = wrap(table=table())
    assert get_table(only_one, None) is only_one["table"]


def test_a_section_is_a_region_unless_obs_says_otherwise() -> None:
    adata = table()
    assert section_of(adata).tolist() == region_of(adata).tolist() == ["spots"] * 5
    adata.obs["section"] = list("vwxyz")
    assert section_of(adata).tolist() == list("vwxyz")


def make_section(**changes: Any) -> Section:
    square = np.array([[x, y] for x in range(5) for y in range(5)], dtype=float) * 100
    given = {"image_mpp": None, "technology": None, **changes}
    return Section(name="S", rows=np.arange(25), image_key="S_image", levels=(), centres=square, radius=1.0, **given)


def test_microns_per_pixel_stated_by_the_user_go_before_metadata_and_pitch() -> None:
    section = make_section(image_mpp=2.0)
    assert (section.mpp(), section.mpp(0.5)) == (2.0, 0.5)
    assert make_section(technology="st").mpp() == pytest.approx(2.0)
    assert make_section(image_mpp=1.96, technology="st").mpp(2.02) == 2.02


@pytest.mark.parametrize(
    ("changes", "stated", "match"),
    [
        pytest.param({}, None, "microns per pixel of 'S_image' are unknown; pass image_mpp=", id="unknown"),
        pytest.param(
            {"technology": "st"},
            1.0,
            "image_mpp=1 of 'S_image' contradicts the st spot pitch of 200 um",
            id="contradicted by pitch",
        ),
        pytest.param(
            {"technology": "st", "image_mpp": 3.0}, None, "image_mpp=3 .* that is 2 um/px", id="metadata contradicted"
        ),
        pytest.param({}, -1.0, "image_mpp=-1.0 of 'S_image' is not a positive number", id="negative"),
    ],
)
def test_a_scale_that_is_unknown_or_contradicted_is_refused(
    changes: dict[str, Any], stated: float | None, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        make_section(**changes).mpp(stated)


@pytest.mark.parametrize(
    "as_stored", [scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, np.asarray, scipy.sparse.csr_array]
)
@pytest.mark.parametrize("dtype", ["int64", "uint16", "float64"])
def test_counts_are_csr_float32_however_they_are_stored(as_stored: Callable[[Any], Any], dtype: str) -> None:
    adata, dense = table(), np.arange(15).reshape(5, 3).astype(dtype)
    adata.X, adata.layers["raw"] = as_stored(dense), as_stored(dense + 1)
    for layer, expected in ((None, dense), ("raw", dense + 1)):
        counts = counts_of(adata, layer)
        assert isinstance(counts, scipy.sparse.csr_matrix)
        assert counts.dtype == np.float32
        np.testing.assert_array_equal(counts.toarray(), expected)


def test_counts_are_not_the_users_own_to_write_to() -> None:
    adata = table()
    adata.X = adata.X.astype(np.float32)
    before = adata.X.copy()
    counts_of(adata, None).toarray()[:] = 7
    np.testing.assert_array_equal(adata.X.toarray(), before.toarray())


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        pytest.param(np.nan, "NaN or infinite values", id="NaN"),
        pytest.param(np.inf, "NaN or infinite values", id="infinite"),
        pytest.param(-1.0, "negative values", id="negative"),
        pytest.param(0.37, "values that are not whole numbers, as after normalisation", id="normalised"),
    ],
)
@pytest.mark.parametrize("layer", [None, "raw"])
def test_what_is_not_raw_counts_is_refused(layer: str | None, value: float, fault: str) -> None:
    adata = table()
    wrong = adata.X.toarray()
    wrong[2, 1] = value
    if layer is None:
        adata.X = scipy.sparse.csr_matrix(wrong)
    else:
        adata.layers[layer] = wrong
    where = "X" if layer is None else r"layers\['raw'\]"
    with pytest.raises(ValueError, match=f"{where} holds {fault}; raw counts are needed, "):
        counts_of(adata, layer)


def normalised(where: str) -> AnnData:
    """X is normalised; counts are where the argument says."""
    adata = table()
    counts = adata.X.copy()
    adata.layers["scaled"] = -adata.X.toarray() / 3
    if where == "raw":
        adata.raw = adata.copy()
    elif where == "raw of more genes":
        adata.raw = adata[:, ::-1].copy()
    elif where == "raw of fewer genes":
        adata.raw = adata[:, 1:].copy()
    elif where:
        adata.layers[where] = counts
    adata.X = adata.X * 0.5 + adata.X.power(2) * 0.25
    return adata


@pytest.mark.parametrize("where", ["counts", "spliced", "raw", "raw of more genes"])
def test_the_mend_names_where_the_counts_are_and_works(where: str) -> None:
    expected, adata = table().X.toarray(), normalised(where)
    with pytest.raises(
        ValueError, match=r"X holds values that are not whole numbers.*; raw counts are needed, "
    ) as caught:
        counts_of(adata, None)
    said = str(caught.value)
    if where.startswith("raw"):
        found = re.search(r"which raw has: (.*), then layer='counts'\.$", said)
        assert found
        exec(found[1], {"table": adata})
    else:
        assert f"pass layer={where!r}, which has whole numbers" in said
    np.testing.assert_array_equal(counts_of(adata, "counts" if where.startswith("raw") else where).toarray(), expected)


@pytest.mark.parametrize("where", ["", "raw of fewer genes"])
def test_no_layer_is_named_where_none_has_counts(where: str) -> None:
    with pytest.raises(ValueError, match=r"and no layer has them: put them into table\.layers\['counts'\]"):
        counts_of(normalised(where), None)


IN_TISSUE: list[Any] = [
    [1, 0, 1, 0, 1], [1.0, 0.0, 1.0, 0.0, 1.0], [True, False, True, False, True], ["1", "0", "1", "0", "1"], ["1.0", "0.0", "1.0", "0.0", "1.0"],
    ["TRUE", "FALSE", "TRUE", "FALSE", "TRUE"], ["T", "F", "T", "F", "T"], ["yes", "no", "Yes", " NO", "y"], [np.nan, 0, 1, 0.0, np.nan],
    [None, False, True, False, None], ["", "0", "NA", "0", "<NA>"],
]  # fmt: skip


@pytest.mark.parametrize("as_category", [False, True])
@pytest.mark.parametrize("values", IN_TISSUE, ids=str)
def test_spots_off_tissue_in_any_spelling(values: list[Any], *, as_category: bool) -> None:
    column = pd.Series(values, dtype=object)
    assert off_tissue(pd.DataFrame({"in_tissue": column.astype("category") if as_category else column})).tolist() == [
        False,
        True,
    ] * 2 + [False]
    assert not off_tissue(pd.DataFrame({"elsewhere": column})).any()


@pytest.mark.parametrize("value", ["outside", 2, -1, "0.5", "tumour"])
def test_what_does_not_say_whether_a_spot_is_on_tissue_is_refused(value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"obs\['in_tissue'\] holds '{value}' for 2 of 5 spots; it must be 1 in tissue and 0 outside"
    ):
        off_tissue(pd.DataFrame({"in_tissue": [1, value, 0, value, 1]}))


def test_a_missing_layer_is_refused_with_those_there_are() -> None:
    adata = table()
    with pytest.raises(KeyError, match=r"layer='raw' is not in the table; its layers are none \(None means X\)"):
        counts_of(adata, "raw")
    adata.layers["counts"], adata.X = adata.X, None
    with pytest.raises(KeyError, match="its layers are counts"):
        counts_of(adata, "raw")
    with pytest.raises(ValueError, match="The table has no X; pass layer= with the layer of raw counts"):
        counts_of(adata, None)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_trace(error: type[BaseException], unchanged: Unchanged) -> None:
    sdata = wrap(table=table())
    adata, keys = sdata["table"], Keys()
    adata.layers["agl"] = np.ones(adata.shape)
    adata.obs["agl_split"], adata.uns["agl"] = "train", {"params": {"seed": 1}}
    with pytest.raises(error, match=STOP), unchanged(sdata), unchanged_on_failure(adata, keys):  # noqa: PT012
        adata.layers["agl"] = np.zeros(adata.shape)
        adata.obsm["agl_features"] = np.zeros((5, 2))
        adata.obs["agl_split"], adata.var["agl_role"] = "test", "target"
        remember(adata, keys, SettingsRecord({"seed": 2}), PaperRecord({"more": 1}))
        raise error(STOP)


def test_a_failure_before_anything_was_there_leaves_nothing(unchanged: Unchanged) -> None:
    sdata = wrap(table=table())
    with pytest.raises(RuntimeError, match=STOP), unchanged(sdata), unchanged_on_failure(sdata["table"], Keys()):  # noqa: PT012
        remember(sdata["table"], Keys(), PaperRecord({"more": 1}))
        raise RuntimeError(STOP)


def test_success_keeps_what_was_written() -> None:
    adata, keys = table(), Keys()
    remember(adata, keys, SettingsRecord({"kept": 0}))
    with unchanged_on_failure(adata, keys):
        adata.layers["agl"] = np.zeros(adata.shape)
        remember(adata, keys, PaperRecord({"more": 1}))
    assert "agl" in adata.layers
    found = [remembered(adata, keys, kind) for kind in (SettingsRecord, PaperRecord, SplitRecord)]
    assert found == [SettingsRecord({"kept": 0}), PaperRecord({"more": 1}), None]


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        pytest.param("erbb2", ["ERBB2", "KRT8"], "; did you mean ERBB2", id="case"),
        pytest.param("ERBB22", ["ERBB2", "ERBB3", "KRT8"], "; did you mean ERBB2, ERBB3", id="two"),
        pytest.param("ZZZ", ["ERBB2"], "", id="nothing close"),
    ],
)
def test_near_matches(name: str, known: list[str], expected: str) -> None:
    assert near_matches([name], known) == expected


KINDS = ["Gene Expression"] * 3 + ["Antibody Capture", "Negative Control Probe"]


@pytest.mark.parametrize("key", ["feature_types", "feature_type"])
@pytest.mark.parametrize("as_category", [True, False])
def test_features_beside_genes_are_refused_until_they_are_left_out(*, key: str, as_category: bool) -> None:
    kinds = pd.Series(KINDS, dtype="category" if as_category else object).to_numpy()
    table = AnnData(np.ones((4, 5), np.float32), var=pd.DataFrame({key: kinds}, index=list("ABCDE")))
    with pytest.raises(
        ValueError, match=rf"var\['{key}'\] names features that are no genes \(1 of .*, 1 of .*keep genes alone"
    ):
        counts_of(table, None)
    genes = table[:, table.var[key] == "Gene Expression"].copy()
    assert counts_of(genes, None).shape == (4, 3)


@pytest.mark.parametrize("kinds", [["protein_coding", "lncRNA"], ["Gene Expression"] * 2, ["Peaks"] * 2])
def test_columns_that_tell_no_genes_from_others_are_passed_over(kinds: list[str]) -> None:
    table = AnnData(np.ones((4, 2), np.float32), var=pd.DataFrame({"feature_type": kinds}, index=list("AB")))
    assert counts_of(table, None).shape == (4, 2)


@pytest.mark.parametrize(
    ("names", "regions", "expected"),
    [
        (["lib", "lib", "lib"], ["lib-x", "lib-y", "lib-y"], ["lib-x", "lib-y", "lib-y"]),
        (["lib", "lib", "b"], ["lib-x", "lib-y", "b-y"], ["lib-x", "lib-y", "b"]),
        (["lib", "lib", "lib"], ["lib-x", "lib-x", "lib-x"], ["lib", "lib", "lib"]),
        (["A", "A", "A"], ["left", "right", "right"], ["A", "A", "A"]),
        (["A", "A", "A"], ["A-1", "B-1", "A-2"], ["A", "A", "A"]),
    ],
    ids=["several", "one of two", "one", "named by hand", "other names too"],
)
def test_sections_that_concatenation_renamed_are_their_regions(
    names: list[str], regions: list[str], expected: list[str]
) -> None:
    obs = pd.DataFrame({"section": names, "region": pd.Categorical(regions), "spot": range(3)}, index=list("abc"))
    table = AnnData(
        np.ones((3, 1)),
        obs=obs,
        uns={"spatialdata_attrs": {"region_key": "region", "instance_key": "spot", "region": sorted(set(regions))}},
    )
    assert section_of(table).tolist() == expected


def test_counts_that_no_spot_has_are_refused() -> None:
    with pytest.raises(ValueError, match="X holds values above 2,147,483,648, as no spot has counts"):
        counts_of(AnnData(np.full((2, 2), 1e30, np.float32)), None)


def test_counts_that_are_as_they_must_be_are_shared_and_not_written_to() -> None:
    own = scipy.sparse.csr_matrix(np.array([[0, 2, 1], [3, 0, 0]], dtype=np.float32))
    counts = canonical(own)
    assert np.shares_memory(counts.data, own.data)
    with pytest.raises(ValueError, match="read-only"):
        counts.data[0] = 7
    own.data[0] = 5  # the user's stay writable
    stored_zero = own.copy()
    stored_zero.data[0] = 0
    assert canonical(stored_zero).nnz == 2
    assert stored_zero.nnz == 3
