from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import shapely
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from numpy.typing import NDArray
from scipy.stats import pearsonr
from spatialdata import SpatialData, get_pyramid_levels
from spatialdata.transformations import Affine, set_transformation

from agl_sc import pl

C2, C6 = slice(0, 30), slice(30, 54)


def spots(ax: Axes) -> EllipseCollection:
    (found,) = [artist for artist in ax.collections if isinstance(artist, EllipseCollection)]
    return found


def values(ax: Axes) -> NDArray[np.float64]:
    return np.ma.filled(np.ma.asarray(spots(ax).get_array()).astype(float), np.nan)


def colour_bars(ax: Axes) -> list[Axes]:
    return [axes for axes in ax.figure.canvas.figure.axes if axes.get_label() == "<colorbar>"]


def log1p_cp10k(sdata: SpatialData) -> NDArray[np.float64]:
    counts = sdata.tables["table"].X.toarray().astype(float)
    return np.asarray(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4))


def set_split(sdata: SpatialData, section: slice, parts: dict[str, int]) -> None:
    column = sdata.tables["table"].obs["agl_split"].astype(object).to_numpy(copy=True)
    column[section] = np.repeat(list(parts), list(parts.values()))
    sdata.tables["table"].obs["agl_split"] = pd.Categorical(column)


class TestValues:
    def test_measured_and_predicted_are_drawn_gene_by_gene(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, ["KRT8", "ERBB2"])
        assert axes.shape == (4, 2)
        measured, predicted = log1p_cp10k(sdata), sdata.tables["table"].layers["agl"]
        for row, (rows, gene) in enumerate([(C2, 1), (C6, 1), (C2, 0), (C6, 0)]):
            np.testing.assert_allclose(values(axes[row, 0]), measured[rows, gene], rtol=1e-5)
            np.testing.assert_array_equal(values(axes[row, 1]), predicted[rows, gene])

    def test_spots_touch_by_default_and_keep_their_size_where_they_overlap(self, sdata: SpatialData) -> None:
        drawn = [pl.spatial_pred(sdata, "ERBB2", sections="C2")[0, 0] for _ in range(2)]
        np.testing.assert_allclose(np.asarray(spots(drawn[0]).get_widths()), 20.0)  # the pitch, where they are 10 wide
        sdata.shapes["C2"]["radius"] = 12.0
        overlapping = pl.spatial_pred(sdata, "ERBB2", sections="C2")[0, 0]
        np.testing.assert_allclose(np.asarray(spots(overlapping).get_widths()), 24.0)

    def test_scales_are_shared_or_own_and_their_limits_given(self, sdata: SpatialData) -> None:
        measured, predicted = log1p_cp10k(sdata)[C6, 0], sdata.tables["table"].layers["agl"][C6, 0]
        both = np.concatenate([measured, predicted])
        for scale, limits_of in (("shared", (both, both)), ("own", (measured, predicted))):
            axes = pl.spatial_pred(sdata, "ERBB2", sections="C6", scale=scale)  # type: ignore[arg-type]
            for ax, values_of in zip(axes[0], limits_of, strict=True):
                np.testing.assert_allclose(spots(ax).get_clim(), np.nanpercentile(values_of, (1, 99)), rtol=1e-5)
            assert len(colour_bars(axes[0, 0])) == (1 if scale == "shared" else 2)
        axes = pl.spatial_pred(sdata, "ERBB2", sections="C6", vmin=1, vmax=2.5, scale="own")
        assert [spots(ax).get_clim() for ax in axes[0]] == [(1, 2.5), (1, 2.5)]

    def test_the_image_stands_alone_in_a_panel_of_its_own(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, ["ERBB2", "KRT8"], image_panel=True, difference=True)
        assert axes.shape == (4, 4)
        for ax in axes[:, 0]:
            assert not ax.collections
            assert ax.images[0].get_alpha() == 1
            assert ax.get_title().endswith("H&E")
        assert [ax.get_title().split(" · ")[1].split()[0] for ax in axes[0, 1:]] == [
            "measured",
            "predicted",
            "predicted",
        ]

    def test_genes_abreast(self, sdata: SpatialData) -> None:
        def n_abreast(**options: Any) -> int:
            axes = pl.spatial_pred(sdata, ["ERBB2", "KRT8", "CD74"], sections="C6", **options)
            axes[0, 0].figure.canvas.figure.draw_without_rendering()
            return len({round(ax.get_window_extent().x0) for ax in axes[:, 0]})

        assert [n_abreast(), n_abreast(ncols=1), n_abreast(ncols=3)] == [1, 1, 3]

    @pytest.mark.parametrize(
        ("n_genes", "n_sections", "n_blocks", "shape"),
        [(1, 1, 1, (1, 2)), (2, 1, 2, (1, 2)), (3, 1, 3, (1, 2)), (3, 2, 3, (1, 4))],
    )
    def test_a_montage_of_genes_and_sections_has_no_blank_place(
        self, *, sdata: SpatialData, n_genes: int, n_sections: int, n_blocks: int, shape: tuple[int, int]
    ) -> None:
        genes, sections = ["ERBB2", "KRT8", "CD74"][:n_genes], ["C6", "C2"][:n_sections]
        grids = [ax.get_gridspec() for ax in pl.spatial_pred(sdata, genes, sections=sections).ravel()]
        assert {grid.get_geometry() for grid in grids if grid is not None} == {shape}
        assert len({id(grid) for grid in grids}) * shape[0] * shape[1] == len(grids) == n_blocks * shape[0] * shape[1]

    def test_spots_stand_at_their_centres_at_true_size(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2", size=1.5)
        centres = sdata.tables["table"].obsm["spatial"]
        for ax, rows in zip(axes.ravel(), [C2, C2, C6, C6], strict=True):
            np.testing.assert_allclose(np.asarray(spots(ax).get_offsets()), centres[rows])
            np.testing.assert_allclose(np.asarray(spots(ax).get_widths()), 2 * 5.0 * 1.5)
            np.testing.assert_allclose(np.asarray(spots(ax).get_heights()), 2 * 5.0 * 1.5)

    def test_layer_holds_the_counts_when_x_does_not(self, sdata: SpatialData) -> None:
        table, expected = sdata.tables["table"], log1p_cp10k(sdata)
        table.layers["raw"] = table.X
        table.X = table.X / 2
        with pytest.raises(ValueError, match="X holds values that are not whole numbers"):
            pl.spatial_pred(sdata, "ERBB2")
        axes = pl.spatial_pred(sdata, "ERBB2", layer="raw")
        np.testing.assert_allclose(values(axes[0, 0]), expected[C2, 0], rtol=1e-5)

    def test_units_follow_the_recorded_normalisation(self, sdata: SpatialData) -> None:
        table = sdata.tables["table"]
        table.uns["agl"] = {"params": {"normalize": "log1p"}}
        axes = pl.spatial_pred(sdata, "ERBB2")
        np.testing.assert_allclose(values(axes[0, 0]), np.log1p(table.X.toarray()[C2, 0]), rtol=1e-6)
        assert [bar.get_xlabel() for bar in colour_bars(axes[0, 0])] == ["log1p(counts)"]

    def test_key_added_names_the_analysis(self, sdata: SpatialData) -> None:
        table = sdata.tables["table"]
        table.layers["other"] = table.layers["agl"] + 1
        axes = pl.spatial_pred(sdata, "ERBB2", key_added="other")
        np.testing.assert_array_equal(values(axes[0, 1]), table.layers["other"][C2, 0])
        assert "training" not in axes[0, 1].get_title()  # the split of "agl" is not that of "other"

    def test_table_is_not_changed(self, sdata: SpatialData) -> None:
        before = sdata.tables["table"].copy()
        pl.spatial_pred(sdata, "ERBB2", difference=True)
        after = sdata.tables["table"]
        assert (after.X != before.X).nnz == 0
        np.testing.assert_array_equal(after.layers["agl"], before.layers["agl"])
        pd.testing.assert_frame_equal(after.obs, before.obs)


class TestColours:
    def test_a_gene_has_one_robust_scale_over_all_sections(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, ["ERBB2", "CD74"])
        measured, predicted = log1p_cp10k(sdata), sdata.tables["table"].layers["agl"]
        for block, gene in [(axes[:2], 0), (axes[2:], 2)]:
            expected = np.nanpercentile(np.concatenate([measured[:, gene], predicted[:, gene]]), [1, 99])
            for ax in block.ravel():
                np.testing.assert_allclose(spots(ax).get_clim(), expected, rtol=1e-5)
        assert spots(axes[0, 0]).get_clim() != spots(axes[2, 0]).get_clim()

    def test_limits_are_those_of_the_sections_drawn(self, sdata: SpatialData) -> None:
        sdata.tables["table"].layers["agl"][C2] += 100
        (row,) = pl.spatial_pred(sdata, "ERBB2", sections="C6")
        assert spots(row[1]).get_clim()[1] < 50

    def test_colour_bar_per_gene(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, ["ERBB2", "CD74"])
        bars = colour_bars(axes[0, 0])
        assert [bar.get_xlabel() for bar in bars] == ["log1p(CP10k)"] * 2
        for bar, ax in zip(bars, [axes[0, 0], axes[2, 0]], strict=True):
            np.testing.assert_allclose(bar.get_xlim(), spots(ax).get_clim())

    def test_difference_is_symmetric_about_zero(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2", difference=True)
        assert axes.shape == (2, 3)
        difference = sdata.tables["table"].layers["agl"][:, 0] - log1p_cp10k(sdata)[:, 0]
        np.testing.assert_allclose(values(axes[0, 2]), difference[C2], rtol=1e-4, atol=1e-5)
        reach = np.nanpercentile(np.abs(difference), 99)
        for ax in axes[:, 2]:
            np.testing.assert_allclose(spots(ax).get_clim(), (-reach, reach), rtol=1e-5)
        labels = [bar.get_xlabel() for bar in colour_bars(axes[0, 0])]
        assert labels == ["log1p(CP10k)", "predicted - measured"]

    def test_a_gene_that_is_zero_everywhere_has_a_scale(self, sdata: SpatialData) -> None:
        table = sdata.tables["table"]
        counts = table.X.toarray()
        counts[:, 0] = 0
        table.X = type(table.X)(counts)
        table.layers["agl"][:, 0] = 0
        axes = pl.spatial_pred(sdata, "ERBB2", difference=True)
        assert spots(axes[0, 0]).get_clim() == (0, 1)
        assert "r undefined" in axes[1, 1].get_title()

    def test_a_rare_gene_keeps_its_few_values_apart(self, sdata: SpatialData) -> None:
        table = sdata.tables["table"]
        counts = table.X.toarray()
        counts[:, 0] = 0
        counts[3, 0] = 5
        table.X = type(table.X)(counts)
        table.layers["agl"][:, 0] = 0
        axes = pl.spatial_pred(sdata, "ERBB2")
        np.testing.assert_allclose(spots(axes[0, 0]).get_clim(), (0, values(axes[0, 0])[3]), rtol=1e-6)

    def test_cmap(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2", cmap="magma")
        assert {spots(ax).get_cmap().name for ax in axes.ravel()} == {"magma"}


class TestTitles:
    def test_pearson_over_the_spots_of_the_section(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2")
        measured, predicted = log1p_cp10k(sdata)[:, 0], sdata.tables["table"].layers["agl"][:, 0]
        r_c2 = pearsonr(measured[C2], predicted[C2]).statistic
        r_c6 = pearsonr(measured[31:54], predicted[31:54]).statistic  # spot 30 has no prediction
        assert axes[0, 0].get_title() == "C2 · measured ERBB2\n30 spots"
        assert axes[0, 1].get_title() == f"C2 · predicted ERBB2\nr = {r_c2:.2f} (training spots)"
        assert axes[1, 1].get_title() == f"C6 · predicted ERBB2\nr = {r_c6:.2f}"

    def test_mixed_section_is_scored_on_test_spots_alone(self, sdata: SpatialData) -> None:
        set_split(sdata, C2, {"train": 12, "validation": 4, "test": 14})
        axes = pl.spatial_pred(sdata, "ERBB2")
        measured, predicted = log1p_cp10k(sdata)[16:30, 0], sdata.tables["table"].layers["agl"][16:30, 0]
        title = " ".join(axes[0, 1].get_title().split())
        r = pearsonr(measured, predicted).statistic
        assert f"r = {r:.2f} over 14 test spots also drawn: 12 training, 4 validation" in title
        assert np.isfinite(values(axes[0, 1])).sum() == 30

    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ({"validation": 30}, "(validation spots)"),
            ({"unused": 30}, "(unused spots)"),
            ({"train": 20, "validation": 10}, "(training and validation spots)"),
            ({"test": 10, "unused": 20}, "over 10 test spots also drawn: 20 unused"),
        ],
    )
    def test_title_says_which_spots(self, sdata: SpatialData, parts: dict[str, int], expected: str) -> None:
        set_split(sdata, C2, parts)
        axes = pl.spatial_pred(sdata, "ERBB2")
        assert " ".join(axes[0, 1].get_title().split()).endswith(expected)

    @pytest.mark.parametrize("column", [None, "fold"])
    def test_without_a_split_nothing_was_in_training(self, sdata: SpatialData, column: str | None) -> None:
        obs = sdata.tables["table"].obs
        del obs["agl_split"]
        if column:
            obs["agl_split"] = pd.Categorical(np.arange(54) % 5)
        axes = pl.spatial_pred(sdata, "ERBB2")
        assert axes[0, 1].get_title().split("\n")[1].startswith("r = ")
        assert "spots" not in axes[0, 1].get_title()

    def test_section_without_prediction(self, sdata: SpatialData) -> None:
        sdata.tables["table"].layers["agl"][C6] = np.nan
        axes = pl.spatial_pred(sdata, "ERBB2", difference=True)
        assert axes[1, 1].get_title() == "C6 · predicted ERBB2\nno prediction"
        assert np.isnan(values(axes[1, 1])).all()

    def test_no_text_overlaps_another(self, sdata: SpatialData) -> None:
        set_split(sdata, C2, {"train": 12, "validation": 4, "test": 14})
        axes = pl.spatial_pred(sdata, ["ERBB2", "KRT8", "CD74"])
        figure = axes[0, 0].figure.canvas.figure
        figure.draw_without_rendering()
        texts = [ax.title for ax in axes.ravel()] + [text for ax in axes.ravel() for text in ax.texts]
        texts += [bar.xaxis.label for bar in colour_bars(axes[0, 0])]
        boxes = [text.get_window_extent() for text in texts]
        assert len(boxes) > 15
        for i, box in enumerate(boxes):
            overlapping = [texts[j].get_text() for j in range(i) if box.overlaps(boxes[j])]
            assert not overlapping, (texts[i].get_text(), overlapping)


class TestTissue:
    def test_image_lies_under_the_spots_in_pixels_of_the_finest_level(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2", image_alpha=0.5)
        image = np.asarray(get_pyramid_levels(sdata.images["C2_image"], n=0))
        for ax in axes[0]:
            (drawn,) = ax.images
            left, right, bottom, top = drawn.get_extent()
            crop = image[:, int(top) : int(bottom), int(left) : int(right)]
            np.testing.assert_array_equal(drawn.get_array(), crop.transpose(1, 2, 0))
            assert drawn.get_alpha() == 0.5
            assert ax.get_aspect() == 1

    def test_crop_leaves_a_spot_diameter_and_y_runs_downwards(self, sdata: SpatialData) -> None:
        ax = pl.spatial_pred(sdata, "ERBB2", size=1)[0, 0]
        assert ax.get_xlim() == (20, 120)  # columns at 30 ... 110, radius 5
        assert ax.get_ylim() == (140, 20)  # rows at 30 ... 130
        assert ax.images[0].get_extent() == [20, 120, 140, 20]
        assert not ax.get_xticks().size
        assert not ax.get_yticks().size

    def test_scale_bar_of_a_round_length_under_the_first_panel(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2")
        (bar,) = axes[0, 0].lines
        left, right = np.asarray(bar.get_xdata())
        assert right - left == pytest.approx(200 / 10)  # 200 um at 10 um per pixel, in a picture of 1,000 um
        assert [text.get_text() for text in axes[0, 0].texts] == ["200 µm"]
        assert not axes[0, 1].lines

    def test_no_scale_bar_when_the_scale_is_unknown(self, sdata: SpatialData) -> None:
        sdata.attrs["agl_sc"] = {}
        assert not pl.spatial_pred(sdata, "ERBB2")[0, 0].lines


class TestArguments:
    def test_sections_are_drawn_in_the_order_given(self, sdata: SpatialData) -> None:
        axes = pl.spatial_pred(sdata, "ERBB2", sections=["C6", "C2"])
        assert [ax.get_title()[:2] for ax in axes[:, 0]] == ["C6", "C2"]
        assert pl.spatial_pred(sdata, "ERBB2", shapes_key="C6").shape == (1, 2)

    def test_genes_may_be_any_sequence_of_names(self, sdata: SpatialData) -> None:
        assert pl.spatial_pred(sdata, sdata.tables["table"].var_names[:2], sections="C2").shape == (2, 2)
        assert pl.spatial_pred(sdata, ("KRT8", "KRT8"), sections="C2").shape == (1, 2)

    @pytest.mark.parametrize(
        ("error", "arguments", "message"),
        [
            (KeyError, {"genes": "ERBB"}, "'ERBB' is not in the table; did you mean ERBB2"),
            (ValueError, {"genes": ["KRT8", "ACTB"]}, "'ACTB' was not predicted.* of 4 other genes"),
            (ValueError, {"genes": []}, "genes is empty"),
            (TypeError, {"genes": [3]}, "genes holds 3, a int"),
            (TypeError, {"genes": None}, "genes holds None"),
            (KeyError, {"sections": "c6"}, "'c6' is not among the sections of the table: C2, C6; did you mean C6"),
            (KeyError, {"sections": "C2", "shapes_key": ["C6"]}, "'C2' is not among the sections of the table: C6"),
            (ValueError, {"sections": []}, "sections is empty"),
            (KeyError, {"shapes_key": "C1"}, "shapes_key='C1' is not among"),
            (KeyError, {"key_added": "ridge"}, r'layers\["ridge"\] is missing; run agl_sc.tl.train'),
            (KeyError, {"layer": "raw"}, "layer='raw' is not in the table"),
            (KeyError, {"table_key": "cells"}, "table_key='cells' is not in sdata"),
            (KeyError, {"image_key": "C3_image"}, "image_key='C3_image' is not among"),
            (ValueError, {"image_key": "C2_image"}, "No image shares a coordinate system with 'C6'"),
            (ValueError, {"cmap": "viridisch"}, "viridisch"),
            (ValueError, {"size": 0}, "size=0 is not a positive factor"),
            (ValueError, {"scale": "gene"}, "scale='gene' is not one of 'shared', 'own'"),
            (ValueError, {"vmin": "p1"}, "vmin='p1' is not a number in the units of the layer"),
            (ValueError, {"vmin": 2, "vmax": 1.0}, r"vmin=2 is not below vmax=1\.0; give a smaller vmin="),
            (ValueError, {"ncols": 0}, "ncols=0 is not a positive whole number of genes abreast"),
            (ValueError, {"size": float("nan")}, "size=nan is not a positive factor"),
            (ValueError, {"image_alpha": 1.5}, "image_alpha=1.5 is not between 0"),
        ],
    )
    def test_bad_arguments_are_named_before_anything_is_drawn(
        self, *, sdata: SpatialData, error: type[Exception], arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            pl.spatial_pred(sdata, **{"genes": "ERBB2"} | arguments)
        assert not plt.get_fignums()

    def test_near_matches_come_from_the_predicted_genes(self, sdata: SpatialData) -> None:
        table = sdata.tables["table"]
        table.var_names = ["ERBB2", "ERBB3", "CD74", "IGKC", "ERBB4"]
        with pytest.raises(ValueError, match=r"'ERBB4' was not predicted.* did you mean ERBB[23], ERBB[23]"):
            pl.spatial_pred(sdata, "ERBB4")

    def test_sdata_of_the_wrong_kind(self, sdata: SpatialData) -> None:
        with pytest.raises(TypeError, match="is a AnnData, not a SpatialData"):
            pl.spatial_pred(sdata.tables["table"], "ERBB2")

    def test_named_image_has_to_be_that_of_the_section(self, sdata: SpatialData) -> None:
        del sdata.images["C6_image"]
        with pytest.raises(ValueError, match="No image shares a coordinate system with 'C6'"):
            pl.spatial_pred(sdata, "ERBB2", image_key="C2_image")

    def test_axes_of_the_user(self, sdata: SpatialData) -> None:
        figure, axes = plt.subplots(1, 2, layout="constrained")
        drawn = pl.spatial_pred(sdata, "ERBB2", sections="C2", ax=axes)
        assert [*drawn.ravel()] == [*axes]
        assert plt.get_fignums() == [figure.number]

    def test_axes_of_another_shape_or_kind(self, sdata: SpatialData) -> None:
        axes = plt.subplots(2, 2)[1]
        with pytest.raises(ValueError, match=r"shape \(2, 2\), but \(2, 3\)"):
            pl.spatial_pred(sdata, "ERBB2", difference=True, ax=axes)
        with pytest.raises(TypeError, match="ax is a int, not a matplotlib Axes"):
            pl.spatial_pred(sdata, "ERBB2", sections="C2", ax=[1, 2])

    def test_save(self, sdata: SpatialData, tmp_path: Path) -> None:
        path = tmp_path / "figure.png"
        pl.spatial_pred(sdata, "ERBB2", save=path)
        assert mpl.image.imread(path).shape[1] > 1200  # 7 in at 200 dpi, less the margins

    def test_save_is_checked_before_anything_is_drawn(self, sdata: SpatialData, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
            pl.spatial_pred(sdata, "ERBB2", save=tmp_path / "absent" / "figure.png")
        assert not plt.get_fignums()


class TestWithoutImage:
    def test_spots_stand_alone_at_their_positions(self, sdata: SpatialData, caplog: pytest.LogCaptureFixture) -> None:
        title = pl.spatial_pred(sdata, "ERBB2", sections="C6")[0, 1].get_title()
        del sdata.images["C6_image"]
        with_image, without = pl.spatial_pred(sdata, "ERBB2")
        assert caplog.messages == ["Section 'C6' has no image: its spots are drawn alone."]
        for ax in without:
            assert not ax.images
            np.testing.assert_allclose(np.asarray(spots(ax).get_offsets()), sdata.tables["table"].obsm["spatial"][C6])
            assert ax.get_aspect() == 1
            assert ax.yaxis_inverted()
        assert with_image[0].images
        assert without[1].get_title() == title
        assert [text.get_text() for text in without[0].texts] == ["200 µm"]  # from the spot pitch

    def test_positions_are_those_of_the_coordinate_system(self, sdata: SpatialData) -> None:
        for name in list(sdata.images):
            del sdata.images[name]
        matrix = [[2.0, 0.0, 10.0], [0.0, -2.0, 500.0], [0.0, 0.0, 1.0]]
        affine = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(sdata.shapes["C2"], affine, "world")
        ax = pl.spatial_pred(sdata, "ERBB2", sections="C2", coordinate_system="world", size=1)[0, 0]
        x, y = sdata.tables["table"].obsm["spatial"][C2].T
        np.testing.assert_allclose(np.asarray(spots(ax).get_offsets()), np.column_stack([2 * x + 10, 500 - 2 * y]))
        np.testing.assert_allclose(np.asarray(spots(ax).get_widths()), 2 * 2 * 5.0)
        with pytest.raises(ValueError, match="No image shares a coordinate system named 'moon' with 'C2'"):
            pl.spatial_pred(sdata, "ERBB2", sections="C2", coordinate_system="moon")

    def test_spots_without_any_position(self, sdata: SpatialData) -> None:
        sdata.shapes["C6"]["geometry"] = shapely.points(np.full((24, 2), np.nan))
        with pytest.raises(ValueError, match="No spot of section 'C6' has a position"):
            pl.spatial_pred(sdata, "ERBB2")


class TestWithoutCounts:
    @pytest.fixture
    def unmeasured(self, sdata: SpatialData) -> SpatialData:
        sdata.tables["table"].X = None
        return sdata

    def test_the_image_stands_once_beside_the_predictions(self, unmeasured: SpatialData) -> None:
        axes = pl.spatial_pred(unmeasured, ["ERBB2", "KRT8"])
        assert axes.shape == (2, 3)
        predicted = unmeasured.tables["table"].layers["agl"]
        for row, name, rows in zip(axes, ("C2", "C6"), (C2, C6), strict=True):
            n_spots = rows.stop - rows.start
            assert row[0].get_title() == f"{name} · H&E\n{n_spots} spots, nothing measured"
            assert [ax.get_title() for ax in row[1:]] == [f"{name} · predicted {gene}" for gene in ("ERBB2", "KRT8")]
            assert not row[0].collections
            assert row[0].images[0].get_alpha() == 1
            for column, ax in enumerate(row[1:]):
                np.testing.assert_array_equal(values(ax), predicted[rows, column])
                limits = np.nanpercentile(predicted[:, column], [1, 99])
                np.testing.assert_allclose(spots(ax).get_clim(), limits, rtol=1e-5)
        labels = [bar.get_xlabel() for bar in colour_bars(axes[0, 0])]
        assert sorted(labels) == [" "] * 2 + ["log1p(CP10k)"] * 4

    def test_panels_abreast_leave_few_places_blank(self, unmeasured: SpatialData) -> None:
        def n_abreast(n_genes: int, **options: Any) -> int:
            genes = ["ERBB2", "KRT8", "CD74", "IGKC"][:n_genes]
            axes = pl.spatial_pred(unmeasured, genes, sections="C6", **options)
            axes[0, 0].figure.canvas.figure.draw_without_rendering()
            return len({round(ax.get_window_extent().x0) for ax in axes[0]})

        assert [n_abreast(1), n_abreast(3), n_abreast(4), n_abreast(4, ncols=3)] == [2, 4, 5, 3]

    def test_axes_of_the_user(self, unmeasured: SpatialData) -> None:
        axes = plt.subplots(1, 3)[1]
        assert [*pl.spatial_pred(unmeasured, ["ERBB2", "KRT8"], sections="C2", ax=axes).ravel()] == [*axes]
        with pytest.raises(ValueError, match=r"shape \(1, 3\), but \(2, 2\) \(section, H&E and genes\) are needed"):
            pl.spatial_pred(unmeasured, "ERBB2", ax=axes)

    def test_a_slide_without_prediction_is_empty(self, unmeasured: SpatialData) -> None:
        unmeasured.tables["table"].layers["agl"][C6] = np.nan
        (row,) = pl.spatial_pred(unmeasured, "ERBB2", sections="C6")
        assert row[1].get_title() == "C6 · predicted ERBB2\nno prediction"

    def test_a_difference_needs_counts(self, unmeasured: SpatialData) -> None:
        with pytest.raises(ValueError, match="The table has no X; pass layer="):
            pl.spatial_pred(unmeasured, "ERBB2", difference=True)
        with pytest.raises(ValueError, match="The table has no X; pass layer="):
            pl.residual_map(unmeasured, "ERBB2")

    def test_counts_in_a_layer_are_measured(self, sdata: SpatialData) -> None:
        table, expected = sdata.tables["table"], log1p_cp10k(sdata)
        table.layers["raw"] = table.X
        table.X = None
        axes = pl.spatial_pred(sdata, "ERBB2", layer="raw")
        np.testing.assert_allclose(values(axes[0, 0]), expected[C2, 0], rtol=1e-5)


class TestOutOfFold:
    @pytest.fixture
    def folded(self, sdata: SpatialData) -> SpatialData:
        table = sdata.tables["table"]
        table.layers["agl_oof"] = np.random.default_rng(3).random(table.shape).astype(np.float32)
        table.obs["agl_fold"] = pd.Categorical(table.obs["section"].astype(str))
        return sdata

    def test_they_are_drawn_and_the_title_says_so(self, folded: SpatialData) -> None:
        axes = pl.spatial_pred(folded, "ERBB2", prediction="oof")
        predicted, measured = folded.tables["table"].layers["agl_oof"][:, 0], log1p_cp10k(folded)[:, 0]
        for row, rows in zip(axes, (C2, C6), strict=True):
            np.testing.assert_array_equal(values(row[1]), predicted[rows])
            r = pearsonr(measured[rows], predicted[rows]).statistic
            assert row[1].get_title().split("\n")[1] == f"r = {r:.2f} (out of fold)"  # C2 was in training: of "agl"

    def test_several_folds_in_a_section_are_counted(self, folded: SpatialData) -> None:
        folded.tables["table"].obs["agl_fold"] = pd.Categorical(np.arange(54) % 5)
        axes = pl.spatial_pred(folded, "ERBB2", prediction="oof")
        assert " ".join(axes[0, 1].get_title().split()).endswith("(out of fold, 5 folds)")

    def test_a_gene_predicted_out_of_fold_alone(self, folded: SpatialData) -> None:
        with pytest.raises(ValueError, match="'ACTB' was not predicted"):
            pl.spatial_pred(folded, "ACTB")
        assert pl.spatial_pred(folded, "ACTB", prediction="oof").shape == (2, 2)

    def test_what_is_missing_names_cross_validate(self, folded: SpatialData) -> None:
        table = folded.tables["table"]
        del table.obs["agl_fold"]
        with pytest.raises(KeyError, match=r'obs\["agl_fold"\] is missing.*agl_sc.tl.cross_validate'):
            pl.spatial_pred(folded, "ERBB2", prediction="oof")
        del table.layers["agl_oof"]
        with pytest.raises(KeyError, match=r'layers\["agl_oof"\].*agl_sc.tl.cross_validate'):
            pl.spatial_pred(folded, "ERBB2", prediction="oof")
        with pytest.raises(ValueError, match="prediction='fold' is not one of 'model', 'oof'"):
            pl.spatial_pred(folded, "ERBB2", prediction="fold")  # type: ignore[arg-type]


class TestResiduals:
    def test_predicted_minus_measured_in_standard_deviations_of_test_spots(self, sdata: SpatialData) -> None:
        axes = pl.residual_map(sdata, ["KRT8", "ERBB2"])
        assert axes.shape == (2, 2)
        residuals = sdata.tables["table"].layers["agl"] - log1p_cp10k(sdata)
        for row, gene in zip(axes, (1, 0), strict=True):
            # C2 was in training and C6 is test: each is scored on what it has
            deviation = np.nanstd(residuals[:, gene])
            for ax, rows in zip(row, (C2, C6), strict=True):
                np.testing.assert_allclose(values(ax), residuals[rows, gene] / deviation, rtol=1e-4, atol=1e-5)
                assert spots(ax).get_clim() == (-3, 3)
                assert spots(ax).get_cmap().name == "RdBu_r"
            name = ["ERBB2", "KRT8"][gene]
            assert row[0].get_ylabel() == f"{name}\n1 SD = {deviation:.2g} log1p(CP10k)"

    def test_title_gives_bias_and_says_which_spots(self, sdata: SpatialData) -> None:
        (row,) = pl.residual_map(sdata, "ERBB2")
        residuals = sdata.tables["table"].layers["agl"][:, 0] - log1p_cp10k(sdata)[:, 0]
        bias = residuals[C2].mean() / np.nanstd(residuals)
        name, mean, r = row[0].get_title().split("\n")
        assert (name, mean) == ("C2 · ERBB2", f"mean {bias:+.2f} SD")
        assert r.endswith("(training spots)")
        assert "spots" not in row[1].get_title()

    def test_one_colour_bar_with_units(self, sdata: SpatialData) -> None:
        axes = pl.residual_map(sdata, ["KRT8", "ERBB2"])
        (bar,) = colour_bars(axes[0, 0])
        assert bar.get_xlabel() == "(predicted - measured) / SD"
        assert bar.get_xlim() == (-3, 3)

    def test_perfect_prediction_is_white(self, sdata: SpatialData) -> None:
        sdata.tables["table"].layers["agl"][:] = log1p_cp10k(sdata)
        axes = pl.residual_map(sdata, "ERBB2")
        np.testing.assert_allclose(values(axes[0, 0]), 0, atol=1e-6)

    def test_no_text_overlaps_another(self, sdata: SpatialData) -> None:
        axes = pl.residual_map(sdata, ["ERBB2", "KRT8"])
        figure = axes[0, 0].figure.canvas.figure
        figure.draw_without_rendering()
        texts = [ax.title for ax in axes.ravel()] + [text for ax in axes.ravel() for text in ax.texts]
        texts += [ax.yaxis.label for ax in axes[:, 0]] + [bar.xaxis.label for bar in colour_bars(axes[0, 0])]
        boxes = [text.get_window_extent() for text in texts]
        for i, box in enumerate(boxes):
            assert not [texts[j].get_text() for j in range(i) if box.overlaps(boxes[j])], texts[i].get_text()


class TestBins:
    """Visium HD: the spots of C2 as bins that touch."""

    @pytest.fixture
    def bins(self, sdata: SpatialData) -> SpatialData:
        sdata.attrs["agl_sc"]["technology"]["C2"] = "visium_hd"
        sdata.shapes["C2"]["radius"] = 10.0
        (a, b), (c, d) = _turn(3)
        matrix = [[a, b, 5.0], [c, d, 2.0], [0.0, 0.0, 1.0]]
        set_transformation(sdata.shapes["C2"], Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y")), "C2")
        return sdata

    def test_they_are_one_image_in_their_place(self, bins: SpatialData) -> None:
        table = bins.tables["table"]
        ax = pl.spatial_pred(bins, "ERBB2", sections="C2")[0, 1]
        assert not ax.collections
        _, image = ax.images
        left, _, bottom, _ = image.get_extent()
        array = np.asarray(image.get_array())
        turned = table.obsm["spatial"][C2] @ np.array(_turn(3)).T + [5.0, 2.0]
        inverse = (image.get_transform() - ax.transData).inverted()
        columns, rows = (inverse.transform(turned) - [left, bottom] - 0.5).T
        np.testing.assert_allclose(columns, np.round(columns), atol=1e-6)
        np.testing.assert_allclose(rows, np.round(rows), atol=1e-6)
        drawn = array[np.round(rows).astype(int), np.round(columns).astype(int)]
        np.testing.assert_allclose(drawn, table.layers["agl"][C2, 0], rtol=1e-6)
        assert image.get_interpolation() == "nearest"

    def test_pixels_on_the_page_have_the_colour_of_the_bin_there(self, bins: SpatialData) -> None:
        ax = pl.spatial_pred(bins, "ERBB2", sections="C2", image_alpha=0.0)[0, 1]
        image = ax.images[1]
        figure: Any = ax.figure.canvas.figure
        figure.canvas.draw()
        page = np.asarray(figure.canvas.buffer_rgba())
        turned = bins.tables["table"].obsm["spatial"][C2] @ np.array(_turn(3)).T + [5.0, 2.0]
        expected = image.to_rgba(bins.tables["table"].layers["agl"][C2, 0], bytes=True)
        for across, down in [(0, 0), (-8, 0), (8, 0), (0, -8), (0, 8)]:  # a bin is 20 px wide
            x, y = ax.transData.transform(turned + np.array([across, down])).T
            np.testing.assert_array_equal(page[len(page) - 1 - y.astype(int), x.astype(int)], expected)

    def test_limits_and_colour_bar_are_as_of_spots(self, bins: SpatialData) -> None:
        axes = pl.spatial_pred(bins, "ERBB2", sections="C2", difference=True)
        assert axes[0, 0].images[1].get_clim() == axes[0, 1].images[1].get_clim()
        assert len(colour_bars(axes[0, 0])) == 2

    def test_bins_that_touch_no_neighbour_stay_discs(self, bins: SpatialData) -> None:
        bins.shapes["C2"]["radius"] = 5.0
        assert len(pl.spatial_pred(bins, "ERBB2", sections="C2")[0, 0].images) == 1


def _turn(degrees: float) -> list[list[float]]:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return [[cosine, -sine], [sine, cosine]]
