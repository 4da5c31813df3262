"""Calls of the public functions with one thing spoilt and one argument odd, made from a seed, and what is wrong with the outcome."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse
from matplotlib import pyplot as plt
from tests.conftest import TILES, duplicate, fingerprints

from agl_sc.cli._frame import is_refusal, message_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from agl_sc.model import Model

REFUSALS = (ValueError, KeyError, TypeError, OSError, FloatingPointError, NotImplementedError)
NAMES = (
    "$\\frac{1}$",
    "$x",
    "=cmd()",
    "|a|",
    "*b*",
    "",
    " ",
    "x" * 3000,
    "Ä漢\u200b",
    "a/b\\c",
    "../../x",
    "a\nb",
    "{0}%s",
    "nan",
    "-1",
)
ODD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "empty": lambda: "",
    "blank": lambda: " ",
    "x": lambda: "x",
    "mathtext": lambda: "$\\frac{1}$",
    "slash": lambda: "a/b",
    "-1": lambda: -1,
    "0": lambda: 0,
    "2": lambda: 2,
    "0.5": lambda: 0.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "10**9": lambda: 10**9,
    "10**30": lambda: 10**30,
    "True": lambda: True,
    "list": list,
    "dict": dict,
    "set": lambda: {"x"},
    "object": object,
    "list of None": lambda: [None],
    "list of one": lambda: ["x"],
    "nested": lambda: [["x"], ["x"]],
    "dict of one": lambda: {"x": 1},
    "dict of None": lambda: {None: None},
    "long": lambda: ["section_1"] * 7,
    "section": lambda: "section_1",
    "np.int64": lambda: np.int64(3),
    "np.float32": lambda: np.float32(0.5),
    "np.str_": lambda: np.str_("section_1"),
    "array": lambda: np.arange(3.0),
    "array of names": lambda: np.array(["section_1", "section_3"]),
    "series": lambda: pd.Series(["section_1"]),
    "frame": lambda: pd.DataFrame({"x": [1]}),
    "Path": lambda: Path("x"),
    "bytes": lambda: b"x",
    "type": lambda: int,
    "function": lambda: len,
    "generator": lambda: (each for each in ["section_1"]),
}
FOREIGN: tuple[Any, ...] = (
    "text",
    3,
    1.5,
    True,
    [1, 2],
    np.arange(3),
    {"x": 1},
    {"params": "x"},
    {},
    [],
    "",
    {"address": {"layer": 3}},
)


def _table(sdata: "SpatialData") -> "AnnData":
    table: AnnData = sdata.tables["table"]
    return table


def _features(value: float) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", _: np.random.Generator) -> None:
        _table(sdata).obsm["agl_features"] = np.full_like(_table(sdata).obsm["agl_features"], value)

    return spoil


def _narrow(sdata: "SpatialData", _: np.random.Generator) -> None:
    _table(sdata).obsm["agl_features"] = np.zeros((_table(sdata).n_obs, 0), np.float32)


def _flat_features(sdata: "SpatialData", rng: np.random.Generator) -> None:
    _table(sdata).obsm["agl_features"] = rng.normal(size=(_table(sdata).n_obs, int(rng.integers(1, 4))))


def _text_features(sdata: "SpatialData", _: np.random.Generator) -> None:
    _table(sdata).obsm["agl_features"] = np.full((_table(sdata).n_obs, 2), "x")


def _cut(rows: slice, columns: slice) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", _: np.random.Generator) -> None:
        cut = _table(sdata)[rows, columns].copy()
        dict.__setitem__(sdata.tables.data, "table", cut)  # what SpatialData would refuse, as files are not

    return spoil


def _counts(make: Callable[[Any], Any]) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", _: np.random.Generator) -> None:
        table = _table(sdata)
        dense = table.X.toarray() if scipy.sparse.issparse(table.X) else np.asarray(table.X)
        table.X = make(dense)

    return spoil


def _column(
    axis: str, make: Callable[[pd.Series, np.random.Generator], Any]
) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", rng: np.random.Generator) -> None:
        frame = getattr(_table(sdata), axis).copy()
        name = str(rng.choice(list(frame.columns)))
        made = make(frame[name], rng)
        setattr(_table(sdata), axis, frame.drop(columns=name) if made is None else frame.assign(**{name: made}))

    return spoil


def _renamed(axis: str) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", rng: np.random.Generator) -> None:
        names = list(getattr(_table(sdata), f"{axis}_names"))
        names[0] = NAMES[rng.integers(len(NAMES))]
        setattr(_table(sdata), f"{axis}_names", names)

    return spoil


def _renamed_sections(sdata: "SpatialData", rng: np.random.Generator) -> None:
    names = _table(sdata).obs["section"].astype(str).replace("section_1", NAMES[rng.integers(len(NAMES))])
    _table(sdata).obs["section"] = names.astype("category")


def _record(sdata: "SpatialData", rng: np.random.Generator) -> None:
    """One entry of what is remembered becomes something else, is taken away, or is joined by a stranger."""
    record: Any = _table(sdata).uns["agl"]
    while True:
        name = str(rng.choice(sorted(map(str, record))))
        if not isinstance(record[name], dict) or not record[name] or rng.random() < 0.3:
            break
        record = record[name]
    kind = rng.integers(3)
    if kind == 0:
        del record[name]
    else:
        record[name if kind == 1 else "stranger"] = FOREIGN[rng.integers(len(FOREIGN))]


def _record_replaced(sdata: "SpatialData", rng: np.random.Generator) -> None:
    _table(sdata).uns["agl"] = FOREIGN[rng.integers(len(FOREIGN))]


def _attrs(sdata: "SpatialData", rng: np.random.Generator) -> None:
    attrs = _table(sdata).uns["spatialdata_attrs"]
    name = str(rng.choice(sorted(attrs)))
    attrs[name] = FOREIGN[rng.integers(len(FOREIGN))]


def _shapes(change: Callable[[Any, np.random.Generator], Any]) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", rng: np.random.Generator) -> None:
        name = str(rng.choice(sorted(sdata.shapes)))
        shapes = sdata.shapes[name]
        made = change(shapes.copy(), rng)
        made.attrs.update(shapes.attrs)
        dict.__setitem__(sdata.shapes.data, name, made)

    return spoil


def _moved(shapes: Any, rng: np.random.Generator) -> Any:
    return shapes.assign(geometry=shapes.geometry.translate(10.0 ** rng.integers(0, 9), -1.0))


def _positionless(shapes: Any, _: np.random.Generator) -> Any:
    from shapely import Point

    return shapes.assign(geometry=[Point(), *shapes.geometry[1:]])


def _layer(make: Callable[[Any], Any]) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", _: np.random.Generator) -> None:
        _table(sdata).layers["agl"] = make(_table(sdata).layers["agl"])

    return spoil


def _image(rows: int) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", rng: np.random.Generator) -> None:
        from spatialdata.models import Image2DModel
        from spatialdata.transformations import get_transformation

        name = str(rng.choice(sorted(sdata.images)))
        transformations = get_transformation(sdata.images[name], get_all=True)
        image = Image2DModel.parse(
            np.zeros((3, rows, 50), np.uint8), dims=("c", "y", "x"), transformations=transformations
        )
        dict.__setitem__(sdata.images.data, name, image)

    return spoil


def _lost(kind: str) -> Callable[["SpatialData", np.random.Generator], None]:
    def spoil(sdata: "SpatialData", rng: np.random.Generator) -> None:
        elements = getattr(sdata, kind)
        del elements[str(rng.choice(sorted(elements)))]

    return spoil


SPOILS: dict[str, Callable[["SpatialData", np.random.Generator], None]] = {
    "features of NaN": _features(np.nan),
    "features of one number": _features(0.0),
    "infinite features": _features(np.inf),
    "features of no column": _narrow,
    "other features": _flat_features,
    "features of text": _text_features,
    "no spot": _cut(slice(0), slice(None)),
    "one spot": _cut(slice(1), slice(None)),
    "no gene": _cut(slice(None), slice(0)),
    "one gene": _cut(slice(None), slice(1)),
    "one section": _cut(slice(53), slice(None)),
    "no X": _counts(lambda _: None),
    "X of zeros": _counts(np.zeros_like),
    "X of NaN": _counts(lambda x: np.full(x.shape, np.nan)),
    "X of text": _counts(lambda x: x.astype(str)),
    "X of bool": _counts(lambda x: x > 0),
    "X of float16": _counts(lambda x: x.astype(np.float16)),
    "X of huge counts": _counts(lambda x: x * 1e30),
    "X of CSC": _counts(scipy.sparse.csc_matrix),
    "X negative": _counts(lambda x: -x),
    "obs column lost": _column("obs", lambda _, __: None),
    "obs column of NaN": _column("obs", lambda old, _: np.full(len(old), np.nan)),
    "obs column of numbers": _column("obs", lambda old, _: np.arange(len(old))),
    "obs column of text": _column("obs", lambda old, _: ["x"] * len(old)),
    "obs column of one odd name": _column("obs", lambda old, rng: [NAMES[rng.integers(len(NAMES))]] * len(old)),
    "obs column of bool": _column("obs", lambda old, _: np.ones(len(old), bool)),
    "obs column of odd categories": _column("obs", lambda old, _: pd.Categorical([None] * len(old), categories=[3, 1])),
    "obs column shuffled": _column("obs", lambda old, rng: old.to_numpy()[rng.permutation(len(old))]),
    "var column lost": _column("var", lambda _, __: None),
    "var column of NaN": _column("var", lambda old, _: np.full(len(old), np.nan)),
    "var column of text": _column("var", lambda old, _: ["x"] * len(old)),
    "var column of numbers": _column("var", lambda old, _: np.arange(len(old))[::-1]),
    "gene named": _renamed("var"),
    "spot named": _renamed("obs"),
    "section named": _renamed_sections,
    "record changed": _record,
    "record replaced": _record_replaced,
    "attrs changed": _attrs,
    "radii zero": _shapes(lambda shapes, _: shapes.assign(radius=0.0)),
    "radii NaN": _shapes(lambda shapes, _: shapes.assign(radius=np.nan)),
    "radii lost": _shapes(lambda shapes, _: shapes.drop(columns="radius")),
    "shapes moved": _shapes(_moved),
    "shapes empty": _shapes(lambda shapes, _: shapes.iloc[:0]),
    "shape twice": _shapes(lambda shapes, _: pd.concat([shapes, shapes.iloc[:1]])),
    "shapes renumbered": _shapes(lambda shapes, _: shapes.reset_index(drop=True)),
    "shape nowhere": _shapes(_positionless),
    "shapes in one place": _shapes(lambda shapes, _: shapes.assign(geometry=[shapes.geometry.iloc[0]] * len(shapes))),
    "shapes lost": _lost("shapes"),
    "image lost": _lost("images"),
    "table lost": _lost("tables"),
    "image of one row": _image(1),
    "prediction of NaN": _layer(lambda x: np.full_like(x, np.nan)),
    "prediction of infinity": _layer(lambda x: np.full_like(x, np.inf)),
    "prediction of text": _layer(lambda x: x.astype(str)),
    "prediction of whole numbers": _layer(lambda x: np.zeros(x.shape, int)),
    "prediction sparse": _layer(scipy.sparse.csr_matrix),
    "prediction of bool": _layer(lambda x: x > 0),
}

LONG: dict[str, set[str]] = {
    "seeds": {"2", "np.int64", "10**9", "10**30"},  # so many runs
    "compile": {"True"},  # slow
    "self": set(ODD),
}
"""Odd values of a parameter that would only take long."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What calls are made with, never changed."""

    sdata: "SpatialData"
    """Prepared, with a prediction and out-of-fold predictions."""
    model: "Model"
    """That made the prediction."""
    benchmark: Any
    """A small benchmark."""
    encoder: str = ""
    """A tiny one, which trains in no time."""


@dataclass(frozen=True, slots=True)
class Call:
    """One public function, and how often it is drawn."""

    name: str
    share: float
    options: Mapping[str, Any] = field(default_factory=dict)
    first: str = "sdata"


CALLS = (
    Call("pp.split", 8),
    Call("pp.target_genes", 8, {"genes": 4}),
    Call("pp.rank_auxiliary", 8, {"score": "truth_prior"}),
    Call("pp.rank_auxiliary", 1),
    Call("pp.embed", 0.5, TILES),
    Call("pp.use_features", 4, {"encoder": "x", "tile_px": 32, "mpp": 1.0}),
    Call("pp.duplicates", 4),
    Call("tl.evaluate", 10, {"metrics": ["pearson", "mse"]}),
    Call("tl.evaluate", 4, {"prediction": "oof", "metrics": ["pearson"]}),
    Call("tl.evaluate", 1),
    Call("tl.predict", 6),
    Call("tl.predictable_genes", 2, {"min_spots": 3}),
    Call("tl.to_anndata", 3),
    Call("tl.adapt", 2),
    Call("tl.train", 0.4),
    Call("tl.cross_validate", 0.4, {"methods": "mean", "genes": 4}),
    Call("tl.benchmark", 0.2, {"methods": ["mean", "ridge"], "reference": "mean", "genes": 4, "seeds": 1}),
    Call("tl.paper_prepare", 2, {"n_targets": 4, "min_genes": 2}),
    Call(
        "tl.paper_benchmark",
        0.3,
        {"methods": "pgl", "n_targets": 4, "tile_px": 32, "mpp": 1.0, "changes": {"max_epochs": 1}},
    ),
    Call("tl.paper_summary", 1, first="results"),
    Call("pl.spatial_pred", 4),
    Call("pl.residual_map", 3),
    Call("pl.calibration", 3),
    Call("pl.gene_metrics", 4),
    Call("pl.predictable_genes", 1),
    Call("pl.tiles", 4, {"n": 3, "tile_px": 16, "mpp": 1.0}),
    Call("pl.cutoff", 2, first="model"),
    Call("pl.gene_weights", 2, first="model"),
    Call("pl.history", 2, first="model"),
    Call("pl.benchmark", 2, first="benchmark"),
    Call("io.from_anndata", 4, first="adata"),
    Call("Model.predict", 3, first="features"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that neither returned nor refused in a sentence of its own, or that refused and had changed something."""

    seed: int
    call: str
    what: str
    where: str = ""

    def __str__(self) -> str:
        return f"[{self.seed}] {self.call}: {self.what}{f' at {self.where}' if self.where else ''}"


def fault_of(subject: Subject, seed: int) -> Fault | None:
    """What is wrong with the call of a seed."""
    import agl_sc

    rng = np.random.default_rng(seed)
    shares = np.array([call.share for call in CALLS])
    call = CALLS[rng.choice(len(CALLS), p=shares / shares.sum())]
    sdata = duplicate(subject.sdata)
    spoil = (
        ("record changed" if rng.random() < 0.15 else str(rng.choice(sorted(SPOILS)))) if rng.random() < 0.65 else ""
    )
    if spoil:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            SPOILS[spoil](sdata, rng)
    function, options = _bound(agl_sc, call, subject=subject, sdata=sdata)
    told = [spoil] if spoil else []
    if not spoil or rng.random() < 0.2:
        parameter, odd = _odd(call, rng, agl_sc)
        if parameter:
            options[parameter] = ODD[odd]()
            told.append(f"{parameter}={odd}")
    described = f"{call.name}({', '.join(told)})"
    before = fingerprints(sdata)
    try:
        made = function(**options)
        if call.name.startswith("pl."):
            np.atleast_1d(made).ravel()[0].figure.canvas.figure.draw_without_rendering()
    except REFUSALS as error:
        return fault_of_error(seed, described, error) or _changed(seed, described, before=before, sdata=sdata)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a fault
        return Fault(seed, described, f"{type(error).__name__}: {error}", place_of(error))
    finally:
        plt.close("all")
    return None


def _parameters(call: Call, agl_sc: ModuleType) -> list[str]:
    import inspect

    space, _, name = call.name.partition(".")
    signature = inspect.signature(getattr(getattr(agl_sc, space), name))
    return [each for each in signature.parameters if LONG.get(each, set()) != set(ODD)]


def _odd(call: Call, rng: np.random.Generator, agl_sc: ModuleType) -> tuple[str, str]:
    named = _parameters(call, agl_sc)
    parameter = str(rng.choice(named)) if named else ""
    return parameter, str(rng.choice(sorted(ODD.keys() - LONG.get(parameter, set()))))


def _bound(
    agl_sc: ModuleType, call: Call, *, subject: Subject, sdata: "SpatialData"
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The function, and its arguments by name before one becomes odd."""
    from agl_sc.tl import TrainConfig

    space, _, name = call.name.partition(".")
    function = getattr(getattr(agl_sc, space), name)
    options: dict[str, Any] = dict(call.options)
    table = sdata.tables.get("table")
    if call.first == "sdata":
        options["sdata"] = sdata
    elif call.first in ("model", "benchmark"):
        options[call.first] = getattr(subject, call.first)
    elif call.first == "results":
        options["results"] = subject.benchmark.results
    elif call.first == "adata":
        adata = None if table is None else _scanpy(table)
        options |= {"adata": adata, "image": np.zeros((300, 300, 3), np.uint8), "image_mpp": 1.0}
    else:
        function = partial(function, subject.model)
        features = np.zeros((4, 3)) if table is None else table.obsm["agl_features"]
        options |= {"features": features, "sections": np.repeat("section_1", len(features))}
    if call.name in ("tl.predict", "tl.adapt"):
        options["model"] = subject.model
    if call.name == "tl.adapt":
        options["spots"] = np.arange(0 if table is None else table.n_obs) % 3 == 0
    if call.name in ("tl.train", "tl.cross_validate", "tl.benchmark"):
        options["config"] = TrainConfig(batch_size=16, max_epochs=1, hidden=8)
    features = np.random.default_rng(0).normal(size=(0 if table is None else table.n_obs, 3))
    own: dict[str, dict[str, Any]] = {
        "tl.paper_benchmark": {"encoder": subject.encoder},
        "pp.use_features": {"features": features},
    }
    options |= own.get(call.name, {})
    if name in ("spatial_pred", "residual_map", "calibration"):
        options["genes"] = [table.var_names[0]] if table is not None and table.n_vars else "x"
    return function, options


def _scanpy(table: "AnnData") -> "AnnData":
    """One section in scanpy's layout."""
    adata = table[:53].copy()
    adata.obsm["spatial"] = np.array(np.divmod(np.arange(adata.n_obs), 8), float).T * 30 + 20
    return adata


def place_of(error: BaseException) -> str:
    """The innermost place of our own, and where it was raised."""
    trace, own, inner = error.__traceback__, "", ""
    while trace is not None:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        inner = f"{module}:{trace.tb_lineno}"
        own = inner if module.startswith("agl_sc") else own
        trace = trace.tb_next
    return own if own == inner else f"{own} -> {inner}"


def fault_of_error(seed: int, described: str, error: Exception) -> Fault | None:
    """Whether it is none of the package's own refusals, or not a sentence."""
    message = message_of(error)
    told = f"{type(error).__name__}: {message[:300]}"
    if not is_refusal(error):
        return Fault(seed, described, told, place_of(error))
    if not isinstance(error, OSError) and (not message.endswith((".", "?")) or " " not in message):
        return Fault(seed, described, f"no sentence: {told}", place_of(error))
    return None


def _changed(seed: int, described: str, *, before: Mapping[str, Any], sdata: "SpatialData") -> Fault | None:
    after = fingerprints(sdata)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return Fault(seed, described, f"refused, but had changed {', '.join(changed)}") if changed else None
