"""A device that is not there: tensors that say they lie on it, compute on the CPU, and meet no others.

Of torch's own, FakeTensorMode holds no values, so that nothing that looks at one runs, and has no backward pass for CUDA on a
machine without; here whatever mixes devices is refused as CUDA refuses it, and all numbers are those of the CPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_iter, tree_map

DEVICE = torch.device("meta")
"""What the tensors say: the one device that torch knows on every machine and for which autograd needs no driver."""
_MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
_LOOKS_UP = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}
"""Which take indices of the CPU."""


class Elsewhere(torch.Tensor):
    """A tensor on the device, its values in ``here``, on the CPU."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> "Elsewhere":
        how: dict[str, Any] = {
            "strides": here.stride(),
            "storage_offset": here.storage_offset(),
            "dtype": here.dtype,
            "device": DEVICE,
        }
        with torch.inference_mode(mode=False):  # in which a view of what was made before could not be wrapped
            made: Elsewhere = torch.Tensor._make_wrapper_subclass(cls, here.size(), **how)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, *rest: Any) -> Any:  # type: ignore[override]
        del types
        return dispatched(func, *rest)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What is made on the device, or moved there, is made here."""

    def __torch_dispatch__(self, func: Any, types: Any, *rest: Any) -> Any:
        del types
        return dispatched(func, *rest)


class _Lifted(TorchFunctionMode):
    """Numbers are moved to the device, where ``torch.tensor`` would make a tensor without values."""

    def __torch_function__(self, func: Any, types: Any, *rest: Any) -> Any:
        del types
        args, kwargs = rest[0] if rest else (), dict(rest[1] or {}) if len(rest) > 1 else {}
        asked = kwargs.get("device")
        if func is not torch.tensor or asked is None or torch.device(asked).type != DEVICE.type:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


def dispatched(func: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
    """Run one operation of torch, refused where its tensors lie on both devices."""
    kwargs = kwargs or {}
    tensors = [each for each in tree_iter((args, kwargs)) if isinstance(each, torch.Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    asked = kwargs.get("device")
    if func not in _MOVES and func.overloadpacket is not torch.ops.aten.to:
        _check(func, args, tensors)
    inner = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    done = func(*tree_map(_here, args), **tree_map(_here, inner))
    goes_there = bool(there) if asked is None else torch.device(asked).type == DEVICE.type
    if func is torch.ops.aten.copy_.default:
        goes_there = isinstance(args[0], Elsewhere)
    if not goes_there:
        return done
    if func.overloadpacket is torch.ops.aten.to:  # the tensor itself, or another
        return args[0] if done is _here(args[0]) and there else Elsewhere(done)
    wrapped = tree_map(lambda each: Elsewhere(each) if isinstance(each, torch.Tensor) else each, done)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)  # type: ignore[no-untyped-call]


def _check(func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
    """As CUDA does: single numbers may lie on the CPU, and so may indices."""
    may = set(map(id, tree_iter(args[1]))) if func in _LOOKS_UP else set()
    on_cpu = [each for each in tensors if not isinstance(each, Elsewhere) and each.ndim and id(each) not in may]
    if on_cpu and len(on_cpu) < len(tensors) and any(isinstance(each, Elsewhere) for each in tensors):
        msg = f"Expected all tensors to be on the same device, but {func} got some on the CPU, {tuple(on_cpu[0].shape)}"
        raise RuntimeError(msg)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Elsewhere) else value


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """The device, while it is there; what torch asks of a device by name, generators and autocast, is that of the CPU.

    Tangents come from two backward passes: those of torch.func wrap tensors in a way that loses their values.
    """
    fork, autocast = torch.random.fork_rng, torch.autocast

    def forked(*_: Any, **__: Any) -> Any:
        return fork([])

    def cast(_: str, **how: Any) -> Any:
        return autocast("cpu", **how)

    with (
        patch.object(torch.random, "fork_rng", forked),
        patch.object(torch, "autocast", cast),
        patch.object(torch.func, "jvp", torch.autograd.functional.jvp),
        _Mode(),  # type: ignore[no-untyped-call]
        _Lifted(),
    ):
        yield DEVICE
