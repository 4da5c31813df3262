"""``agl-sc doctor``."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from agl_sc.cli._address import (
    CoordinateSystem,
    ImageKey,
    ImageMpp,
    KeyAdded,
    Layer,
    ShapesKey,
    TableKey,
    TileMpp,
    TilePx,
    elements,
    tile_mpp,
)
from agl_sc.cli._frame import BAD_INPUT, Result
from agl_sc.cli._store import open_store

_PACKAGES = ("agl-sc", "accelerate", "anndata", "numpy", "scanpy", "spatialdata", "squidpy", "timm", "torch", "zarr")
_GB = 1e9


def doctor(
    store: Annotated[Path | None, typer.Argument(help="SpatialData in zarr, to check too.", show_default=False)] = None,
    *,
    tile_px: TilePx = None,
    mpp: TileMpp = "0.5",
    image_mpp: ImageMpp = None,
    table_key: TableKey = None,
    image_key: ImageKey = None,
    shapes_key: ShapesKey = None,
    coordinate_system: CoordinateSystem = None,
    layer: Layer = None,
    key_added: KeyAdded = "agl",
) -> Result:
    """Tell what this machine has, and everything that is wrong with a store, each with its fix.

    Nothing is downloaded and nothing is written. A problem stops training or prediction and makes the exit code 2; a
    note does not.

    For example:
      agl-sc doctor
      agl-sc doctor STORE.zarr
      agl-sc doctor STORE.zarr --image-mpp 0.69 --json
    """
    from agl_sc._sdata.study import Address, Study
    from agl_sc.cli._check import Findings, check_data
    from agl_sc.core.encoders.load import OFFLINE, load_encoder
    from agl_sc.pp._features.tiles import TileSpec

    findings = Findings()
    findings.attempt(load_encoder, OFFLINE)
    machine = {**_machine(), "encoder": "cannot be loaded" if findings.problems else f"{OFFLINE} loads", **_hub()}
    sdata = None if store is None else findings.attempt(open_store, store)
    if sdata is not None:
        where = elements(table_key, image_key, shapes_key, coordinate_system=coordinate_system, image_mpp=image_mpp)
        address = Address(**where, layer=layer)
        spec = TileSpec.of(
            tile_px, tile_mpp(mpp or "0.5"), lambda: [section.mpp() for section in Study.of(sdata, address).imaged]
        )
        check_data(findings, sdata, spec, address=address, key_added=key_added)
    values = {**machine, "store": store, "problems": findings.problems, "notes": findings.notes}
    return Result(
        values, _text(machine, store, findings.problems, notes=findings.notes), BAD_INPUT if findings.problems else 0
    )


def _machine() -> dict[str, Any]:
    import torch

    from agl_sc.core.numerics.memory import memory

    there = memory()
    device = "cpu"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        device = f"cuda ({torch.cuda.get_device_name()}, {free / _GB:.1f} of {total / _GB:.1f} GB free)"
    elif torch.backends.mps.is_available():
        device = "mps"
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": device,
        "threads": {"torch": torch.get_num_threads(), "cores": os.cpu_count()},
        "memory_gb": {"free": there.available / _GB, "total": there.total / _GB},
    }


def _hub() -> dict[str, Any]:
    """What is known of the hub without asking it."""
    from huggingface_hub import constants, get_token

    return {"hub_token": get_token() is not None, "hub_offline": bool(constants.HF_HUB_OFFLINE)}


def _text(machine: dict[str, Any], store: Path | None, problems: list[str], *, notes: list[str]) -> str:
    threads, memory = machine["threads"], machine["memory_gb"]
    token = "there" if machine["hub_token"] else "none; gated encoders need one: run hf auth login, or set HF_TOKEN"
    lines = [
        "versions   " + ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
        f"device     {machine['device']}",
        f"threads    {threads['torch']} of torch, {threads['cores']} cores",
        f"memory     {memory['free']:.1f} of {memory['total']:.1f} GB free",
        f"encoder    {machine['encoder']}",
        f"hub token  {token}" + (" (HF_HUB_OFFLINE is set)" if machine["hub_offline"] else ""),
    ]
    if store is not None:
        lines.append(f"store      {store}")
    lines += _listed("problem", problems, none="no problem") + (_listed("note", notes, none="") if notes else [])
    return "\n".join(lines)


def _listed(what: str, texts: list[str], *, none: str) -> list[str]:
    if not texts:
        return ["", none]
    return [
        "",
        f"{len(texts)} {what}{'s' if len(texts) > 1 else ''}",
        *(f"{i}. {text}" for i, text in enumerate(texts, start=1)),
    ]
