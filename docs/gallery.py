"""Draw the figures of the gallery: ``python docs/gallery.py ../shared/data``.

Every call in ``docs/gallery.md`` is run as it stands there, and its figure written to the image that the page shows below it, small
enough to be committed. Prints what it took.
"""

import argparse
import ast
import re
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

import agl_sc as agl

PAGE = Path(__file__).parent / "gallery.md"
WIDTH_PX, N_COLOURS = 1000, 128
_CALL = re.compile(r"```python\n(agl\.pl\..*?)```\s+!\[[^\]]*\]\((gallery/\w+\.png)\)", re.DOTALL)


def figures() -> dict[str, str]:
    """Calls on the page, by the image that shows their figure."""
    return {image: call.strip() for call, image in _CALL.findall(PAGE.read_text(encoding="utf-8"))}


def with_save(call: str, path: Path) -> str:
    """The call, with a file to save its figure to."""
    tree = ast.parse(call, mode="eval")
    if not isinstance(tree.body, ast.Call):
        msg = f"{call!r} is no call; the page shows one function of agl.pl in a block."
        raise TypeError(msg)
    tree.body.keywords.append(ast.keyword("save", ast.Constant(str(path))))
    return ast.unparse(tree)


def prepare(data: Path) -> dict[str, Any]:
    """What the calls are about."""
    names = {name: data / "visium" / f"mousebrain_V10F24-078_{name}" for name in ("A1", "B1")}
    sdata = agl.io.read_visium(names)
    agl.pp.embed(sdata, mpp="image", tile_px=32, orientations=1)
    agl.tl.predictable_genes(sdata)  # each section from the other
    agl.pp.split(sdata, by="section", test="B1", validation=0.2)
    model = agl.tl.train(sdata)
    agl.tl.evaluate(sdata)
    folder, sections = data / "her2st", ["C4", "C5", "C6"]
    tumour = agl.io.read_st(
        *({name: folder / f"{name}{ending}" for name in sections} for ending in (".tsv.gz", ".jpg", "_selection.tsv")),
        image_mpp=0.69,
    )
    agl.pp.embed(tumour, context=(), orientations=1)
    report = agl.tl.benchmark(
        tumour, methods=["depth", "knn", "ridge", "pgl"], predictions="pgl", seeds=1, metrics=["pearson"]
    )
    slide = agl.io.read_slide({"C2": folder / "C2.jpg"}, image_mpp=0.69)
    agl.pp.split(tumour, by="section", validation="C5", test=["C6"])
    agl.tl.predict(slide, agl.tl.train(tumour))
    return {"agl": agl, "sdata": sdata, "model": model, "tumour": tumour, "report": report, "slide": slide}


def shrink(source: Path, target: Path) -> None:
    """A picture in few colours, no wider than the page."""
    with Image.open(source) as picture:
        plain = picture.convert("RGB")
    plain.thumbnail((WIDTH_PX, 10 * WIDTH_PX), Image.Resampling.LANCZOS)
    plain.quantize(N_COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


def main() -> None:
    """Prepare, draw, shrink."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    mpl.use("Agg")
    warnings.simplefilter("ignore")
    start = time.perf_counter()
    known = prepare(parser.parse_args().data)
    with tempfile.TemporaryDirectory() as folder:
        for image, call in figures().items():
            drawn = Path(folder) / Path(image).name
            eval(with_save(call, drawn), known)  # of our own page
            target = PAGE.parent / image
            target.parent.mkdir(exist_ok=True)
            shrink(drawn, target)
            sys.stdout.write(f"{image}: {target.stat().st_size / 1024:.0f} KiB\n")
    sys.stdout.write(f"{time.perf_counter() - start:.0f} s, {time.process_time():.0f} s of them on the processor\n")


if __name__ == "__main__":
    main()
