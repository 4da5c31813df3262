"""Calls of the readers on small folders, of which one file is damaged or odd and one argument may be, made from a seed."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tests.fuzz_calls import NAMES, ODD, REFUSALS, Fault, fault_of_error, place_of
from tests.io.damage import WRONG_KINDS, Damage, be_folder, become, cut, flip
from tests.io.hest_files import write_sample
from tests.io.test_damage import FACTORS, H5AD, META, PATCHES, POSITIONS, TENX
from tests.io.test_st import MPP
from tests.io.test_st import write_section as write_st
from tests.io.test_visium import write_section as write_visium

HDF5 = (".h5", ".h5ad")
PIXELS = {name: np.zeros((300, 320, 3), np.uint8) for name in ("hires",)}
KNOWN: dict[str, dict[str, Damage]] = {
    "filtered_feature_bc_matrix.h5": TENX,
    "scalefactors_json.json": FACTORS,
    "tissue_positions_list.csv": POSITIONS,
    "A.json": META,
    "A.h5ad": H5AD,
    "A.h5": PATCHES,
}


def _be_gone(path: Path) -> None:
    path.unlink()


def _twice(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def _renamed(path: Path) -> None:
    path.rename(path.with_name(f"{path.stem} (1){path.suffix}"))


WAYS: dict[str, Damage] = {
    **{f"cut {share}": cut(share) for share in (0.0, 0.1, 0.5, 0.9, 1)},
    **{name: become(content) for name, content in WRONG_KINDS.items()},
    "folder": be_folder,
    "gone": _be_gone,
    "twice": _twice,
    "renamed": _renamed,
}


@dataclass(frozen=True, slots=True)
class Reader:
    """A reader, and what it reads where nothing is odd."""

    name: str
    options: Callable[[Path], dict[str, Any]]
    write: Callable[[Path], Any]


def _write_st(folder: Path) -> None:
    folder.mkdir()
    write_st(folder, "A")


READERS = (
    Reader("io.read_visium", lambda folder: {"path": folder, "name": "A"}, lambda folder: write_visium(folder)),
    Reader(
        "io.read_st",
        lambda folder: {
            "counts": folder / "A.tsv.gz", "image": folder / "A.jpg", "spots": folder / "A_selection.tsv", "image_mpp": MPP
        },
        _write_st,
    ),
    Reader("io.read_hest", lambda folder: {"path": folder, "ids": "A", "image": "wsi"}, lambda folder: write_sample(folder, "A", wsi=True)),
    Reader("io.read_hest", lambda folder: {"path": folder, "ids": "A", "image": "patches"}, lambda folder: write_sample(folder, "A")),
)  # fmt: skip


def _adata() -> Any:
    from anndata import AnnData

    rows, columns = np.divmod(np.arange(30), 6)
    obs = pd.DataFrame({"in_tissue": 1, "array_row": rows, "array_col": 2 * columns + rows % 2, "sample": "A"})
    counts = np.random.default_rng(0).poisson(3, (30, 4)).astype(np.float32)
    adata = AnnData(counts, obs=obs.set_axis([f"spot{i}" for i in range(30)]), var=pd.DataFrame(index=list("WXYZ")))
    adata.obsm["spatial"] = 40.0 * np.column_stack([columns + 0.5 * (rows % 2) + 1, np.sqrt(0.75) * rows + 1])
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": 22.0}
    adata.uns["spatial"] = {"lib": {"images": dict(PIXELS), "scalefactors": factors}}
    return adata


def _odd(rng: np.random.Generator) -> tuple[str, Any]:
    name = str(rng.choice(sorted(ODD)))
    return name, ODD[name]()


def _spoil_positions(adata: Any, rng: np.random.Generator) -> str:
    places = adata.obsm["spatial"]
    ways: dict[str, Any] = {
        "NaN": np.full_like(places, np.nan), "infinite": np.full_like(places, np.inf), "text": places.astype(str), "ints": places.astype(int),
        "three columns": np.column_stack([places, places[:, 0]]), "flat": np.column_stack([places, np.zeros(30)]), "one column": places[:, :1],
        "no column": places[:, :0], "frame": pd.DataFrame(places, adata.obs_names, ["V1", "V2"]), "swapped": places[:, ::-1],
        "names": pd.DataFrame(places, adata.obs_names, list("xy")), "same": pd.DataFrame(places, adata.obs_names, list("xx")), "objects": places.astype(object),
        "huge": places * 1e12, "tiny": places * 1e-9, "negative": -places, "one place": places * 0 + 50,
    }  # fmt: skip
    name = str(rng.choice(sorted(ways)))
    adata.obsm["spatial"] = ways[name]
    return f"positions {name}"


def _spoil_uns(adata: Any, rng: np.random.Generator) -> str:
    """One entry of ``uns["spatial"]`` becomes something odd, or is taken away."""
    entry = adata.uns
    key = "spatial"
    while isinstance(entry[key], Mapping) and entry[key] and rng.random() < 0.8:
        entry = entry[key]
        key = str(rng.choice(sorted(map(str, entry))))
    if rng.random() < 0.3:
        del entry[key]
        return f"uns without {key}"
    name, entry[key] = _odd(rng)
    return f"uns {key}={name}"


def _spoil_image(adata: Any, rng: np.random.Generator) -> str:
    pixels = PIXELS["hires"]
    ways: dict[str, Any] = {
        "float": pixels / 255, "of text": pixels.astype(str), "grey": pixels[..., 0], "alpha": np.dstack([pixels, pixels[..., 0]]), "int64": pixels.astype(int) + 200,
        "empty": pixels[:0], "of one pixel": pixels[:1, :1], "bool": pixels > 0, "NaN": np.full(pixels.shape, np.nan), "first": pixels.transpose(2, 0, 1),
        "five": np.repeat(pixels[..., :1], 5, 2), "objects": pixels[:9, :9].astype(object),
    }  # fmt: skip
    name = str(rng.choice(sorted(ways)))
    adata.uns["spatial"]["lib"]["images"]["hires"] = ways[name]
    return f"image {name}"


def _spoil_column(adata: Any, rng: np.random.Generator) -> str:
    column = str(rng.choice(list(adata.obs)))
    ways: dict[str, Any] = {
        "NaN": np.nan, "text": "x", "numbers": np.arange(30), "bool": [True, False] * 15, "name": NAMES[rng.integers(len(NAMES))], "category": pd.Categorical(["a", None] * 15),
        "empty": "", "nullable": pd.array([1, None] * 15, dtype="Int64"), "dates": pd.Timestamp("2024-01-01"), "objects": [{}] * 30,
    }  # fmt: skip
    name = str(rng.choice(sorted(ways)))
    adata.obs[column] = ways[name]
    return f"{column} {name}"


def _spoil_names(adata: Any, rng: np.random.Generator) -> str:
    axis = str(rng.choice(["obs_names", "var_names"]))
    names = list(getattr(adata, axis))
    names[0] = NAMES[rng.integers(len(NAMES))] if rng.random() < 0.7 else names[1]
    setattr(adata, axis, names)
    return f"{axis} {names[0][:20]!r}"


SPOILS_ADATA = (_spoil_positions, _spoil_uns, _spoil_uns, _spoil_image, _spoil_column, _spoil_names)


def fault_of_reading(folder: Path, seed: int) -> Fault | None:
    """What is wrong with the reading of a seed; ``folder`` is empty, and may be left with anything."""
    import agl_sc

    rng = np.random.default_rng([seed, 1])
    told = []
    if rng.random() < 0.4:
        adata = _adata()
        name, options = "io.from_anndata", {"adata": adata, "technology": "visium"}
        if rng.random() < 0.8:
            told.append(SPOILS_ADATA[rng.integers(len(SPOILS_ADATA))](adata, rng))
    else:
        reader = READERS[rng.integers(len(READERS))]
        name, options = reader.name, reader.options(folder / "data")
        reader.write(folder / "data")
        if rng.random() < 0.8:
            told.append(_damage(folder / "data", rng))
    if not told or rng.random() < 0.25:
        parameter = str(rng.choice([*options, "image_mpp", "patient"]))
        odd, options[parameter] = _odd(rng)
        told.append(f"{parameter}={odd}")
    described = f"{name}({', '.join(told)})"
    try:
        sdata = getattr(agl_sc.io, name[3:])(**options)
        for image in sdata.images.values():
            np.asarray(next(iter(image["scale0"].values())).data)
    except REFUSALS as error:
        return fault_of_error(seed, described, error)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is a fault
        return Fault(seed, described, f"{type(error).__name__}: {error}", place_of(error))
    finally:
        shutil.rmtree(folder / "data", ignore_errors=True)
    return None


def _damage(folder: Path, rng: np.random.Generator) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    path = files[rng.integers(len(files))]
    ways = dict(WAYS) | KNOWN.get(path.name, {})
    if path.suffix not in HDF5:  # a flipped pointer in one can lead the HDF5 library in a circle for ever
        ways |= {f"flip {n}": flip(int(rng.integers(10**6)), n) for n in (1, 5, 50)}
    way = str(rng.choice(sorted(ways)))
    ways[way](path)
    return f"{path.name}: {way}"
