from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text

from agl_sc import pl

if TYPE_CHECKING:
    from agl_sc.model import Model

ModelWith = Callable[..., "Model"]
FIGURES = [pl.history, pl.cutoff, pl.gene_weights]


def line(ax: Axes, label: str) -> Line2D:
    (found,) = [candidate for candidate in ax.lines if str(candidate.get_label()).startswith(label)]
    return found


def twin_of(ax: Axes) -> Axes:
    (found,) = [other for other in ax.figure.axes if other is not ax]
    return found


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def names(ax: Axes) -> dict[str, tuple[float, float]]:
    """Annotated genes and the point that each is tied to."""
    texts = [text for text in ax.texts if isinstance(text, Annotation) and text.arrow_patch is not None]
    return {text.get_text(): (float(text.xy[0]), float(text.xy[1])) for text in texts}


class TestHistory:
    def test_loss_above_score_and_the_epoch_kept(self, model: "Model") -> None:
        ax = pl.history(model)
        np.testing.assert_array_equal(line(ax, "training loss").get_xydata(), model.history[["epoch", "loss"]])
        score = twin_of(ax)
        pearson = line(score, "validation Pearson")
        np.testing.assert_array_equal(pearson.get_xydata(), model.history[["epoch", "validation_pearson"]])
        for panel in (ax, score):
            assert set(np.asarray(line(panel, "kept").get_xdata())) == {7}
        assert legend(ax) == ["training loss", "validation Pearson", "kept: epoch 7"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("", "training loss")
        assert (score.get_xlabel(), score.get_ylabel()) == ("epoch", "validation Pearson")
        assert ax.get_position().y0 >= score.get_position().y1

    def test_epochs_without_validation_are_left_out(self, model: "Model") -> None:
        model.history.loc[::2, "validation_pearson"] = np.nan
        pearson = line(twin_of(pl.history(model)), "validation Pearson")
        np.testing.assert_array_equal(pearson.get_xdata(), [1, 3, 5, 7, 9, 11])

    def test_without_validation_there_is_one_axis(self, model: "Model") -> None:
        model.history["validation_pearson"] = np.nan
        ax = pl.history(model)
        assert ax.figure.axes == [ax]
        assert ax.get_xlabel() == "epoch"
        assert legend(ax) == ["training loss", "kept: epoch 7"]

    def test_axes_of_the_user(self, model: "Model") -> None:
        figure, (first, second) = plt.subplots(2)
        assert pl.history(model, ax=(first, second)) is first
        assert line(second, "validation Pearson").axes is second
        assert figure.axes == [first, second]
        single = plt.figure().add_subplot()
        pl.history(model, ax=single)
        assert twin_of(single).get_position().bounds == single.get_position().bounds
        with pytest.raises(
            ValueError, match="ax holds 3 axes; pass one, or two for training loss and validation Pearson"
        ):
            pl.history(model, ax=plt.subplots(3)[1])

    def test_no_history(self, model_with: ModelWith) -> None:
        empty = pd.DataFrame(columns=["epoch", "loss", "validation_pearson"])
        with pytest.raises(ValueError, match=r"'ridge'.* has no history"):
            pl.history(model_with(method="ridge", history=empty))


class TestCutoff:
    def test_path_is_pearson_against_k(self, model: "Model") -> None:
        ax = pl.cutoff(model)
        trace = model.cutoff_trace
        np.testing.assert_array_equal(line(ax, "validation").get_xydata(), trace[["k", "validation_pearson"]])
        assert set(np.asarray(line(ax, "chosen").get_xdata())) == {10}
        assert legend(ax) == ["validation Pearson", "chosen: k = 10 (cutoff 0.25)"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("auxiliary genes selected, k", "validation Pearson")

    def test_path_is_drawn_in_order_of_k(self, model_with: ModelWith) -> None:
        trace = model_with().cutoff_trace
        ax = pl.cutoff(model_with(cutoff_trace=trace.iloc[::-1]))
        np.testing.assert_array_equal(line(ax, "validation").get_xdata(), trace["k"])

    def test_gradient_is_cutoff_and_pearson_against_step(self, model_with: ModelWith) -> None:
        model = model_with(search="gradient", cutoff=1.0)
        ax = pl.cutoff(model)
        trace = model.cutoff_trace
        np.testing.assert_array_equal(line(ax, "cutoff").get_xydata(), trace[["step", "cutoff"]])
        pearson = line(twin_of(ax), "validation Pearson")
        np.testing.assert_array_equal(pearson.get_xydata(), trace[["step", "validation_pearson"]])
        assert set(np.asarray(line(ax, "chosen").get_ydata())) == {1.0}
        assert legend(ax) == ["cutoff", "validation Pearson", "chosen: cutoff 1"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("outer step", "cutoff")

    @pytest.mark.parametrize("changes", [{"cutoff_trace": pd.DataFrame()}, {"cutoff": None}])
    def test_method_without_cutoff(self, model_with: ModelWith, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="Method 'pgl' has no cutoff to draw; method='dkgsb' learns one"):
            pl.cutoff(model_with(method="pgl", search=None, **changes))
        assert not plt.get_fignums()


class TestGeneWeights:
    def test_weights_against_rank_with_targets_apart(self, model: "Model") -> None:
        ax = pl.gene_weights(model)
        auxiliary, targets = line(ax, "auxiliary genes"), line(ax, "target genes")
        np.testing.assert_array_equal(auxiliary.get_xdata(), np.arange(40))
        np.testing.assert_array_equal(auxiliary.get_ydata(), model.weights[3:])
        np.testing.assert_array_equal(targets.get_ydata(), model.weights[:3])
        assert (np.asarray(targets.get_xdata()) < 0).all()
        assert ax.get_xlabel() == "prior rank\n(10 of 40 auxiliary genes have weight ≥ 0.5)"
        assert "3\ntargets" in [text.get_text() for text in ax.texts]

    def test_leading_genes_are_named_at_their_points(self, model: "Model") -> None:
        found = names(pl.gene_weights(model, n_names=4))
        assert found == {f"GENE{i}": (i, model.weights[3 + i]) for i in range(4)}
        assert names(pl.gene_weights(model, n_names=0)) == {}

    def test_leading_means_weight_before_rank(self, model_with: ModelWith) -> None:
        weights = np.full(43, 0.2)
        weights[[3 + 30, 3 + 20]] = 0.9, 0.8
        assert list(names(pl.gene_weights(model_with(weights=weights), n_names=3))) == ["GENE0", "GENE20", "GENE30"]

    def test_genes_of_no_weight_are_not_named(self, model_with: ModelWith) -> None:
        weights = np.concatenate([np.ones(5), np.full(38, 0.005)])
        assert list(names(pl.gene_weights(model_with(weights=weights)))) == ["GENE0", "GENE1"]

    @pytest.mark.parametrize("n_auxiliary", [0, 1, 15_000])
    def test_few_and_many_auxiliary_genes(self, model_with: ModelWith, n_auxiliary: int) -> None:
        genes = [f"G{i}" for i in range(3 + n_auxiliary)]
        ax = pl.gene_weights(model_with(genes=genes, weights=np.ones(len(genes))))
        assert len(names(ax)) == min(n_auxiliary, 10)
        assert f"({n_auxiliary:,} of {n_auxiliary:,} auxiliary" in ax.get_xlabel()

    @pytest.mark.parametrize("n_auxiliary", [40, 15_000])
    def test_names_do_not_overlap(self, model_with: ModelWith, n_auxiliary: int) -> None:
        genes = [f"GENE{i}-AS1" for i in range(3 + n_auxiliary)]
        ax = pl.gene_weights(model_with(genes=genes, weights=np.ones(len(genes))), n_names=1000)
        figure = ax.figure.canvas.figure
        figure.draw_without_rendering()
        texts = [text for text in ax.texts if isinstance(text, Annotation)]
        boxes = [Text.get_window_extent(text) for text in texts]  # without the line to the point
        assert len(boxes) > 20
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i]), texts[i].get_text()
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1
            assert box.y1 <= figure.bbox.y1

    def test_negative_number_of_names(self, model: "Model") -> None:
        with pytest.raises(ValueError, match="n_names=-1 is negative"):
            pl.gene_weights(model, n_names=-1)


@pytest.mark.parametrize("draw", FIGURES)
class TestEvery:
    def test_draws_on_the_axes_of_the_user(self, model: "Model", draw: Callable[..., Axes]) -> None:
        figure, ax = plt.subplots()
        assert draw(model, ax=ax) is ax
        assert plt.get_fignums() == [figure.number]

    def test_saves(self, model: "Model", draw: Callable[..., Axes], tmp_path: Path) -> None:
        draw(model, save=tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5_000

    def test_path_is_checked_before_drawing(self, model: "Model", draw: Callable[..., Axes], tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
            draw(model, save=tmp_path / "absent" / "figure.png")
        assert not plt.get_fignums()

    def test_not_a_model(self, draw: Callable[..., Axes]) -> None:
        with pytest.raises(TypeError, match=r"model is a str, not an agl_sc\.Model"):
            draw("model.safetensors")


def test_cutoff_of_a_race_draws_a_curve_per_rung() -> None:
    trace = pd.DataFrame(
        {
            "step": [0, 0, 0, 0, 1, 1],
            "cutoff": [0.1, 0.2, 0.5, 1.0, 0.2, 0.5],
            "k": [10, 20, 50, 100, 20, 50],
            "validation_pearson": [0.1, 0.3, 0.2, 0.1, 0.35, 0.3],
        }
    )
    race = cast("Model", SimpleNamespace(method="dkgsb", search="race", cutoff=0.2, cutoff_trace=trace))
    ax = pl.cutoff(race, show=False)
    labels = [line.get_label() for line in ax.lines]
    assert labels == ["rung 1", "rung 2", "chosen: k = 20 (cutoff 0.2)"]
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), [20, 50])
