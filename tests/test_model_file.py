"""A saved model that was altered with its checksum: it still predicts, or one sentence names what is wrong."""

import copy
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tests.test_model import N_FEATURES, make_model, spots

from agl_sc import Model
from agl_sc._model_file import checksum, in_order

N_EDITS = 400
POOL: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 3.5, -0.5, 1e-320, 1e308, -1e308, 10**30, 10**400, math.nan, math.inf, "", "x", "µ",
    "\ud800", "hf-hub:anyone/x", "<b>", [], [0], [None], ["a", "a"], [[]], {}, {"a": 1}, {"": {}}, [1.0] * 9, [True] * 9,
    {"columns": [], "index": [], "data": []},
]  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = make_model()
    model.card.update(
        fitted_on={"A": "1"}, split="digest", versions={"torch": "2"}, params={"seed": 0, "lr": 1e-3, "loss": "pearson"}
    )
    model.card["features"].update(
        context="2 4",
        neighbors=0,
        orientations=2,
        stages=True,
        weights_digest="d",
        image_mpp={"A": 0.5},
        images={"A": "1"},
    )
    model.save(tmp_path / "model")
    return tmp_path / "model"


def rewrite(saved: Path, fields: dict[str, Any], data: bytes | None = None) -> None:
    """Put other contents there, under a checksum that fits."""
    data = (saved / "model.safetensors").read_bytes() if data is None else data
    (saved / "model.safetensors").write_bytes(data)
    text = json.dumps({**fields, "sha256": checksum(data, fields)})
    (saved / "model.json").write_text(text, encoding="utf-8")


def fields_of(saved: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    del fields["sha256"]
    return fields


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to everything within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*at, name) for name, _ in inner] + [way for name, each in inner for way in places(each, (*at, name))]


def edited(fields: dict[str, Any], draw: random.Random) -> tuple[dict[str, Any], str]:
    """One to three random edits, and what they were."""
    fields, said = copy.deepcopy(fields), []
    for _ in range(draw.randint(1, 3)):
        *way, name = draw.choice(places(fields))
        holder: Any = fields
        for each in way:
            holder = holder[each]
        what = draw.choice(["replace", "replace", "replace", "delete", "add", "repeat"])
        value = copy.deepcopy(draw.choice(POOL))
        if what == "delete":
            del holder[name]
        elif what == "add" and isinstance(holder, dict):
            holder[draw.choice(["extra", "encoder", "0"])] = value
        elif what == "repeat" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[name]))
        else:
            holder[name] = value
        said.append(f"{what} {[*way, name]} {value!r:.40}")
    return fields, "; ".join(said)


def check_is_own(error: Exception) -> None:
    """One line, raised in this package and not in a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_globals["__name__"].startswith("agl_sc"), repr(error)
    assert "\n" not in str(error)


def outcome(saved: Path) -> str:
    """Loads to a model that predicts finite values, or is refused by the package itself."""
    try:
        model = Model.load(saved)
    except (ValueError, FileNotFoundError, OSError) as error:
        check_is_own(error)
        return "refused"
    n_features = len(model.tensors["feature_scale"])
    features = np.random.default_rng(0).normal(scale=1e6, size=(20, n_features))
    predicted = model.predict(features, np.repeat(["A", "B"], 10))
    assert predicted.shape == (20, model.n_predicted)
    assert np.isfinite(predicted).all()
    assert repr(model)
    assert model._repr_html_()
    return "loaded"


def test_random_edits_of_the_card(saved: Path) -> None:
    fields, outcomes = fields_of(saved), []
    for seed in range(N_EDITS):
        changed, said = edited(fields, random.Random(seed))
        rewrite(saved, changed)
        try:
            outcomes.append(outcome(saved))
        except Exception as error:
            error.add_note(f"edit {seed}: {said}")
            raise
    assert 0.5 * N_EDITS < outcomes.count("refused") < N_EDITS


def test_random_bytes_in_the_weights(saved: Path) -> None:
    fields, data = fields_of(saved), (saved / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    refused = 0
    for seed in range(N_EDITS):
        draw, harmed = random.Random(seed), bytearray(data)
        for _ in range(draw.randint(1, 4)):
            end = 8 if seed % 4 == 0 else 8 + header if seed % 2 else len(harmed)
            harmed[draw.randrange(end)] = draw.randrange(256)
        if seed % 10 == 0:
            harmed = harmed[: draw.randrange(len(harmed))]
        rewrite(saved, fields, bytes(harmed))
        refused += outcome(saved) == "refused"
    assert refused > N_EDITS / 2


def set_field(way: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        *inner, name = way.split(".")
        for each in inner:
            fields = fields[each]
        fields[name] = value

    return change


@pytest.mark.parametrize(
    ("way", "value"),
    [
        ("genes", []), ("genes", ["a"] * 9), ("genes", [*"abcdefgh", ""]), ("genes", [*"abcdefgh", 1]), ("genes", "abcdefghi"),
        ("n_targets", 0), ("n_targets", 10), ("n_targets", True), ("n_targets", 3.0), ("n_targets", 5),
        ("method", None), ("method", 1), ("search", 1), ("cutoff", 1.5), ("cutoff", "0.5"), ("best_epoch", -1),
        ("weights", [1.0] * 8), ("weights", [1.5] * 9), ("weights", [-0.1] * 9), ("weights", ["1"] * 9),
        ("selected", [1] * 9), ("selected", [True] * 8), ("selected", [False] * 9),
        ("history", {}), ("history.columns", ["epoch"]), ("history.data", [[1]]), ("history.index", [0]),
        ("cutoff_trace.columns", ["step"] * 4), ("history.data", [["x"] * 5] * 3),
        ("card", []), ("card.features", None), ("card.features.encoder", 1), ("card.features.tile_px", 10**6),
        ("card.features.mpp", 0), ("card.features.mpp", "0.5"), ("card.features.image_mpp", {"A": -1}),
        ("card.features.context", "x"), ("card.features.context", "inf"), ("card.features.orientations", 3),
        ("card.features.halo_px", 48), ("card.features.neighbors", -1), ("card.features.stages", 1), ("card.normalize", 5), ("card.fitted_on", ["A"]),
        ("card.versions", {"torch": 2}), ("card.params", []), ("card.split", 3),
    ],
)  # fmt: skip
def test_a_field_that_is_not_what_it_must_be_is_named(saved: Path, way: str, value: Any) -> None:
    fields = fields_of(saved)
    set_field(way, value)(fields)
    rewrite(saved, fields)
    with pytest.raises(ValueError, match=rf"({way}|len\({way}\)|selected).* in .*altered: save the model again"):
        Model.load(saved)


@pytest.mark.parametrize("name", ["genes", "card", "cutoff", "history"])
def test_a_missing_field_is_named(saved: Path, name: str) -> None:
    fields = fields_of(saved)
    del fields[name]
    rewrite(saved, fields)
    with pytest.raises(ValueError, match=rf"'{name}' is missing in .*model\.json"):
        Model.load(saved)


@pytest.mark.parametrize("name", ["encoder", "tile_px", "mpp"])
def test_a_card_without_what_prediction_needs(saved: Path, name: str) -> None:
    fields = fields_of(saved)
    del fields["card"]["features"][name]
    rewrite(saved, fields)
    with pytest.raises(ValueError, match=rf"card\.features\.{name}=None in .* is not"):
        Model.load(saved)


def test_an_unknown_method_is_only_a_name(saved: Path) -> None:
    fields = fields_of(saved)
    fields["method"] = "weighting of my own"
    rewrite(saved, fields)
    assert Model.load(saved).method == "weighting of my own"


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"format": 2, "x": NaN}', '{"format": 2, "x": -Infinity}', '{"x": ' + "9" * 5000 + "}"],
    ids=["deep lists", "deep objects", "NaN", "Infinity", "digits"],
)  # fmt: skip
def test_json_of_other_kinds(saved: Path, text: str) -> None:
    (saved / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json is truncated or altered \(.*\); save the model again"):
        Model.load(saved)


def test_numbers_that_overflow_when_they_are_read(saved: Path) -> None:
    fields = fields_of(saved)
    fields["card"]["params"]["lr"] = math.inf
    (saved / "model.json").write_text(
        json.dumps({**fields, "sha256": checksum((saved / "model.safetensors").read_bytes(), fields)}).replace(
            "Infinity", "1e999"
        )
    )
    with pytest.raises(ValueError, match=r"card='inf' in .* is not of finite numbers"):
        Model.load(saved)


TENSORS: list[Any] = [
    ("feature_scale", lambda t: t * 0, "'feature_scale' .* is not positive"),
    ("feature_scale", lambda t: t.double(), r"torch\.float64 of shape \(12,\), not torch\.float32"),
    ("feature_scale", lambda t: t[:-1], "'network.inner.weight'"),
    ("slope", lambda t: t * math.nan, "'slope' .* not finite"),
    ("intercept", lambda t: t[:-1], r"'intercept' .* of shape \(4,\), not torch.float32 of shape \(5,\)"),
    ("intercept", lambda t: None, "'intercept' .* is missing"),
    ("network.head.weight", lambda t: t[:-1], "'network.head.weight'"),
    ("network.head.weight", lambda t: t * 1e38 * 10, "not finite|overflow"),
    ("network.inner.weight", lambda t: torch.full_like(t, 1e38), "so large that predictions overflow"),
    ("network.more", lambda t: torch.zeros(3), "'network.more' .* none of a model's"),
    ("encoder.x", lambda t: torch.tensor([math.inf]), "'encoder.x' .* not finite"),
]


@pytest.mark.parametrize(("name", "change", "message"), TENSORS)
def test_tensors_that_do_not_fit(saved: Path, *, name: str, change: Callable[[Any], Any], message: str) -> None:
    tensors = load((saved / "model.safetensors").read_bytes())
    new = change(tensors.pop(name, None))
    rewrite(saved, fields_of(saved), save(tensors if new is None else {**tensors, name: new.contiguous()}))
    with pytest.raises(ValueError, match=message):
        Model.load(saved)


def test_any_model_that_is_saved_is_read_again(tmp_path: Path) -> None:
    for seed, method in enumerate(("pgl", "agl", "dkgsb", "uncertainty")):
        model = make_model(seed, method=method)
        model.save(tmp_path / "model")
        np.testing.assert_array_equal(Model.load(tmp_path / "model").predict(*spots()), model.predict(*spots()))


def test_a_record_in_order_is_left_as_it_is() -> None:
    card = {
        "normalize": "log1p",
        "features": {"encoder": "x", "tile_px": 8, "images": {"a": "1", "b": "2"}},
        "params": {"z": 1},
    }
    assert json.dumps(in_order(card)) == json.dumps(card)
    assert N_FEATURES == 12
