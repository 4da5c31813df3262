"""How close reading tiles comes to what the disk and the codec allow: ratios on a generated multiscale slide.

    python benchmarks/tiles.py                       # 20,000 x 20,000 px, 5,000 and 50,000 spots, some minutes
    python benchmarks/tiles.py --px 8000 --chunk 256 # smaller, with the chunks that spatialdata writes by default
    python benchmarks/tiles.py --rows dataset        # against ImageTilesDataset alone, 10 times its tiles at least
    python benchmarks/tiles.py --her2st ../shared/data/her2st   # and the JPEG sections of a folder

The slide is written to a temporary folder (less than 2 GB) as SpatialData writes it, and a pyramidal JPEG TIFF beside it.
Both sides of a ratio take turns in
one run, and the least times of some rounds are compared. Memory is the peak resident size of one process per number of
spots above its size before reading (Linux only). The encoder is the default one, in a loop over tiles that are read
meanwhile, against the same loop over tiles that are there already; and eager against ``torch.compile`` on one thread.

"Copying the tiles" is the least that making tiles costs beside decoding: as many bytes, from memory into fresh batches.
Wall time says little on a busy machine; the CPU time of both sides stands beside every ratio.
"""

import argparse
import gc
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, cast
from unittest import mock

import dask.array as da
import geopandas as gpd
import numpy as np
import pandas as pd
import scipy.sparse
import shapely
import tifffile
import torch
from numpy.typing import NDArray
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity

from agl_sc._sdata.sections import sections
from agl_sc.core.encoders.load import OFFLINE, Encoder, load_encoder
from agl_sc.core.tiles import reader as reading
from agl_sc.core.tiles.chunks import Chunk, Chunks
from agl_sc.core.tiles.reader import Boxes, tile_batches
from agl_sc.io._image import open_image
from agl_sc.io._st import read_st_folder
from agl_sc.io._tiff import CHUNK_PX
from agl_sc.pp._features import tiles as geometry

TILE_PX, MPP, BATCH = 224, 0.5, 32
FEW, MANY = 5_000, 50_000
ROWS = ("bytes", "speed", "dataset", "memory", "encoder", "tiff")


def tissue(shape: tuple[int, int, int], chunk: int) -> Any:
    """Lazy picture of waves and grain that compresses about as well as H&E."""

    def paint(block: NDArray[np.uint8], block_id: tuple[int, ...] = ()) -> NDArray[np.uint8]:
        _, height, width = block.shape
        y, x = np.ogrid[:height, :width]
        wave = np.sin((y + 97 * block_id[1]) / 37, dtype=np.float32) * np.cos(
            (x + 61 * block_id[2]) / 51, dtype=np.float32
        )
        base = (170 + 60 * wave).astype(np.uint8)
        grain = np.random.default_rng(block_id).integers(0, 16, block.shape, dtype=np.uint8)
        return np.stack([base, base // 2, base // 4 + 90]) + grain

    blank: Any = da.zeros(shape, chunks=(3, chunk, chunk), dtype=np.uint8)
    return blank.map_blocks(paint, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))


def spots(n_spots: int, px: int) -> Any:
    """Circles anywhere a tile fits."""
    centres = np.random.default_rng(n_spots).uniform(TILE_PX, px - TILE_PX, (n_spots, 2))
    frame = gpd.GeoDataFrame({"geometry": shapely.points(centres), "radius": 50.0}, index=np.arange(n_spots))
    return ShapesModel.parse(frame, transformations={"slide": Identity()})


def table(n_spots: int, region: str) -> Any:
    obs = pd.DataFrame({"region": pd.Categorical([region] * n_spots), "spot": np.arange(n_spots)})
    obs.index = obs.index.astype(str)
    from anndata import AnnData

    adata = AnnData(scipy.sparse.csr_matrix((n_spots, 1), dtype=np.float32), obs=obs)
    return TableModel.parse(adata, region=region, region_key="region", instance_key="spot")


def write_slide(path: Path, px: int, chunk: int) -> None:
    image = Image2DModel.parse(
        tissue((3, px, px), chunk),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2, 2],
        chunks=(3, chunk, chunk),
        transformations={"slide": Identity()},
    )
    SpatialData(
        images={"slide": image},
        shapes={f"spots_{n}": spots(n, px) for n in (FEW, MANY)},
        tables={f"table_{n}": table(n, f"spots_{n}") for n in (FEW, MANY)},
    ).write(path)


def boxes_of(sdata: SpatialData, n_spots: int) -> Boxes:
    (section,) = sections(sdata, sdata[f"table_{n_spots}"])
    return geometry.boxes_of(section, geometry.TileSpec(TILE_PX, MPP), MPP)


def touched(boxes: Boxes) -> list[Chunk]:
    """Distinct chunks under the boxes, by brute force; boxes may reach beyond the image."""
    edges = [np.cumsum(sizes) for sizes in boxes.image.chunks[1:]]
    found: set[Chunk] = set()
    for corner in product((0, boxes.side - 1), repeat=2):
        inside = [np.clip(boxes.origins[:, i] + corner[i], 0, edges[i][-1] - 1) for i in (0, 1)]
        places = [np.searchsorted(edges[i], inside[i], "right") for i in (0, 1)]
        found |= set(map(tuple, np.column_stack(places).tolist()))
    return sorted(found)


def read_all(boxes: Boxes) -> None:
    for _ in tile_batches(boxes, TILE_PX, BATCH):
        pass


def decode_once(boxes: Boxes, chunks: list[Chunk]) -> None:
    """The same chunks, straight from zarr where they lie in it, by as many threads, thrown away at once."""
    grid = Chunks(boxes.image, boxes.name)
    y, x = (edges.tolist() for edges in grid.edges)

    def decode(chunk: Chunk) -> None:
        row, column = chunk
        if grid.stored is None:
            grid.decode([chunk])
        else:
            np.asarray(grid.stored[:, y[row] : y[row + 1], x[column] : x[column + 1]])

    with ThreadPoolExecutor(reading._N_THREADS) as pool:
        for _ in pool.map(decode, chunks):
            pass


def copy_tiles(boxes: Boxes) -> None:
    """As many bytes in rows as long, from one decoded chunk into fresh batches."""
    side = boxes.side
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4 * side, 4 * side), dtype=np.uint8)
    for i, (y, x) in enumerate((boxes.origins % (3 * side)).tolist()):
        if i % BATCH == 0:
            batch = np.empty((BATCH, 3, side, side), dtype=np.uint8)
        batch[i % BATCH] = pixels[:, y : y + side, x : x + side]


def seconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least wall and CPU time of every run, the runs taking turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            gc.collect()
            start, start_cpu = time.perf_counter(), time.process_time()
            run()
            taken[name].append((time.perf_counter() - start, time.process_time() - start_cpu))
    return {name: (min(wall for wall, _ in times), min(cpu for _, cpu in times)) for name, times in taken.items()}


def tell(what: str, ratio: float, goal: str, *, detail: str) -> None:
    bound = float(goal.split()[1])
    met = ratio >= bound if goal.startswith(">=") else ratio <= bound
    print(f"{what:<56} {ratio:8.2f}   {goal:<8} {'met' if met else 'MISSED':<7} {detail}", flush=True)


def speed(sdata: SpatialData, rounds: int) -> None:
    few, many = boxes_of(sdata, FEW), boxes_of(sdata, MANY)
    chunks = {FEW: touched(few), MANY: touched(many)}
    taken = seconds(
        {
            "read few": lambda: read_all(few),
            "decode few": lambda: decode_once(few, chunks[FEW]),
            "read many": lambda: read_all(many),
            "decode many": lambda: decode_once(many, chunks[MANY]),
            "copy few": lambda: copy_tiles(few),
            "copy many": lambda: copy_tiles(many),
        },
        rounds,
    )
    for name, n_spots in (("few", FEW), ("many", MANY)):
        (read, read_cpu), (decode, decode_cpu) = taken[f"read {name}"], taken[f"decode {name}"]
        detail = f"{read:.2f} s, {decode:.2f} s for {len(chunks[n_spots]):,} chunks; CPU {read_cpu:.2f} s, {decode_cpu:.2f} s"
        tell(f"reading / decoding the chunks once, {n_spots:,} spots", read / decode, "<= 1.3", detail=detail)
        copy, copy_cpu = taken[f"copy {name}"]
        detail = f"copying {copy:.2f} s; CPU {read_cpu / (decode_cpu + copy_cpu):.2f}"
        tell(f"reading / (decoding + copying the tiles), {n_spots:,}", read / (decode + copy), "<= 1.3", detail=detail)
    per_tile = [taken["read few"][0] / FEW, taken["read many"][0] / MANY]
    detail = f"{1e3 * per_tile[0]:.3f} ms and {1e3 * per_tile[1]:.3f} ms"
    tell(f"time per tile, {FEW:,} -> {MANY:,} spots", per_tile[1] / per_tile[0], "<= 1.1", detail=detail)


def against_dataset(sdata: SpatialData, rounds: int) -> None:
    """Tiles of the same slide by spatialdata's own dataset, whichever version is installed."""
    boxes = boxes_of(sdata, FEW)
    taken = seconds({"ours": lambda: read_all(boxes), "theirs": tiles_dataset(sdata, FEW, 40)}, rounds)
    (ours, ours_cpu), (theirs, theirs_cpu) = ([t / n for t in taken[who]] for who, n in (("ours", FEW), ("theirs", 40)))
    detail = f"{1e3 * theirs:.1f} ms (40 tiles) against {1e3 * ours:.3f} ms a tile; CPU {theirs_cpu / ours_cpu:.1f}"
    tell(f"tiles/s against ImageTilesDataset of {version('spatialdata')}", theirs / ours, ">= 10", detail=detail)


def tiles_dataset(sdata: SpatialData, n_spots: int, n_read: int) -> Callable[[], None]:
    """Reads tiles by spatialdata's dataset, which has read one to warm up."""
    from spatialdata.dataloader import ImageTilesDataset

    region = f"spots_{n_spots}"
    some = ShapesModel.parse(sdata[region].iloc[: n_read + 1].copy())
    small = SpatialData(
        images={"slide": sdata["slide"]}, shapes={region: some}, tables={"table": table(n_read + 1, region)}
    )
    dataset = ImageTilesDataset(
        small,
        regions_to_images={region: "slide"},
        regions_to_coordinate_systems={region: "slide"},
        tile_dim_in_units=TILE_PX,
        table_name="table",
    )

    def tile(index: int) -> None:
        image = next(iter(dataset[index].images.values()))
        level = next(iter(dict(image).values())) if hasattr(image, "children") else image
        array = next(iter(level.values())) if hasattr(level, "data_vars") else level
        np.asarray(array)

    def read() -> None:
        for index in range(1, n_read + 1):
            tile(index)

    tile(0)
    return read


def count_decoded(boxes: Boxes) -> int:
    counted: list[int] = []

    class Counting(Chunks):
        def decode(self, wanted: Sequence[Chunk]) -> list[NDArray[np.uint8]]:
            found = super().decode(wanted)
            counted.extend(chunk.nbytes for chunk in found)
            return found

    with mock.patch.object(reading, "Chunks", Counting):
        read_all(boxes)
    return sum(counted)


def decoded_bytes(sdata: SpatialData) -> None:
    """Bytes that zarr is asked for, against those of the distinct chunks."""
    for n_spots in (FEW, MANY):
        boxes = boxes_of(sdata, n_spots)
        decoded = count_decoded(boxes)
        sizes = Chunks(boxes.image, boxes.name).n_bytes
        once = sum(int(sizes[chunk]) for chunk in touched(boxes))
        detail = f"{decoded / 2**20:,.0f} MiB of {once / 2**20:,.0f}"
        tell(f"bytes decoded / bytes of chunks touched, {n_spots:,}", decoded / once, "<= 1.05", detail=detail)


def memory(path: Path) -> None:
    used = []
    for n_spots in (FEW, MANY):
        command = [sys.executable, "-W", "ignore", __file__, "--measure", str(path), str(n_spots)]
        used.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]))
    detail = f"{used[0] / 2**10:.0f} MiB and {used[1] / 2**10:.0f} MiB above the process before reading"
    tell(f"peak memory, {FEW:,} -> {MANY:,} spots", used[1] / used[0], "<= 1.1", detail=detail)


def measure(path: str, n_spots: int) -> None:
    """Peak resident KiB of reading above those before; ``ru_maxrss`` would start from the parent's."""
    boxes = boxes_of(SpatialData.read(path), n_spots)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status("VmRSS")
    read_all(boxes)
    print(status("VmHWM") - before)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def embedding(boxes: Boxes, rounds: int, *, what: str) -> None:
    network = load_encoder(OFFLINE)
    ready = [tiles for _, tiles in tile_batches(boxes, TILE_PX, BATCH)]

    def embed(batches: Iterable[torch.Tensor]) -> None:
        with torch.inference_mode():
            for tiles in batches:
                network(tiles)

    taken = seconds(
        {"there": lambda: embed(ready), "read": lambda: embed(t for _, t in tile_batches(boxes, TILE_PX, BATCH))},
        rounds,
    )
    n_tiles = len(boxes.origins)
    rates = {name: n_tiles / wall for name, (wall, _) in taken.items()}
    detail = f"{rates['read']:.1f} against {rates['there']:.1f} tiles/s, {n_tiles} tiles; CPU {taken['read'][1]:.1f} s, {taken['there'][1]:.1f} s"
    tell(f"encoder fed from {what} / from memory", rates["read"] / rates["there"], ">= 0.9", detail=detail)


def lying_together(boxes: Boxes, n_boxes: int) -> Boxes:
    return replace(
        boxes, origins=boxes.origins[np.lexsort((boxes.origins[:, 1], boxes.origins[:, 0] // 1000))[:n_boxes]]
    )


def compiling(n_tiles: int, rounds: int) -> None:
    """One thread; what is compiled already from an earlier run starts faster."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    network = load_encoder(OFFLINE)
    module = network.module.to(memory_format=torch.channels_last)
    compiled = replace(network, module=cast("torch.nn.Module", torch.compile(module, dynamic=False)))
    tiles = torch.randint(0, 256, (BATCH, 3, TILE_PX, TILE_PX), dtype=torch.uint8)

    @torch.inference_mode()
    def encode(encoder: Encoder) -> None:
        for _ in range(max(1, n_tiles // BATCH)):
            encoder(tiles)

    start = time.perf_counter()
    with torch.inference_mode():
        compiled(tiles)
    warm_up = time.perf_counter() - start
    taken = seconds({"eager": lambda: encode(network), "compiled": lambda: encode(compiled)}, rounds)
    torch.set_num_threads(n_threads)
    (wall, cpu), (wall_compiled, cpu_compiled) = taken["eager"], taken["compiled"]
    detail = f"{wall:.1f} s, {wall_compiled:.1f} s for {n_tiles} tiles, {warm_up:.0f} s to compile; CPU {cpu / cpu_compiled:.2f}"
    tell("encoder eager / compiled, one thread", wall / wall_compiled, ">= 1.15", detail=detail)


def files(name: str, parts: list[Boxes], rounds: int) -> None:
    """Images in files that are read through dask, one after the other."""

    def read() -> None:
        for boxes in parts:
            read_all(boxes)

    def decode() -> None:
        for boxes, chunks in wanted:
            decode_once(boxes, chunks)

    wanted = [(boxes, touched(boxes)) for boxes in parts]
    taken = seconds({"read": read, "decode": decode}, rounds)
    (wall, cpu), (wall_decode, cpu_decode) = taken["read"], taken["decode"]
    n_tiles = sum(len(boxes.origins) for boxes in parts)
    detail = f"{wall:.2f} s, {wall_decode:.2f} s, {n_tiles:,} tiles; CPU {cpu:.2f} s, {cpu_decode:.2f} s"
    tell(f"reading / decoding once, {name}", wall / wall_decode, "<= 1.3", detail=detail)


def tiff(path: Path, px: int, rounds: int) -> None:
    """Two levels of JPEG tiles; only the finest is read."""
    finest = np.asarray(tissue((3, px, px), 1000)).transpose(1, 2, 0)
    options: dict[str, Any] = {"tile": (CHUNK_PX, CHUNK_PX), "compression": "jpeg", "photometric": "rgb"}
    with tifffile.TiffWriter(path) as writer:
        writer.write(finest, subifds=1, **options)
        writer.write(finest[::2, ::2], subfiletype=1, **options)
    origins = np.random.default_rng(0).integers(0, px - TILE_PX, (FEW, 2))
    boxes = Boxes(open_image(path), origins, TILE_PX, MPP, np.zeros(3, np.uint8), "", "the TIFF")
    files(f"pyramidal JPEG TIFF of {px:,} px", [boxes], rounds)


def her2st(folder: Path, rounds: int) -> None:
    """Tiles at the resolution of the image; the encoder's at its default, so that resampling counts."""
    sdata = read_st_folder(folder)
    found = sections(sdata, sdata["table"])
    parts = [geometry.boxes_of(section, geometry.TileSpec(TILE_PX, "image"), section.mpp()) for section in found]
    files(f"{len(found)} JPEG sections of HER2ST", parts, rounds)
    first = geometry.boxes_of(found[0], geometry.TileSpec(TILE_PX, MPP), found[0].mpp())
    embedding(first, rounds, what=f"section {found[0].name} of HER2ST")


def encoder(sdata: SpatialData, options: argparse.Namespace) -> None:
    embedding(lying_together(boxes_of(sdata, MANY), options.encode), options.rounds, what="zarr")
    compiling(options.encode, options.rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--px", type=int, default=20_000, help="side of the slide")
    parser.add_argument("--chunk", type=int, default=1024, help="side of its chunks")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--encode", type=int, default=128, help="tiles through the encoder")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--her2st", type=Path, help="folder of JPEG sections to read, too")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.zarr"
        start = time.perf_counter()
        write_slide(path, options.px, options.chunk)
        n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        print(
            f"{options.px:,} px, chunks of {options.chunk} px, {n_bytes / 2**20:,.0f} MiB, written in {time.perf_counter() - start:.0f} s"
        )
        print(f"{'':<56} {'ratio':>8}   {'goal':<8}", flush=True)
        sdata = SpatialData.read(path)
        rows: dict[str, Callable[[], None]] = {
            "bytes": lambda: decoded_bytes(sdata),
            "speed": lambda: speed(sdata, options.rounds),
            "dataset": lambda: against_dataset(sdata, options.rounds),
            "memory": lambda: memory(path),
            "encoder": lambda: encoder(sdata, options),
            "tiff": lambda: tiff(Path(folder) / "slide.tif", min(8_000, options.px), options.rounds),
        }
        for row in options.rows:
            rows[row]()
        if options.her2st:
            her2st(options.her2st, options.rounds)


if __name__ == "__main__":
    main()
