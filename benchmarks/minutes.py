"""Minutes of one core that 1,000 spots take: ``OMP_NUM_THREADS=1 python benchmarks/minutes.py ../shared/data``.

Features as by default and of the tile alone, then training, on two sections of a breast tumour at full resolution and on two of
mouse brain whose image has 4 um per pixel. Processor time of all threads, so that other work on the machine counts little.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agl_sc as agl

ALONE: dict[str, Any] = {"context": (), "orientations": 1}


def tumour(data: Path) -> Any:
    """Sections C5 and C6 of HER2ST, .69 um per pixel."""
    folder, names = data / "her2st", ("C5", "C6")
    files = ({name: folder / f"{name}{ending}" for name in names} for ending in (".tsv.gz", ".jpg", "_selection.tsv"))
    return agl.io.read_st(*files, image_mpp=0.69)


def brain(data: Path) -> Any:
    """Sections A1 and B1 of mouse brain, 4.1 um per pixel."""
    return agl.io.read_visium({name: data / "visium" / f"mousebrain_V10F24-078_{name}" for name in ("A1", "B1")})


def minutes(function: Callable[..., Any], *arguments: Any, n_spots: int, **options: Any) -> float:
    """Processor minutes per 1,000 spots of one call."""
    start = time.process_time()
    function(*arguments, **options)
    return (time.process_time() - start) / 60 / n_spots * 1000


def rows(data: Path) -> Iterator[tuple[str, str, float]]:
    """Tissue, step and minutes per 1,000 spots."""
    cases: tuple[tuple[str, Callable[[Path], Any], dict[str, Any]], ...] = (
        ("tumour, 0.69 um/px", tumour, {}),
        ("brain, 4.1 um/px", brain, {"mpp": "image"}),
    )
    for name, read, tiles in cases:
        for said, options in (("tile alone", ALONE), ("default", {})):
            sdata = read(data)
            n_spots = sdata["table"].n_obs
            yield name, f"embed, {said}", minutes(agl.pp.embed, sdata, n_spots=n_spots, **tiles, **options)
        agl.pp.split(sdata, by="section", test=sorted(sdata.shapes)[1], validation=0.2)
        yield name, "train", minutes(agl.tl.train, sdata, n_spots=n_spots)


def main() -> None:
    """Print a row per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    warnings.simplefilter("ignore")
    for name, step, found in rows(parser.parse_args().data):
        sys.stdout.write(f"{name:20} {step:20} {found:6.2f} min of one core per 1,000 spots\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
