"""A trained model: predicts, saves and loads."""

import itertools
import json
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agl_sc import Model
from agl_sc import model as models
from agl_sc.core.encoders.load import OFFLINE, load_encoder
from agl_sc.core.network.network import Network

FloatArray = NDArray[np.float64]

N_FEATURES, N_TARGETS, N_PREDICTED, N_GENES = 12, 3, 5, 9
FILES = ["model.json", "model.safetensors"]


def make_model(seed: int = 0, *, method: str = "dkgsb", encoder: dict[str, torch.Tensor] | None = None) -> Model:
    learned = method == "dkgsb"
    generator = torch.Generator().manual_seed(seed)
    network = Network(N_FEATURES, N_PREDICTED, rank=2, hidden=4).state_dict()
    tensors = {f"network.{name}": torch.randn(value.shape, generator=generator) for name, value in network.items()}
    tensors |= {"feature_scale": torch.rand(N_FEATURES, generator=generator) + 0.5}
    tensors |= {name: torch.rand(N_PREDICTED, generator=generator) for name in ("slope", "intercept")}
    rows = {"loss": [np.nan, 0.9, 1 / 3], "validation_pearson": [0.1, 0.2, 0.3], "cutoff": 2 / 3, "k": 2}
    trace = pd.DataFrame({"step": [0, 1], "cutoff": [0.5, 2 / 3], "k": [1, 2], "validation_pearson": [0.2, 0.3]})
    return Model(
        tensors=tensors | {f"encoder.{name}": value for name, value in (encoder or {}).items()},
        genes=[f"gene{i}" for i in range(N_GENES - 1)] + ["Gène-µ"],
        weights=np.linspace(1.0, 1e-7, N_GENES) ** 3,
        n_targets=N_TARGETS,
        selected=np.isin(np.arange(N_GENES), [0, 1, 2, 4, 7]),
        method=method,
        search="path" if learned else None,
        cutoff=2 / 3 if learned else None,
        best_epoch=2,
        card={"features": {"encoder": OFFLINE, "tile_px": 224, "mpp": 0.5}, "normalize": "log1p_cp10k"},
        history=pd.DataFrame({"epoch": [0, 1, 2], **rows}),
        cutoff_trace=trace if learned else pd.DataFrame(columns=["step", "cutoff", "k", "validation_pearson"]),
    )


@pytest.fixture
def model() -> Model:
    return make_model()


def spots(n_spots: int = 40, seed: int = 0) -> tuple[FloatArray, NDArray[np.str_]]:
    rng = np.random.default_rng(seed)
    return rng.normal(3.0, 2.0, (n_spots, N_FEATURES)), np.array(["A", "B"])[rng.integers(0, 2, n_spots)]


def expected_prediction(model: Model, features: FloatArray, sections: NDArray[np.str_]) -> FloatArray:
    """By hand, in numpy: centre per section, scale, clip, trunk, head, calibrate."""
    tensors = {name: value.double().numpy() for name, value in model.tensors.items()}
    centred = features.copy()
    for section in np.unique(sections):
        centred[sections == section] -= np.nanmean(features[sections == section], axis=0)
    inputs = np.clip(centred / tensors["feature_scale"], -3, 3)
    inner = torch.from_numpy(inputs @ tensors["network.inner.weight"].T + tensors["network.inner.bias"])
    hidden = torch.nn.functional.gelu(inner).numpy() @ tensors["network.outer.weight"].T
    shared = inputs @ tensors["network.linear.weight"].T + hidden
    raw = shared @ tensors["network.head.weight"].T + tensors["network.head.bias"]
    predicted: FloatArray = raw * tensors["slope"] + tensors["intercept"]
    return predicted


def test_prediction_is_that_of_the_formula(model: Model) -> None:
    features, sections = spots()
    predicted = model.predict(features, sections)
    assert predicted.dtype == np.float32
    assert predicted.shape == (40, N_PREDICTED)
    np.testing.assert_allclose(predicted, expected_prediction(model, features, sections), rtol=1e-4, atol=1e-4)


def test_prediction_does_not_depend_on_a_shift_of_a_section_or_the_order_of_spots(model: Model) -> None:
    features, sections = spots()
    predicted = model.predict(features, sections)
    shifted = features + 20.0 * (sections == "B")[:, None]
    np.testing.assert_allclose(model.predict(shifted, sections), predicted, atol=1e-4)
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(model.predict(features[order], sections[order]), predicted[order], atol=1e-4)
    np.testing.assert_array_equal(model.predict(features, np.where(sections == "A", 7, 2)), predicted)


def test_more_spots_than_a_batch_of_prediction(model: Model) -> None:
    features, _ = spots(10_000)
    sections = np.repeat("A", 10_000)
    predicted = model.predict(features, sections)
    assert predicted.shape == (10_000, N_PREDICTED)
    np.testing.assert_allclose(
        predicted[-9:], expected_prediction(model, features, sections)[-9:], rtol=1e-3, atol=1e-3
    )


def test_rows_with_nan_stay_nan_and_do_not_touch_the_others(model: Model) -> None:
    features, sections = spots()
    features[[3, 17]] = np.nan
    predicted = model.predict(features, sections)
    known = np.isfinite(features).all(axis=1)
    assert np.isnan(predicted[~known]).all()
    np.testing.assert_allclose(predicted[known], model.predict(features[known], sections[known]), atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_with_one_undefined_feature_is_nan(model: Model, value: float) -> None:
    features, sections = spots()
    features[3, 7] = value
    undefined = np.isnan(model.predict(features, sections))
    assert undefined[3].all()
    assert not np.delete(undefined, 3, axis=0).any()


def test_no_spots_and_one_spot(model: Model) -> None:
    features, sections = spots()
    assert model.predict(features[:0], sections[:0]).shape == (0, N_PREDICTED)
    alone = model.predict(features[:1], sections[:1])
    np.testing.assert_allclose(alone, model.predict(np.zeros((1, N_FEATURES)), sections[:1]), atol=1e-5)


def reference_of(features: FloatArray, sections: NDArray[np.str_]) -> dict[str, FloatArray]:
    return {name: features[sections == name].mean(axis=0) for name in np.unique(sections).tolist()}


@given(st.lists(st.integers(0, 39), min_size=1, max_size=60))
@hypothesis.settings(max_examples=40, deadline=None)
def test_any_spots_in_any_order_are_predicted_as_within_the_whole(rows: list[int]) -> None:
    features, sections = spots()
    features = features.astype(np.float32)
    model, reference = make_model(), reference_of(features, sections)
    whole = model.predict(features, sections, reference)
    assert model.predict(features[rows], sections[rows], reference).tobytes() == whole[rows].tobytes()


@pytest.mark.parametrize("size", [1, 16, 1024])
def test_batches_are_predicted_as_the_whole(model: Model, size: int) -> None:
    features, sections = spots(1500)
    reference = reference_of(features, sections)
    whole = model.predict(features, sections, reference)
    np.testing.assert_allclose(whole, expected_prediction(model, features, sections), rtol=1e-4, atol=1e-4)
    starts = range(0, 200 if size == 1 else 1500, size)
    parts = [model.predict(features[i : i + size], sections[i : i + size], reference) for i in starts]
    joined = np.concatenate(parts)
    assert joined.tobytes() == whole[: len(joined)].tobytes()


def test_the_reference_of_a_section_is_what_its_spots_are_compared_with(model: Model) -> None:
    features, sections = spots()
    reference = reference_of(features, sections)
    moved = {name: mean + 1.5 for name, mean in reference.items()}
    np.testing.assert_allclose(
        model.predict(features + 1.5, sections, moved), model.predict(features, sections, reference), atol=1e-4
    )
    assert not np.allclose(
        model.predict(features, sections, moved), model.predict(features, sections, reference), atol=0.01
    )


def test_references_that_are_none_are_refused(model: Model) -> None:
    features, sections = spots()
    reference = reference_of(features, sections)
    with pytest.raises(KeyError, match="reference lacks the section 'B' and holds A; pass the mean features"):
        model.predict(features, sections, {"A": reference["A"]})
    with pytest.raises(
        ValueError, match=rf"reference of section 'B' has shape \(3,\); pass its mean features, \({N_FEATURES},\)"
    ):
        model.predict(features, sections, {**reference, "B": np.zeros(3)})
    with pytest.raises(ValueError, match=r"reference of section 'A' has shape .* without NaN"):
        model.predict(features, sections, {**reference, "A": np.full(N_FEATURES, np.nan)})


@pytest.mark.parametrize("shape", [(40, N_FEATURES + 1), (40, 1), (N_FEATURES,), (2, 20, N_FEATURES)])
def test_features_of_another_width_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    message = (
        rf"features have shape \({', '.join(map(str, shape))},?\), but the model needs \(n_spots, {N_FEATURES}\); embed"
    )
    with pytest.raises(ValueError, match=message):
        model.predict(np.zeros(shape), np.repeat("A", shape[0]))


def test_predict_changes_nothing(model: Model) -> None:
    features, sections = spots()
    before, tensors = features.copy(), {name: value.clone() for name, value in model.tensors.items()}
    model.predict(features, sections)
    np.testing.assert_array_equal(features, before)
    assert all(torch.equal(model.tensors[name], tensors[name]) for name in tensors)


def test_names_of_genes(model: Model) -> None:
    assert model.targets == ["gene0", "gene1", "gene2"]
    assert model.predicted_genes == ["gene0", "gene1", "gene2", "gene4", "gene7"]


def assert_same(one: Model, other: Model) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert all(one.tensors[name].dtype == other.tensors[name].dtype for name in one.tensors)
    np.testing.assert_array_equal(one.weights, other.weights)
    for name in (
        "genes",
        "n_targets",
        "n_predicted",
        "predicted_genes",
        "method",
        "search",
        "cutoff",
        "best_epoch",
        "card",
    ):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("history", "cutoff_trace"):
        loaded, expected = getattr(one, name), getattr(other, name)
        pd.testing.assert_frame_equal(
            loaded, expected, check_dtype=len(expected) > 0, check_index_type=False, rtol=1e-14
        )


@pytest.mark.parametrize("method", ["pgl", "agl", "dkgsb"])
def test_round_trip(tmp_path: Path, method: str) -> None:
    model = make_model(method=method)
    model.save(tmp_path / "model")
    again = Model.load(str(tmp_path / "model"))
    assert_same(again, model)
    np.testing.assert_array_equal(again.predict(*spots()), model.predict(*spots()))


def test_a_history_without_validation_stays_numbers(tmp_path: Path, model: Model) -> None:
    model.history["validation_pearson"] = np.nan
    model.save(tmp_path / "model")
    assert_same(Model.load(tmp_path / "model"), model)


def test_model_of_strided_tensors(tmp_path: Path, model: Model) -> None:
    model.tensors["network.inner.weight"] = model.tensors["network.inner.weight"].T.contiguous().T
    model.save(tmp_path / "model")
    assert_same(Model.load(tmp_path / "model"), model)


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_model().save("model")
    assert_same(Model.load("model"), make_model())


def test_folder_holds_two_plain_files(tmp_path: Path, model: Model) -> None:
    model.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    for name in FILES:
        data = (tmp_path / "model" / name).read_bytes()
        assert not data.startswith((b"\x80", b"PK"))  # neither a pickle nor a zip of pickles
    assert json.loads((tmp_path / "model" / "model.json").read_text())["format"] == 2


def test_same_model_same_bytes(tmp_path: Path, model: Model) -> None:
    for name in ("a", "b"):
        model.save(tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_older_model_is_replaced(tmp_path: Path, model: Model) -> None:
    make_model(seed=1).save(tmp_path / "model")
    model.save(tmp_path / "model")
    assert_same(Model.load(tmp_path / "model"), model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str, *, call: int, error: BaseException) -> None:
    """Let the n-th call of a method of Path fail, and no other."""
    original: Callable[..., Any] = getattr(Path, method)
    calls = itertools.count(1)

    def interrupted(path: Path, *arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise error
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, method, interrupted)


@pytest.mark.parametrize(
    "error", [OSError("No space left on device"), KeyboardInterrupt("now")], ids=["disk", "Ctrl-C"]
)
@pytest.mark.parametrize(("method", "call"), [("mkdir", 1), ("write_bytes", 1), ("write_text", 1)])
def test_older_model_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, method: str, call: int, error: BaseException
) -> None:
    older = make_model(seed=1)
    older.save(tmp_path / "model")
    with monkeypatch.context() as context:
        interrupt(context, method, call=call, error=error)
        with pytest.raises(type(error), match=str(error)):
            make_model().save(tmp_path / "model")
    assert_same(Model.load(tmp_path / "model"), older)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_nothing_is_left_when_the_first_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, "write_text", call=1, error=OSError("No space left"))
    with pytest.raises(OSError, match="No space left"):
        make_model().save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def saved(tmp_path: Path, model: Model) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def flip_a_bit(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize("harm", [lambda _: b"", lambda d: d[:7], lambda d: d[:-1], flip_a_bit])
def test_truncated_or_altered_weights(saved: Path, harm: Callable[[bytes], bytes]) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(harm(weights.read_bytes()))
    with pytest.raises(ValueError, match=r"model is truncated or altered: .* checksum in model\.json; save"):
        Model.load(saved)


@pytest.mark.parametrize("kept", [0, 1, 50, -2])
def test_truncated_card(saved: Path, kept: int) -> None:
    data = (saved / "model.json").read_bytes()
    (saved / "model.json").write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"model\.json is truncated or altered \(.*\); save the model again"):
        Model.load(saved)


def test_card_that_is_not_text(saved: Path) -> None:
    (saved / "model.json").write_bytes(b"\xff\xfe\x00{}")
    with pytest.raises(ValueError, match=r"model\.json is truncated or altered \(.*utf-8.*\)"):
        Model.load(saved)


def edited(saved: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    card = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    change(card)
    (saved / "model.json").write_text(json.dumps(card), encoding="utf-8")


EDITS: list[Any] = [
    pytest.param(lambda card: card["genes"].reverse(), id="genes in another order"),
    pytest.param(lambda card: card.update(n_targets=2), id="fewer targets"),
    pytest.param(lambda card: card["card"]["features"].update(encoder="resnet18"), id="another encoder"),
    pytest.param(lambda card: card.pop("weights"), id="no weights"),
    pytest.param(lambda card: card.pop("sha256"), id="no checksum"),
    pytest.param(lambda card: card.update(extra=1), id="another field"),
]


@pytest.mark.parametrize("change", EDITS)
def test_edited_card(saved: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edited(saved, change)
    with pytest.raises(ValueError, match=r"truncated or altered: its files do not have the checksum in model\.json"):
        Model.load(saved)


def test_card_that_is_merely_laid_out_anew_is_taken(saved: Path, model: Model) -> None:
    edited(saved, lambda card: None)
    assert_same(Model.load(saved), model)


@pytest.mark.parametrize("card", ['{"format": 1}', "{}", "[1, 2]"])
def test_another_format(saved: Path, card: str) -> None:
    (saved / "model.json").write_text(card)
    with pytest.raises(
        ValueError, match=r"is of another model format than 2 or 3; load it with the agl-sc version that wrote"
    ):
        Model.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"is not a model: {name} is missing; pass a folder written by Model\.save"
    ):
        Model.load(saved)


def test_loading_what_is_not_there_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("nothing", "file"):
        with pytest.raises(FileNotFoundError, match=rf"{name} is not a model: model\.json is missing"):
            Model.load(tmp_path / name)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_is_not_overwritten(tmp_path: Path, model: Model, kind: str) -> None:
    place = tmp_path / "thesis"
    if kind == "folder":
        place.mkdir()
        (place / "chapter.tex").write_text("years of work")
    else:
        place.write_text("years of work")
    with pytest.raises(FileExistsError, match=r"thesis exists and is not a model; choose another path"):
        model.save(place)
    assert (place / "chapter.tex" if kind == "folder" else place).read_text() == "years of work"


def test_missing_parent(tmp_path: Path, model: Model) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"The folder .*/missing does not exist; make it, or choose another path"
    ):
        model.save(tmp_path / "missing" / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc to stand for a read-only place")
def test_read_only_place(model: Model) -> None:
    with pytest.raises(PermissionError, match=r"The folder /proc cannot be written to \(.+\); choose another path"):
        model.save("/proc/model")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_folder(tmp_path: Path, model: Model) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot be written to \(Permission denied\)"):
        model.save(tmp_path / "model")


def test_path_is_checked_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def serialise(tensors: dict[str, torch.Tensor]) -> bytes:
        raise AssertionError(tensors)

    monkeypatch.setattr(models, "save_tensors", serialise)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_model().save(tmp_path / "missing" / "model")


def test_finetuned_model_brings_its_own_encoder(tmp_path: Path) -> None:
    base = load_encoder(OFFLINE)
    state = {
        name: value + 0.25 if value.is_floating_point() else value for name, value in base.module.state_dict().items()
    }
    model = make_model(encoder=state)
    assert model.finetuned
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model").encoder()
    assert all(torch.equal(value, state[name]) for name, value in again.module.state_dict().items())


def test_model_on_cached_features_has_the_encoder_as_it_comes(model: Model) -> None:
    assert not model.finetuned
    assert model.encoder().digest == load_encoder(OFFLINE).digest


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt("now")])
def test_older_model_stays_when_the_exchange_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    older = make_model(seed=1)
    older.save(tmp_path / "model")

    def fail(fresh: Path, path: Path) -> None:
        raise error

    with monkeypatch.context() as context:
        context.setattr("agl_sc.core.writing.staging.exchange", fail)
        with pytest.raises(type(error), match=str(error)):
            make_model().save(tmp_path / "model")
    assert_same(Model.load(tmp_path / "model"), older)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_to_a_model_stays(tmp_path: Path, model: Model) -> None:
    make_model(seed=1).save(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    model.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(Model.load(tmp_path / "real"), model)


def test_readers_see_one_model_or_the_other_while_it_is_replaced(tmp_path: Path) -> None:
    models_ = [make_model(seed=seed) for seed in (0, 1)]
    expected = {float(each.tensors["slope"][0]) for each in models_}
    models_[0].save(tmp_path / "model")
    stop, loads, faults = threading.Event(), list[float](), list[Exception]()

    def read() -> None:
        while not stop.is_set():
            try:
                loads.append(float(Model.load(tmp_path / "model").tensors["slope"][0]))
            except (OSError, ValueError) as error:
                faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        models_[turn % 2].save(tmp_path / "model")
    stop.set()
    reader.join()
    assert not faults
    assert set(loads) == expected


def test_the_order_of_records_does_not_change_the_bytes(tmp_path: Path, model: Model) -> None:
    """As of a table that was in a store."""
    features = {
        "encoder": OFFLINE, "weights_digest": "d", "tile_px": 224, "mpp": 0.5, "image_mpp": {"a": 1.0, "b": 0.5},
        "images": {"a": "1", "b": "2"}, "sections": {"a": "3", "b": "4"}, "context": "2 4", "neighbors": 0,
        "orientations": 2, "stages": True, "precision": "float32", "another": 1,
    }  # fmt: skip
    backwards = {
        name: dict(reversed(value.items())) if isinstance(value, dict) else value
        for name, value in reversed(features.items())
    }
    backwards |= {"tile_px": np.int64(224), "mpp": np.float64(0.5), "stages": np.bool_(True)}
    for name, card in (("a", features), ("b", backwards)):
        model.card.update(features=card, fitted_on=dict(reversed(card["images"].items())))  # type: ignore[attr-defined]
        model.save(tmp_path / name)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert list(Model.load(tmp_path / "a").card["features"])[:3] == ["encoder", "weights_digest", "tile_px"]


def test_what_is_not_finite_in_a_card_is_null(tmp_path: Path, model: Model) -> None:
    model.card["params"] = {"alpha": float("nan"), "lr": np.float32("inf"), "rates": np.array([1.0, np.nan])}
    model.save(tmp_path / "model")
    assert Model.load(tmp_path / "model").card["params"] == {"alpha": None, "lr": None, "rates": [1.0, None]}


def test_text_says_what_a_model_is(model: Model) -> None:
    model.card["fitted_on"] = {f"section {i}": "digest" for i in range(7)}
    assert repr(model) == (
        "Model: dkgsb (search by path)\n"
        "  genes: 3 targets, 2 of 6 auxiliary genes selected (cutoff 0.67)\n"
        "  encoder: efficientnet_lite0\n"
        "  tiles: 224 px at 0.5 um/px\n"
        "  trained on: 7 sections (section 0, section 1, section 2, section 3, section 4, ...)\n"
        "  validation Pearson: 0.300 at epoch 2\n"
        "  levels of sections: not predicted, values compare within a section"
    )
    bare = make_model(method="pgl", encoder={"x": torch.zeros(1)})
    bare.history["validation_pearson"] = np.nan
    for said in (
        "Model: pgl\n",
        "auxiliary genes selected\n",
        "lite0, fine-tuned",
        "sections not known",
        "Pearson: not",
    ):
        assert said in repr(bare), said


def test_text_says_how_well_genes_are_predicted(model: Model) -> None:
    scores = {name: [0.1 * i for i in range(len(model.genes))] for name in ("pearson", "q_value")}
    model.card["scores"] = {"by": "section", "sections": ["a", "b"], "words": "each predicted from the others"}
    model.card["scores"]["columns"] = scores
    model.card["fitted_on"] = {"a": "digest"}
    model.card["features"]["mpp"] = 4.174436560404391
    predicted = model.scores.loc[model.predicted_genes, "pearson"]
    best = ", ".join(f"{gene} {r:.2f}" for gene, r in predicted[::-1][:3].items())
    assert (
        f"  held-out r: median {predicted.median():.2f}, best {best}; 1 of {len(predicted)} predicted genes told from chance "
        "(each predicted from the others)\n"
    ) in repr(model)
    assert "  trained on: 1 section (a)\n" in repr(model)
    assert "px at 4.174 um/px" in repr(model)
    scores["q_value"] = [float("nan")] * len(model.genes)
    assert "told from chance" not in repr(model)


def test_html_is_a_table_with_everything_escaped(model: Model) -> None:
    odd = "<script>alert('x')</script> & $\\frac{1}$"
    model.card["features"]["encoder"] = odd
    model.card["fitted_on"] = {odd: "digest"}
    html = model._repr_html_()
    assert html.startswith("<table><tr><th")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert html.count("<tr>") == html.count("</tr>") == 7


HERE = ["efficientnet_lite0", "UNI", "hf-hub:MahmoodLab/UNI", "no such encoder"]
ELSEWHERE = [
    "hf-hub:anyone/x",
    "hf-hub:anyone/x@main",
    "hf-hub:../x",
    "/models/mine",
    "resnet18@weights.pth",
    "resnet18",
    ".",
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_card_alone_fetches_no_encoder(
    *, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model, name: str
) -> None:
    asked: list[str] = []

    def load(name: str, *, stages: bool) -> Any:
        asked.append(name)
        return load_encoder(OFFLINE)

    monkeypatch.setattr(models, "load_encoder", load)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    model.card["features"]["encoder"] = name
    model.save(tmp_path / "model")
    message = rf"names the encoder '{re.escape(name)}', which is fetched from elsewhere; .* trust_encoder=True"
    with pytest.raises(ValueError, match=message):
        Model.load(tmp_path / "model").encoder()
    assert not asked
    Model.load(tmp_path / "model", trust_encoder=True).encoder()
    model.encoder()  # named by who trained it
    assert asked == [name, name]


@pytest.mark.parametrize("name", HERE)
def test_known_encoders_need_no_trust(tmp_path: Path, model: Model, name: str) -> None:
    model.card["features"]["encoder"] = name
    model.save(tmp_path / "model")
    models.check_encoder_is_trusted(Model.load(tmp_path / "model"))


def test_an_encoder_that_was_downloaded_before_needs_no_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Model
) -> None:
    repository = tmp_path / "hub" / "models--anyone--x"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "snapshots" / "abc" / "model.safetensors").write_text("")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model.card["features"]["encoder"] = "hf-hub:anyone/x"
    model.save(tmp_path / "model")
    models.check_encoder_is_trusted(Model.load(tmp_path / "model"))


def test_fine_tuned_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    model = make_model(encoder={"conv.weight": torch.zeros(2)})
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="fine-tuned weights are not those of the encoder 'efficientnet_lite0'"):
        Model.load(tmp_path / "model").encoder()
