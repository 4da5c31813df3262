"""The benchmark: differences over what is independent, and a report that the same seed makes again."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from spatialdata import SpatialData

from agl_sc.tl import Benchmark, TrainConfig, benchmark
from agl_sc.tl._benchmark.arms import ARMS

GENES = ["G0001", "G0002", "G0003", "G0004"]
FILES = {"report.md", "results.csv", "differences.csv", "provenance.json"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def settings(config: TrainConfig) -> dict[str, Any]:
    """Networks that are not trained beyond their start."""
    untrained = replace(config, max_epochs=0, refit=False)
    return {"methods": ["dkgsb", "agl", "pgl", "mean"], "genes": GENES, "seeds": 2, "config": untrained}


def test_report_is_made_again_bit_for_bit(prepared: SpatialData, settings: dict[str, Any], tmp_path: Path) -> None:
    benchmark(prepared, **settings).save(tmp_path / "once")
    benchmark(prepared, **settings, checkpoint=tmp_path / "runs").save(tmp_path / "again")
    benchmark(prepared, **settings, checkpoint=tmp_path / "runs").save(tmp_path / "read")
    assert set(contents(tmp_path / "once")) == FILES
    assert contents(tmp_path / "once") == contents(tmp_path / "again") == contents(tmp_path / "read")
    other = benchmark(prepared, **{**settings, "seed": 1})
    assert other.to_markdown().encode() != contents(tmp_path / "once")["report.md"]


def test_everything_is_compared_with_the_reference(prepared: SpatialData, settings: dict[str, Any]) -> None:
    made = benchmark(prepared, **settings)
    assert list(dict.fromkeys(made.results["method"])) == ["dkgsb", "agl", "pgl", "mean", "ridge"]
    pairs = made.differences[made.differences["metric"] == "mse"]
    assert list(zip(pairs["method"], pairs["reference"], strict=True)) == [
        ("dkgsb", "ridge"), ("agl", "ridge"), ("pgl", "ridge"), ("mean", "ridge"), ("agl", "pgl"), ("dkgsb", "agl")
    ]  # fmt: skip
    assert set(pairs["unit"]) == {"section"}
    assert set(pairs["n_units"]) == {3}
    means = made.results[made.results["metric"] == "mse"].groupby("method")["value"].mean()
    expected = [
        means[method] - means[reference] for method, reference in zip(pairs["method"], pairs["reference"], strict=True)
    ]
    assert pairs["mean"].tolist() == pytest.approx(expected)
    by_section = made.results[made.results["metric"] == "mse"].pivot_table("value", "section", "method")
    difference = by_section["mean"] - by_section["ridge"]
    row = pairs[pairs["method"] == "mean"].iloc[0]
    assert row[["low", "high"]].tolist() == pytest.approx([difference.min(), difference.max()])  # of three units


def test_report_says_what_it_rests_on(prepared: SpatialData, settings: dict[str, Any]) -> None:
    made = benchmark(prepared, **settings)
    text = made.to_markdown()
    for said in (
        "159 spots of 3 sections, 24 genes, 4 of them a target",
        "section_1 (53), section_2 (53), section_3 (53)",
        "named by the user, in every fold the same: G0001, G0002, G0003, G0004",
        "3 folds by section",
        "seeds 0, 1",
        f"`{prepared['table'].uns['agl']['cross_validation']['hash']}`",
        "training mean, pearson: 12",
        "mse (lower is better)",
        "With 3 units an interval is about as wide as they are apart",
        "| encoder | efficientnet_lite0 |",
        f"| torch | {made.provenance['cross_validation']['versions']['torch']} |",
    ):
        assert said in text, said
    assert made.provenance["n_updates"] == {"dkgsb": 0, "agl": 0, "pgl": 0, "mean": 0, "ridge": 0}
    for row in made.differences.dropna().to_dict("records"):
        verdict = "distinguishable" if row["distinguishable"] else "not distinguishable"
        line = f"| {ARMS[row['method']].label} | {ARMS[row['reference']].label} | {row['mean']:+.4f} |"
        assert any(each.startswith(line) and f"| {verdict} from zero |" in each for each in text.splitlines())


def test_text_and_html_say_scores_differences_and_what_these_cannot_tell(
    prepared: SpatialData, settings: dict[str, Any]
) -> None:
    made = benchmark(prepared, **settings)
    head, columns, *lines = repr(made).splitlines()
    assert head.startswith(f"Benchmark of {made.results['method'].nunique()} methods, 3 folds by section")
    assert columns.endswith("pearson - ridge")
    row = made.differences.query("method == 'pgl' and reference == 'ridge' and metric == 'pearson'").iloc[0]
    (said,) = [line for line in lines if line.startswith(ARMS["pgl"].label)]
    assert said.endswith(f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
    (own,) = [line for line in lines if line.startswith("ridge ")]
    assert "[" not in own
    assert lines[-1].startswith("With 3 units an interval is about as wide as they are apart")
    for text in (said.split("  ")[-1], lines[-1]):
        assert text in made._repr_html_()


def test_updates_are_counted(prepared: SpatialData, config: TrainConfig) -> None:
    made = benchmark(prepared, methods=["pgl"], genes=GENES, seeds=1, config=replace(config, max_epochs=2, refit=False))
    assert made.provenance["n_updates"] == {
        "pgl": 2 * 3,
        "ridge": 0,
    }  # 53 training spots in batches of 16; 5 are too few


def test_goes_to_disk_and_back(prepared: SpatialData, settings: dict[str, Any], tmp_path: Path) -> None:
    made = benchmark(prepared, **settings)
    made.save(tmp_path / "report")
    back = Benchmark.load(tmp_path / "report")
    pd.testing.assert_frame_equal(back.results, made.results, check_exact=True)
    pd.testing.assert_frame_equal(back.differences, made.differences, check_exact=True)
    assert back.provenance == made.provenance
    assert back.to_markdown() == made.to_markdown()
    assert json.loads((tmp_path / "report" / "provenance.json").read_text()) == made.provenance


@pytest.mark.parametrize(
    ("change", "unit", "n_units"),
    [
        pytest.param({"by": "section"}, "section", 3, id="sections"),
        pytest.param({"by": "patient"}, "gene", 4, id="two patients"),
        pytest.param({"by": "block", "n_folds": 2, "block_um": 150, "buffer_um": 20}, "section", 3, id="blocks of 3"),
    ],
)
def test_units(*, change: dict[str, Any], unit: str, n_units: int, prepared: SpatialData) -> None:
    table = prepared["table"]
    table.obs["patient"] = table.obs["section"].map({"section_1": "A", "section_2": "A", "section_3": "B"}).astype(str)
    made = benchmark(prepared, methods=["mean"], genes=GENES, metrics=["mse"], **change)
    assert made.differences[["unit", "n_units"]].to_numpy().tolist() == [[unit, n_units]]
    warned = "these intervals are over genes" in made.to_markdown()
    assert warned == (unit == "gene")
    of_few = "The 3 sections are of 2 patients: an interval over sections says nothing of other patients."
    assert (of_few in made.to_markdown()) == (unit == "section")


def test_units_of_one_section_are_folds_of_blocks(prepared: SpatialData) -> None:
    table = prepared["table"][(prepared["table"].obs["section"] == "section_1").to_numpy()].copy()
    table.uns = copy.deepcopy(dict(table.uns))
    table.uns["spatialdata_attrs"]["region"] = "section_1"
    table.obs["region"] = table.obs["region"].cat.remove_unused_categories()
    single = SpatialData(
        images=dict(prepared.images), shapes=dict(prepared.shapes), tables={"table": table}, attrs=prepared.attrs
    )
    how: dict[str, Any] = {"by": "block", "n_folds": 4, "block_um": 100, "buffer_um": 0, "validation": 0.0}
    made = benchmark(single, methods=["mean"], genes=GENES, metrics=["mse"], **how)
    assert made.differences[["unit", "n_units"]].to_numpy().tolist() == [["fold", 4]]
    assert "4 folds" in made.to_markdown()


def test_without_names_all_that_is_cheap(prepared: SpatialData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def stop(_: Any, request: Any, **__: Any) -> None:
        asked["methods"] = request.methods
        raise InterruptedError

    monkeypatch.setattr("agl_sc.tl._benchmark.cross_validate.run_all", stop)
    with pytest.raises(InterruptedError):
        benchmark(prepared)
    assert asked["methods"] == [name for name, arm in ARMS.items() if arm.cheap]
    assert {"mean", "ridge", "pgl", "agl", "dkgsb", "random_k", "uncertainty"} <= set(asked["methods"])


def test_unknown_reference(prepared: SpatialData) -> None:
    with pytest.raises(ValueError, match="'lasso' is not a method"):
        benchmark(prepared, methods=["mean"], reference="lasso", genes=GENES)


def made_up() -> Benchmark:
    empty = pd.DataFrame(columns=["method", "metric", "value", "fold", "section"])
    return Benchmark(empty, empty, {})


def test_a_report_does_not_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("mine")
    with pytest.raises(FileExistsError, match="report is a file, not a folder"):
        made_up().save(tmp_path / "report")
    assert (tmp_path / "report").read_text() == "mine"


def test_a_report_needs_a_folder_to_lie_in(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        made_up().save(tmp_path / "nowhere" / "report")


def test_a_folder_without_a_report(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no benchmark \(results.csv is missing\)"):
        Benchmark.load(tmp_path)
