"""Settings of training are checked when they are made."""

import copy
import json
import pickle
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest

from agl_sc.core.config import Denoise, GradientSearch, Preset, TrainConfig, checked_config

BAD = [
    ("search", "grid", r"search='grid' is not one of 'path', 'gradient'"),
    ("rank", 0, r"rank=0 is not at least 1, or None\."),
    ("hidden", 0, r"hidden=0 is not at least 1\."),
    ("dropout", 1.0, r"dropout=1\.0 is not in \[0, 1\)\."),
    ("dropout", -0.1, r"dropout=-0\.1 is not in \[0, 1\)\."),
    ("lr", 0.0, r"^lr=0\.0 is not positive\."),
    ("lr", float("nan"), r"^lr=nan is not positive\."),
    ("encoder_lr", -1.0, r"encoder_lr=-1\.0 is not positive\."),
    ("weight_decay", -0.01, r"weight_decay=-0\.01 is not at least 0\."),
    ("batch_size", 7, r"batch_size=7 is not at least 8, since Pearson is taken over a batch\."),
    ("max_epochs", -1, r"max_epochs=-1 is not at least 0\."),
    ("patience", 0, r"patience=0 is not at least 1\."),
    ("temperature", 0.0, r"temperature=0\.0 is not positive; 0\.01 is the paper's\."),
    ("start_cutoff", 1.5, r"start_cutoff=1\.5 is not in \[0, 1\]\."),
    ("start_cutoff", float("nan"), r"start_cutoff=nan is not in \[0, 1\]\."),
    ("inner_steps", 0, r"inner_steps=0 is not at least 1\."),
    ("outer_lr", 0.0, r"outer_lr=0\.0 is not positive\."),
    ("outer_batch_size", 7, r"outer_batch_size=7 is not at least 8, or None\."),
    ("validation_batch_size", 0, r"validation_batch_size=0 is not at least 8, or None\."),
    ("warmup_epochs", -1, r"warmup_epochs=-1 is not at least 0\."),
    ("search_patience", 0, r"search_patience=0 is not at least 1\."),
    ("hard_limit", 0.0, r"hard_limit=0\.0 is not in \(0, 1\]\."),
    ("loss", "l1", r"loss='l1' is not one of 'pearson', 'mse', 'poisson', 'negative_binomial', 'multinomial'\."),
    ("start", "warm", r"start='warm' is not one of 'closed_form', 'random', 'agl'\."),
]


KINDS = [
    each for cls in (TrainConfig, GradientSearch) for each in fields(cls) if each.name not in ("gradient", "denoise")
]


@pytest.mark.parametrize(
    "value", ["x", b"x", [1], {}, None, object(), np.arange(3.0), 1j], ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("each", KINDS, ids=lambda each: each.name)
def test_no_setting_takes_another_kind(each: Any, value: Any) -> None:
    cls: Any = TrainConfig if each in fields(TrainConfig) else GradientSearch
    if value is None and each.type == int | None:
        assert getattr(cls(**{each.name: None}), each.name) is None
        return
    with pytest.raises((TypeError, ValueError), match=rf"^{each.name}=.* is (a .*, not .*|not one of .*)\.$"):
        cls(**{each.name: value})


@pytest.mark.parametrize(
    "each", [each for each in KINDS if each.type in (int, int | None, bool)], ids=lambda each: each.name
)
def test_a_number_is_no_flag_and_a_flag_no_number(each: Any) -> None:
    cls: Any = TrainConfig if each in fields(TrainConfig) else GradientSearch
    with pytest.raises(TypeError, match=f"^{each.name}=(1|True) is a (int|bool), not "):
        cls(**{each.name: 1 if each.type is bool else True})


@pytest.mark.parametrize("name", ["lr", "encoder_lr", "weight_decay", "temperature"])
def test_infinite_settings_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=inf is not finite; the default is "):
        TrainConfig(**dict[str, Any]({name: float("inf")}))


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{name}={value}" for name, value, _ in BAD])
def test_bad_settings_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_plain({name: value})


def test_settings_at_the_edge_are_taken() -> None:
    TrainConfig(rank=1, hidden=1, dropout=0.0, weight_decay=0.0, batch_size=8, max_epochs=0, patience=1)
    GradientSearch(start_cutoff=0, inner_steps=1, outer_batch_size=8, validation_batch_size=8, warmup_epochs=0)


PUBLISHED: dict[Preset, dict[str, Any]] = {
    "paper": {"inner_steps": 2, "start_cutoff": 1.0, "warmup_epochs": 0, "start": "random", "patience": 20},
    "released": {
        "inner_steps": 12,
        "start_cutoff": 0.5,
        "warmup_epochs": 1,
        "start": "random",
        "patience": 20,
        "outer_batch_size": 64,
        "validation_batch_size": 64,
    },
    "warmstart": {
        "inner_steps": 2,
        "start_cutoff": 0.5,
        "start": "agl",
        "patience": 50,
        "search_patience": 20,
        "outer_batch_size": 320,
        "validation_batch_size": 128,
    },
}
COMMON: dict[str, Any] = {
    "search": "gradient",
    "loss": "pearson",
    "lr": 3e-5,
    "encoder_lr": 3e-5,
    "weight_decay": 0.0,
    "batch_size": 128,
    "max_epochs": 1000,
    "temperature": 0.01,
    "outer_lr": 3e-3,
    "hessian": True,
    "warm_moments": False,
    "detach_normalizer": True,
    "refit": False,
}


@pytest.mark.parametrize("name", get_args(Preset))
def test_presets_have_the_published_constants(name: Preset) -> None:
    preset = TrainConfig.preset(name).plain()
    expected = {**COMMON, **PUBLISHED[name]}
    assert {field: preset[field] for field in expected} == expected


@pytest.mark.parametrize("name", get_args(Preset))
def test_changes_to_a_preset_apply_and_are_checked(name: Preset) -> None:
    changed = TrainConfig.preset(name, batch_size=32, max_epochs=2)
    assert (changed.batch_size, changed.max_epochs) == (32, 2)
    assert replace(changed, batch_size=128, max_epochs=1000) == TrainConfig.preset(name)
    with pytest.raises(ValueError, match="batch_size=2 is not at least 8"):
        TrainConfig.preset(name, batch_size=2)


NESTED = [field.name for field in fields(GradientSearch)]
OTHER: dict[str, Any] = {
    "start_cutoff": 0.3, "inner_steps": 5, "warm_moments": False, "hessian": False, "detach_normalizer": True,
    "outer_lr": 0.1, "outer_batch_size": 40, "validation_batch_size": 50, "warmup_epochs": 4, "search_patience": 7,
}  # fmt: skip


def test_settings_that_are_stored_are_flat_and_in_their_old_order() -> None:
    plain = TrainConfig().plain()
    assert list(plain)[-11:] == ["hard_limit", *NESTED]
    assert "gradient" not in plain
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize("config", [TrainConfig(), *map(TrainConfig.preset, get_args(Preset))])
def test_stored_settings_are_read_again(config: TrainConfig) -> None:
    assert TrainConfig.from_plain(config.plain()) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_a_stored_setting_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'method'"):
        TrainConfig.from_plain({"method": "agl"})


@pytest.mark.parametrize("name", NESTED)
def test_old_names_are_taken_and_the_new_form_is_told(name: str) -> None:
    """By the constructor, by ``replace`` and by a preset, whose other settings stay."""
    nested = GradientSearch(**{name: OTHER[name]})
    told = rf"{name}={OTHER[name]!r} is now of the gradient search: TrainConfig\(gradient=GradientSearch\({name}="
    with pytest.warns(FutureWarning, match=told):
        assert TrainConfig(**{name: OTHER[name]}) == TrainConfig(gradient=nested)
    with pytest.warns(FutureWarning, match=told):
        assert replace(TrainConfig(lr=1.0), **{name: OTHER[name]}) == TrainConfig(lr=1.0, gradient=nested)
    changes: dict[str, Any] = {name: OTHER[name]}
    with pytest.warns(FutureWarning, match=told):
        old = TrainConfig.preset("warmstart", **changes)
    assert old == TrainConfig.preset("warmstart", gradient=changes)
    assert old.plain() == {**TrainConfig.preset("warmstart").plain(), **changes}


def test_nested_settings_are_of_their_kind() -> None:
    with pytest.raises(TypeError, match=r"gradient=\{'inner_steps': 2\} is not a GradientSearch; pass gradient=agl_sc"):
        TrainConfig(gradient={"inner_steps": 2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inner_steps=0 is not at least 1"):
        TrainConfig.preset("paper", gradient={"inner_steps": 0})


def test_settings_of_an_entry_point() -> None:
    config = TrainConfig(max_epochs=3)
    assert checked_config(None) == TrainConfig()
    assert checked_config(config) is config
    assert checked_config(None, "released") == TrainConfig.preset("released")
    with pytest.raises(ValueError, match=r"preset='paper' and config= exclude each other; pass config=TrainConfig.pre"):
        checked_config(config, "paper")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param(
            {"lr": 1}, r"config=\{'lr': 1\} is a dict, not a TrainConfig; pass such as config=agl_sc", id="dict"
        ),
        pytest.param(
            "paper", r"config='paper' is a str, .*config=agl_sc.tl.TrainConfig.preset\('paper'\)\.", id="preset"
        ),
        pytest.param(TrainConfig, "is a type, not a TrainConfig", id="class"),
        pytest.param(["paper"], r"config=\['paper'\] is a list", id="list"),
        pytest.param(GradientSearch(), "is a GradientSearch, not a TrainConfig", id="nested"),
    ],
)
@pytest.mark.parametrize("preset", [None, "paper"])
def test_settings_of_another_kind_are_refused(config: Any, message: str, preset: Preset | None) -> None:
    with pytest.raises(TypeError, match=message):
        checked_config(config, preset)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"preset='aaai' is not one of 'paper', 'released', 'warmstart'\."):
        TrainConfig.preset("aaai")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_features", "rate"), [(512, 1e-4), (1280, 1e-4), (2560, 5e-5), (12800, 1e-5)])
def test_the_learning_rate_falls_with_the_number_of_features(n_features: int, rate: float) -> None:
    assert TrainConfig(lr=1e-4).rate(n_features) == pytest.approx(rate)
    assert TrainConfig(lr=1e-4, start="random").rate(n_features) == 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"genes": ()}, r"genes=\(\) is not one or more numbers of genes, each at least 0"),
        ({"genes": (-1,)}, r"genes=\(-1,\) is not one or more numbers of genes"),
        ({"components": (0,)}, r"components=\(0,\) is not one or more numbers of components, each at least 1"),
        ({"components": (2.5,)}, r"components=\(2.5,\) is not"),
        (
            {"mix": (0.0,)},
            r"mix=\(0.0,\) is not one or more shares, each in \(0, 1\]; TrainConfig\(denoise=None\) leaves",
        ),
        ({"mix": (0.5, 1.5)}, r"mix=\(0.5, 1.5\) is not"),
    ],
)
def test_candidates_for_denoising_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Denoise(**values)


def test_denoising_survives_the_plain_form_and_is_refused_as_another_kind() -> None:
    for denoise in (None, Denoise(genes=(0, 7), components=(3,), mix=(0.25,))):
        config = TrainConfig(denoise=denoise)
        assert TrainConfig.from_plain(json.loads(json.dumps(config.plain()))) == config
    with pytest.raises(TypeError, match=r"denoise=True is not a Denoise; pass denoise=agl_sc.tl.Denoise"):
        TrainConfig(denoise=True)  # type: ignore[arg-type]
