"""What a GPU is worth: one table, in less than eight minutes, with the same results as on the CPU beside it.

    python -m benchmarks.gpu                                # the fastest device; ../shared/data, else synthetic tissue
    python -m benchmarks.gpu --data DATA --output gpu.md
    python -m benchmarks.gpu --device cpu --small           # seconds, on any machine: does the script run?

From the root of a checkout in which the package is installed. Data: a folder with `her2st/`. `higher` is optional: pip
install "agl-sc[bench]". Where packages have to be carried as wheels, it runs without the large ones of pyogrio, imagecodecs,
botocore and datashader; agl-sc needs one of its own, from which the version is read. Parts: encoder, embed, dense, steps,
hypergradient, finetune, same; `--parts` chooses, and one that fails is said without ending the others.
Every row is the median of a few repeats after one to warm up, with the peak of the device's memory during it.
"""

import argparse
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import timm
import torch
from accelerate import Accelerator
from benchmarks import hypergradient as unrolled
from spatialdata import SpatialData

import agl_sc
from agl_sc.core.encoders.dense import Fields, Pass, field_blocks, field_rows, n_windows
from agl_sc.core.encoders.load import OFFLINE, Encoder, load_encoder
from agl_sc.core.encoders.maps import maps_of
from agl_sc.io._st import read_st_folder
from agl_sc.tl import TrainConfig

LARGE = "vit_large_patch16_224"
"""Of the size of UNI, at random weights, which are as fast as trained ones."""
TOLERANCE = {"features": 0.02, "predictions": 0.999}
"""Features: largest difference in float32, of their standard deviation. Predictions: correlation of layers, at least."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    repeats: int = 3
    n_tiles: int = 512
    batch: int = 64
    tile_px: int = 224
    n_genes: int = 18_000
    inner_steps: int = 12
    unrolled_batch: int = 32
    epochs: int = 3
    n_spots_per_side: int = 30
    large: bool = True
    image_px: int = 8_000
    context: tuple[float, ...] = (2, 4, 8)
    sections: tuple[str, ...] = ("C2", "C3", "C4")


SMALL = Size(1, 4, 2, 32, 60, 1, 4, 1, 6, large=False, image_px=300, context=())


@dataclass(slots=True)
class Table:
    """Rows as they are measured, printed at once."""

    device: torch.device
    size: Size
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, name: str, value: str, memory: str = "") -> None:
        self.rows.append((name, value, memory))
        print(f"| {name} | {value} | {memory} |", flush=True)

    def measured(self, name: str, work: Callable[[], object], *, of: float = 0.0, unit: str = "s") -> float:
        """Median seconds of some work, as ``of`` things a second where there are any."""
        seconds, peak = timed(work, self.device, repeats=self.size.repeats)
        self.add(name, f"{of / seconds:,.0f} {unit}/s" if of else f"{1e3 * seconds:,.1f} ms", peak)
        return seconds


def timed(work: Callable[[], object], device: torch.device, *, repeats: int, warm: bool = True) -> tuple[float, str]:
    """Median seconds, and the peak of the device's memory in GB."""
    if warm:
        work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - start)
    peak = f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB" if device.type == "cuda" else ""
    return statistics.median(taken), peak


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoders(size: Size) -> Iterator[Encoder]:
    yield load_encoder(OFFLINE, stages=True)
    if size.large:
        module = timm.create_model(LARGE, pretrained=False, num_classes=0).eval()
        yield Encoder(LARGE, module, (0.5,) * 3, (0.5,) * 3, 1024, "", 224)


def encoder_alone(table: Table, _: SpatialData) -> None:
    """Tiles that lie on the device, through the network alone."""
    size, device = table.size, table.device
    for encoder in encoders(size):
        shape = (size.batch, 3, size.tile_px, size.tile_px)
        pixels = encoder.scale(torch.randint(0, 256, shape, dtype=torch.uint8, device=device))
        module = encoder.module.to(device).eval()
        variants: list[tuple[str, torch.dtype, bool, bool]] = [
            ("float32", torch.float32, False, False),
            ("float32, channels last", torch.float32, True, False),
            ("bfloat16", torch.bfloat16, False, False),
            ("bfloat16, channels last", torch.bfloat16, True, False),
        ]
        if device.type == "cuda":  # on the CPU it needs a C++ compiler
            variants.append(("bfloat16, channels last, compiled", torch.bfloat16, True, True))
        for name, dtype, last, compiled in variants:
            layout = torch.channels_last if last else torch.contiguous_format
            run: Any = module.to(memory_format=layout)
            run = torch.compile(run, dynamic=False) if compiled else run
            work = passing(run, pixels.contiguous(memory_format=layout), dtype=dtype, n=size.n_tiles // size.batch)
            table.measured(f"encoder alone, {encoder.name}, {name}", work, of=size.n_tiles, unit="tiles")


def passing(module: Any, pixels: torch.Tensor, *, dtype: torch.dtype, n: int) -> Callable[[], None]:
    """Some batches through a network in some precision."""

    @torch.inference_mode()
    def work() -> None:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
            for _ in range(n):
                module(pixels)

    return work


def embedding(table: Table, sdata: SpatialData) -> None:
    """`pp.embed` from the image to features in memory: one field of view, upright, and as it is by default."""

    def work(**options: Any) -> None:
        sdata["table"].obsm.pop("agl_features", None)
        agl_sc.pp.embed(sdata, device=str(table.device), batch_size=table.size.batch, **options)

    n_spots, px = sdata["table"].n_obs, table.size.tile_px
    alone = partial(work, tile_px=px, mpp=112 / px, context=(), orientations=1)
    table.measured(f"pp.embed, {OFFLINE}, one field upright", alone, of=n_spots, unit="tiles")
    seconds, peak = timed(partial(work, context=table.size.context), table.device, repeats=1, warm=False)
    table.add(
        f"pp.embed, {OFFLINE}, fields 1, {table.size.context}, both ways up",
        f"{seconds / n_spots * 1000 / 60:.2f} min per 1,000 spots",
        peak,
    )


def dense_maps(table: Table, _: SpatialData) -> None:
    """Fields of view as means over maps of an image in memory."""
    size, device = table.size, table.device
    encoder = load_encoder(OFFLINE, stages=True)
    maps = maps_of(encoder)
    if maps is None:
        table.add(f"maps, {encoder.name}", "has none")
        return
    drawn = np.random.default_rng(0)
    side = size.image_px
    image = da.from_array(drawn.integers(0, 256, (3, side, side), dtype=np.uint8), chunks=(3, 1024, 1024))  # type: ignore[no-untyped-call]
    centres = drawn.uniform(0, side, (size.n_tiles, 2))
    fields = Fields(image, centres, float(2 * size.tile_px), 1.0, np.full(3, 255, np.uint8), "", "an image")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    how = Pass(encoder, maps.to(device), ((False, 0),), size.batch, device, dtype)
    rows = field_rows(maps, fields, 256)
    work = partial(exhaust, lambda: field_blocks(how, fields, rows=rows, blocks=range(len(rows))))
    n = n_windows(maps, fields)
    row = f"maps of {side} px square, {n} windows of {maps.window_px} px, {size.n_tiles} fields"
    table.measured(f"{row}, windows", work, of=n, unit="windows")


def exhaust(make: Callable[[], Iterator[object]]) -> None:
    for _ in make():
        pass


def training_steps(table: Table, _: SpatialData) -> None:
    """Steps of trunk and head on all genes, and the hyper-gradient through as many."""
    size = table.size
    with torch.device(table.device):
        problem = unrolled.trunk(size.n_genes, batch=128)
        n = size.inner_steps
        for name in ("plain", "exact", "no_hessian"):
            table.measured(f"trunk and head, {size.n_genes:,} genes, {n} steps, {name}", runs(problem, name, n))


def hypergradients(table: Table, _: SpatialData) -> None:
    """Of a ResNet18 on tiles of 224 px, beside `higher`."""
    size = table.size
    seconds: dict[str, float] = {}
    with torch.device(table.device):
        problem = unrolled.resnet(size.n_genes, batch=size.unrolled_batch, px=size.tile_px)
        for name in ("plain", "exact", "no_hessian", *(["higher"] if unrolled.HAS_HIGHER else [])):
            work = runs(problem, name, size.inner_steps)
            row = f"ResNet18, {size.tile_px} px, batch {size.unrolled_batch}, {size.inner_steps} steps, {name}"
            seconds[name] = table.measured(row, work)
    for name in set(seconds) - {"plain"}:
        table.add(f"ResNet18, {name} to plain", f"{seconds[name] / seconds['plain']:.2f} x")


def runs(problem: unrolled.Problem, name: str, n: int) -> Callable[[], None]:
    return lambda: unrolled.RUN[name](problem, n)


def finetuning(table: Table, sdata: SpatialData) -> None:
    """`pgl` and `agl` with the whole encoder, for a fixed number of epochs, last section for validation."""
    prepare(table, sdata)
    for method in ("pgl", "agl"):
        seconds, peak = timed(
            partial(training, table, sdata, method, finetune=True), table.device, repeats=1, warm=False
        )
        best = sdata["table"].uns["agl"]["history"]["validation_pearson"].max()
        row = f"fine-tuning, {method}, {sdata['table'].n_obs} spots, {table.size.epochs} epochs"
        table.add(row, f"{seconds:.1f} s, validation Pearson {best:.3f}", peak)


def prepare(table: Table, sdata: SpatialData) -> None:
    """One field of view, upright, and a split."""
    size = table.size
    shape: dict[str, Any] = {"tile_px": size.tile_px, "mpp": 112 / size.tile_px, "context": (), "orientations": 1}
    agl_sc.pp.embed(sdata, **shape, device=str(table.device), batch_size=size.batch)
    agl_sc.pp.split(sdata, by="section", validation=sorted(sdata.shapes)[-1:], test=0)


def training(
    table: Table, sdata: SpatialData, method: Any, *, finetune: bool = False, device: torch.device | None = None
) -> None:
    """A fixed number of epochs."""
    device, n_epochs = device or table.device, table.size.epochs
    config = TrainConfig(max_epochs=n_epochs, patience=max(1, n_epochs), refit=False, batch_size=16)
    accelerator = accelerator_on(device)
    agl_sc.tl.train(
        sdata, method=method, finetune=finetune, config=config, device=str(table.device), accelerator=accelerator
    )


def accelerator_on(device: torch.device) -> Accelerator:
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(cpu=device.type == "cpu")


def same_results(table: Table, sdata: SpatialData) -> None:
    """Features in float32 and predictions of a training with the same seed, on the device and on the CPU."""
    size = table.size
    encoder = load_encoder(OFFLINE, stages=True)
    tiles = torch.randint(0, 256, (size.batch, 3, size.tile_px, size.tile_px), dtype=torch.uint8)
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        own = [features_on(device, encoder, tiles) for device in (torch.device("cpu"), table.device)]
    torch.backends.cudnn.allow_tf32 = allowed
    difference = float((own[0] - own[1]).abs().max() / own[0].std())
    table.add(
        "features, largest difference to the CPU, in standard deviations", verdict(difference, TOLERANCE["features"])
    )
    layers = []
    prepare(table, sdata)
    for device in (torch.device("cpu"), table.device):
        training(table, sdata, "dkgsb", device=device)
        layers.append(np.asarray(sdata["table"].layers["agl"], dtype=np.float64))
    both = np.isfinite(layers[0]) & np.isfinite(layers[1])
    correlation = float(np.corrcoef(layers[0][both], layers[1][both])[0, 1])
    table.add("predictions, correlation with the CPU's", verdict(-correlation, -TOLERANCE["predictions"]))


def features_on(device: torch.device, encoder: Encoder, tiles: torch.Tensor) -> torch.Tensor:
    encoder.module.to(device)
    return encoder(tiles.to(device)).cpu()


def verdict(value: float, limit: float) -> str:
    return f"{abs(value):.5f} ({'within' if value <= limit else 'NOT within'} {abs(limit):g})"


def sections_of(data: Path, size: Size) -> SpatialData:
    """Sections of HER2ST, else synthetic ones."""
    if (data / "her2st").is_dir() and size.large:
        return read_st_folder(data / "her2st", sections=list(size.sections))
    options: dict[str, Any] = {} if size.large else {"n_targets": 4, "n_informative": 8, "n_auxiliary": 48}
    return agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=size.n_spots_per_side, **options)


PARTS: dict[str, Callable[[Table, SpatialData], None]] = {
    "encoder": encoder_alone, "embed": embedding, "dense": dense_maps, "steps": training_steps,
    "hypergradient": hypergradients, "finetune": finetuning, "same": same_results,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> Table:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="a size that tells whether it runs")
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    device, size = torch.device(given.device), SMALL if given.small else Size()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    table = Table(device, size)
    print(
        f"{card}; torch {torch.__version__}, agl-sc {agl_sc.__version__}\n\n| what | value | peak memory |\n|---|---|---|"
    )
    sdata, start = sections_of(given.data, size), time.perf_counter()
    for part in given.parts:
        began = time.perf_counter()
        try:
            PARTS[part](table, sdata)
        except (RuntimeError, ValueError, TypeError, KeyError, OSError) as error:
            traceback.print_exc()
            table.failed.append(part)
            table.add(f"({part} failed)", repr(error))
        table.add(f"({part} took)", f"{time.perf_counter() - began:.0f} s")
    table.add("(all took)", f"{time.perf_counter() - start:.0f} s")
    if given.output is not None:
        lines = [f"| {' | '.join(row)} |" for row in table.rows]
        text = "\n".join(
            [f"{card}, torch {torch.__version__}", "", "| what | value | peak memory |", "|---|---|---|", *lines]
        )
        given.output.write_text(f"{text}\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    sys.exit(len(main().failed))
