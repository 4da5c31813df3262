"""The two files of a saved model: read together, with a checksum over both, and checked field by field."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Never

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from agl_sc._model_domain import OF_DOMAIN, POSITIVE, domain_shapes
from agl_sc._model_intervals import OF_INTERVALS, interval_shapes, is_intervals
from agl_sc.core.choices import TRACE_COLUMNS

FORMAT, FORMAT_WITHOUT_LEVELS = 3, 2
"""A version that knows no levels of sections would predict without them, and must not read the first."""
CARD, WEIGHTS = "model.json", "model.safetensors"
_FEATURES = (
    "encoder", "weights_digest", "tile_px", "mpp", "image_mpp", "images", "sections", "context", "neighbors", "orientations",
    "stages", "maps", "halo_px", "precision",
)  # fmt: skip
"""Order in which the record of the features is written, wherever the table that it comes from has been."""
_DEEPEST = 20
_CLIPPED = 3.0
"""Largest scaled feature, as :func:`agl_sc.core.spots.scaling.scale_features` clips them."""
_ATTEMPTS = 1000

Check = Callable[[Any], bool]


def in_order(card: Mapping[str, Any]) -> dict[str, Any]:
    """The card as plain values, its records in one order: a table that was in a store has them in another."""
    plain: dict[str, Any] = {name: _plain(value) for name, value in card.items()}
    if isinstance(features := plain.get("features"), dict):
        known = [name for name in _FEATURES if name in features]
        others = sorted(set(features) - set(known))
        plain["features"] = {name: _sorted(features[name]) for name in (*known, *others)}
    if "fitted_on" in plain:
        plain["fitted_on"] = _sorted(plain["fitted_on"])
    return plain


def _sorted(value: Any) -> Any:
    return dict(sorted(value.items())) if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """The same in what JSON knows; what is not finite is null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def checksum(data: bytes, fields: Mapping[str, Any]) -> str:
    """SHA-256 of weights and card."""
    return hashlib.sha256(data + json.dumps(fields).encode()).hexdigest()


def read_model(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Fields and tensors of the model in a folder, of the right types and shapes and finite.

    Raises
    ------
    FileNotFoundError
        There is no model at ``path``.
    ValueError
        The files are truncated or altered, of another format, or a field is not what it must be.
    """
    card, data = _read_together(path)
    fields = _parsed(card, path / CARD)
    if fields.get("format") not in (FORMAT_WITHOUT_LEVELS, FORMAT) or isinstance(fields["format"], bool):
        msg = f"{path} is of another model format than {FORMAT_WITHOUT_LEVELS} or {FORMAT}; load it with the agl-sc version that wrote it."
        raise ValueError(msg)
    if fields.pop("sha256", None) != checksum(data, fields):
        msg = f"{path} is truncated or altered: its files do not have the checksum in {CARD}; save the model again."
        raise ValueError(msg)
    del fields["format"]
    check_fields(fields, path / CARD)
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        msg = f"{path / WEIGHTS} is truncated or altered ({error}); save the model again."
        raise ValueError(msg) from error
    check_tensors(tensors, sum(fields["selected"]), path / WEIGHTS)
    return fields, tensors


def _read_together(path: Path) -> tuple[bytes, bytes]:
    """Card and weights of the same model, even while another is put in its place."""
    for attempt in range(_ATTEMPTS):
        before = _identity(path)
        try:
            for name in (CARD, WEIGHTS):
                if not (path / name).is_file():
                    msg = f"{path} is not a model: {name} is missing; pass a folder written by Model.save."
                    raise FileNotFoundError(msg)
            found = (path / CARD).read_bytes(), (path / WEIGHTS).read_bytes()
        except FileNotFoundError:
            if before == _identity(path) or attempt == _ATTEMPTS - 1:
                raise
            continue
        if before == _identity(path):
            break
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _parsed(card: bytes, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(card.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # neither JSON nor even text
        msg = f"{path} is truncated or altered ({error}); save the model again."
        raise ValueError(msg) from error
    return fields if isinstance(fields, dict) else {}


def _no_constant(name: str) -> Never:
    msg = f"{name} is not a JSON value"
    raise ValueError(msg)


def _number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number from ``low`` to ``high``."""
    return lambda x: isinstance(x, int | float) and not isinstance(x, bool) and low <= x <= high and abs(x) < 1e300


def _whole(low: int, high: int = 2**53) -> Check:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and low <= x <= high


def _text(value: Any) -> bool:
    """A string that can be written to a file, and is not empty."""
    return isinstance(value, str) and bool(value) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _of(check: Check) -> Check:
    """A mapping from names to such values."""
    return lambda x: isinstance(x, dict) and all(_text(name) for name in x) and all(map(check, x.values()))


def _optional(check: Check) -> Check:
    return lambda x: x is None or check(x)


def _list_of(check: Check) -> Check:
    return lambda x: isinstance(x, list) and all(map(check, x))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _factors(value: Any) -> bool:
    """Fields of view, as :class:`agl_sc.pp._features.context.Views` writes them."""
    try:
        return isinstance(value, str) and all(1 < float(factor) < 1e6 for factor in value.split())
    except ValueError:
        return False


def _unique(value: Any) -> bool:
    return _list_of(_text)(value) and len(set(value)) == len(value) > 0


_FIELDS: dict[str, tuple[Check, str]] = {
    "genes": (_unique, "a list of names that are all different"),
    "n_targets": (_whole(1), "a whole number from 1 to the number of genes"),
    "method": (_text, "a name"),
    "search": (_optional(_text), "a name or null"),
    "cutoff": (_optional(_number(0, 1)), "a number from 0 to 1, or null"),
    "best_epoch": (_whole(0), "a whole number from 0"),
    "card": (_of(lambda _: True), "an object"),
    "weights": (_list_of(_number(0, 1 + 1e-6)), "a list of numbers from 0 to 1"),
    "selected": (_list_of(_flag), "a list of true and false"),
    "history": (_of(lambda _: True), "a table"),
    "cutoff_trace": (_of(lambda _: True), "a table"),
}
_OF_CARD: dict[str, tuple[Check, str]] = {
    "normalize": (_text, "a name"),
    "params": (_of(lambda _: True), "an object"),
    "versions": (_of(_text), "an object of names"),
    "fitted_on": (_of(_text), "an object of digests"),
    "split": (_optional(_text), "a digest"),
    "scores": (_of(lambda _: True), "an object"),
    "intervals": (is_intervals, "what is known of held-out residuals"),
}
_OF_FEATURES: dict[str, tuple[Check, str]] = {
    "encoder": (_text, "a name"),
    "tile_px": (_whole(8, 65_536), "a whole number from 8 to 65536"),
    "mpp": (_number(1e-6, 1e6), "a positive number"),
    "weights_digest": (_text, "a digest"),
    "image_mpp": (_of(_number(1e-6, 1e6)), "an object of positive numbers"),
    "images": (_of(_text), "an object of digests"),
    "sections": (_of(_text), "an object of digests"),
    "context": (_factors, "factors above 1"),
    "neighbors": (_whole(0, 1000), "a whole number from 0"),
    "orientations": (lambda x: _whole(1)(x) and x in (1, 2, 4, 8), "1, 2, 4 or 8"),
    "halo_px": (lambda x: _whole(1)(x) and x in (32, 64), "32 or 64"),
    "stages": (_flag, "true or false"),
    "maps": (lambda x: x in ("none", "wider", "all"), "none, wider or all"),
    "precision": (_text, "a name"),
}
_NEEDED = ("encoder", "tile_px", "mpp")


def check_fields(fields: Mapping[str, Any], path: Path) -> None:
    """Refuse a field that is missing, of another type, or out of its range, by its name."""
    _check_names(fields, _FIELDS, path=path)
    for name, (check, legal) in _FIELDS.items():
        _check(fields[name], check, legal, name=name, path=path)
    n_genes = len(fields["genes"])
    _check(fields["n_targets"], _whole(1, n_genes), f"a whole number from 1 to {n_genes}", name="n_targets", path=path)
    for name in ("weights", "selected"):
        _check(len(fields[name]), lambda n: n == n_genes, f"{n_genes}, one per gene", name=f"len({name})", path=path)
    targets = fields["selected"][: fields["n_targets"]]
    _check(targets, all, "true for all target genes", name="selected", path=path)
    _check_table(fields["history"], {"epoch", "validation_pearson"}, name="history", path=path)
    _check_table(fields["cutoff_trace"], set(TRACE_COLUMNS), name="cutoff_trace", path=path)
    _check_card(fields["card"], path)
    _check_scores(fields["card"].get("scores"), n_genes, path)


def _check_card(card: Mapping[str, Any], path: Path) -> None:
    _check(_deep(card), lambda odd: odd is None, "of finite numbers, texts, lists and objects", name="card", path=path)
    for name, (check, legal) in _OF_CARD.items():
        if name in card:
            _check(card[name], check, legal, name=f"card.{name}", path=path)
    features = card.get("features")
    _check(features, _of(lambda _: True), "an object", name="card.features", path=path)
    for name, (check, legal) in _OF_FEATURES.items():
        if name in features or name in _NEEDED:  # type: ignore[operator]  # checked above
            _check(features.get(name), check, legal, name=f"card.features.{name}", path=path)  # type: ignore[union-attr]


def _check_scores(scores: Mapping[str, Any] | None, n_genes: int, path: Path) -> None:
    """Refuse scores that are not of every gene."""
    if scores is None:
        return
    columns = scores.get("columns")
    _check(columns, _of(_list_of(_optional(_number()))), "an object of lists", name="card.scores.columns", path=path)
    for name, values in columns.items():  # type: ignore[union-attr]  # checked above
        legal = f"{n_genes} numbers, one per gene"
        _check(len(values), lambda n: n == n_genes, legal, name=f"len(card.scores.columns.{name})", path=path)
    for name, check, legal in (("by", _text, "a name"), ("words", _text, "a text"), ("sections", _unique, "names")):
        _check(scores.get(name), check, legal, name=f"card.scores.{name}", path=path)


def _deep(card: Mapping[str, Any]) -> Any:
    """The first value within that is none of a card's, or None."""
    level: list[Any] = [card]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif not (value is None or value == "" or _text(value) or _flag(value) or _number()(value)):
                return repr(value)
        level = inner
    return "depth" if level else None


def _check_table(table: Mapping[str, Any], columns: set[str], *, name: str, path: Path) -> None:
    """Refuse what is not a table of numbers, as pandas writes it with ``orient="split"``."""
    _check(sorted(table), lambda x: x == ["columns", "data", "index"], "columns, data and index", name=name, path=path)
    names, rows = table["columns"], table["data"]
    legal = f"different names with {', '.join(sorted(columns))} among them"
    _check(names, lambda x: _unique(x) and columns <= set(x), legal, name=f"{name}.columns", path=path)
    number = _optional(_number())
    whole_rows = _list_of(lambda row: _list_of(number)(row) and len(row) == len(names))
    _check(rows, whole_rows, f"rows of {len(names)} numbers", name=f"{name}.data", path=path)
    index = _list_of(_whole(0))
    _check(
        table["index"], lambda x: index(x) and len(x) == len(rows), "a number per row", name=f"{name}.index", path=path
    )


def _check_names(fields: Mapping[str, Any], known: Mapping[str, Any], *, path: Path) -> None:
    odd = [name for name in (*known, *fields) if (name in known) != (name in fields)]
    if odd:
        what = "is missing in" if odd[0] in known else "is no field of a model, but is in"
        msg = f"{odd[0]!r} {what} {path}, which was altered; save the model again."
        raise ValueError(msg)


def _check(value: Any, check: Check, legal: str, *, name: str, path: Path) -> None:
    if not check(value):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        msg = f"{name}={shown} in {path} is not {legal}; the file was altered: save the model again."
        raise ValueError(msg)


def check_tensors(tensors: Mapping[str, torch.Tensor], n_predicted: int, path: Path) -> None:
    """Refuse parameters that are missing, of other shapes, not finite, or so large that a prediction would not be."""
    shapes = _shapes(tensors, n_predicted)
    own = {
        name for name in tensors if name.startswith(("network.", "levels.", OF_DOMAIN, OF_INTERVALS))
    } | shapes.keys()
    for name in sorted(own):
        tensor, shape = tensors.get(name), shapes.get(name)
        found = None if tensor is None else (*tensor.shape,)
        if found != shape or (tensor is not None and tensor.dtype != torch.float32):
            what = "missing" if tensor is None else f"{tensor.dtype} of shape {found}"
            legal = "none of a model's" if shape is None else f"not torch.float32 of shape {shape}"
            msg = f"{name!r} in {path} is {what}, {legal}; the file was altered: save the model again."
            raise ValueError(msg)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            msg = f"{name!r} in {path} has values that are not finite; the file was altered: save the model again."
            raise ValueError(msg)
    for name in (
        "feature_scale",
        *(f"{OF_DOMAIN}{each}" for each in POSITIVE),
    ):
        if name in tensors and not (tensors[name] > 0).all():
            msg = f"{name!r} in {path} is not positive; the file was altered: save the model again."
            raise ValueError(msg)
    if not _largest(tensors) < float(torch.finfo(torch.float32).max):
        msg = f"The parameters in {path} are so large that predictions overflow; the file was altered: save the model again."
        raise ValueError(msg)


def _shapes(tensors: Mapping[str, torch.Tensor], n_predicted: int) -> dict[str, tuple[int, ...]]:
    """What every tensor of a model has to measure, by the width of the features, of the trunk, and of the hidden layer."""

    def first(name: str) -> int:
        tensor = tensors.get(name)
        return max(1, len(tensor)) if tensor is not None and tensor.ndim else 1

    n_features, rank, hidden = first("feature_scale"), first("network.linear.weight"), first("network.inner.bias")
    of_network = {
        "linear.weight": (rank, n_features), "inner.weight": (hidden, n_features), "inner.bias": (hidden,),
        "outer.weight": (rank, hidden), "head.weight": (n_predicted, rank), "head.bias": (n_predicted,),
    }  # fmt: skip
    calibration = [name for name in ("slope", "intercept", "base") if name != "base" or name in tensors]
    n_sections = first("levels.coefficients")
    of_levels = {
        "centre": (n_features,),
        "sections": (n_sections, n_features),
        "coefficients": (n_sections, n_predicted),
    }
    has_levels = any(name.startswith("levels.") for name in tensors)
    of_intervals = interval_shapes(tensors, n_predicted)
    return {
        **of_intervals,
        **{f"network.{name}": shape for name, shape in of_network.items()},
        **{f"levels.{name}": shape for name, shape in of_levels.items() if has_levels},
        **domain_shapes(tensors),
        "feature_scale": (n_features,),
        **dict.fromkeys(calibration, (n_predicted,)),
    }


def _largest(tensors: Mapping[str, torch.Tensor]) -> float:
    """Bound on the absolute value of whatever is computed on the way to a prediction."""
    at = {name.removeprefix("network."): tensor.double().abs() for name, tensor in tensors.items() if tensor.ndim}
    features = torch.full((at["feature_scale"].numel(),), _CLIPPED, dtype=torch.float64)
    hidden = at["inner.weight"] @ features + at["inner.bias"]
    shared = at["linear.weight"] @ features + at["outer.weight"] @ hidden
    raw = at["head.weight"] @ shared + at["head.bias"] + at.get("base", torch.zeros(()))
    predicted = (raw + 1) * at["slope"] + at["intercept"]
    return float(torch.cat([hidden, shared, raw, predicted]).max())
