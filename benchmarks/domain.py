"""What obs["agl_distance"] calls beyond: held-out sections like those of training, and slides that a model does not know.

    python benchmarks/domain.py ../shared/data coarse            # 4.18 um per pixel, where HER2ST, mouse brain and organoid meet
    python benchmarks/domain.py ../shared/data fine              # HER2ST alone, at .5 um per pixel
    python benchmarks/domain.py toy coarse                       # synthetic tissue, to see that it runs

Features are those of ``pp.embed`` without wider fields of view, which distances leave out. A row is a model of some sections, and a slide that it
was not made of: the share of its spots beyond; the same of the spots on their own, without regard to the section as a whole; how far the
mean of its tissue is moved, in units of the limit; and at which power of two of its scale it seems to be seen, with the limit of that. Stain: eosin as brown as DAB, or all dyes at half their density. Blur: Gaussian, of 8 um. Scale: tiles of four times the
side, or a quarter. Glass: places 300 um or more from any spot, among tissue. Sections of more than 1,000 spots are thinned to them.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from skimage.color import hed2rgb, rgb2hed
from spatialdata import SpatialData, get_pyramid_levels

import agl_sc
from agl_sc._sdata.study import Study
from agl_sc.core.evaluation.domain import BEYOND, Domain
from agl_sc.core.evaluation.held_out import HeldOutFold
from agl_sc.core.evaluation.seen_scale import STEPS, SeenScale
from agl_sc.io._st import read_st_folder
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._features.other_scales import OtherScales, at_other_scales
from agl_sc.pp._features.reference import reference_of
from agl_sc.tl._model.held_out import held_out_of

SCALES: dict[str, dict[str, Any]] = {"coarse": {"mpp": 4.18, "tile_px": 32}, "fine": {"mpp": 0.5, "tile_px": 224}}
REDUCED_MPP = 1.4
"""Images of tissue that is looked at coarsely are brought near to this scale first, a quarter of which is still in them."""
MARGIN_UM, GLASS_UM, BLUR_UM = 800.0, 300.0, 8.0
MOST_SPOTS, N_GLASS = 1000, 200


@dataclass(frozen=True, slots=True, eq=False)
class Slide:
    """A section as pixels and places."""

    name: str
    pixels: NDArray[np.uint8]
    """(y, x, 3)."""
    centres: NDArray[np.float64]
    """Of its spots, x and y in pixels, (n_spots, 2)."""
    mpp: float
    """Microns per pixel."""


@dataclass(frozen=True, eq=False)
class Embedded:
    """What a model sees of a slide."""

    study: Study
    """With the slide alone."""
    features: NDArray[np.float32]
    """(n_spots, n_features)."""
    mean: NDArray[np.float64]
    """Of its tissue, (n_features,)."""

    @cached_property
    def other_scales(self) -> OtherScales:
        """Some of its tiles at other scales."""
        return at_other_scales(self.study, np.arange(len(self.features)), STEPS, tiles=FeatureRequest())


def slide_of(sdata: SpatialData, name: str, scale: str) -> Slide:
    """A section of a SpatialData, cropped to its tissue, and reduced where it is looked at coarsely."""
    table = sdata["table"]
    centres = np.asarray(table.obsm["spatial"][(table.obs["region"] == name).to_numpy()], dtype=float)
    mpp = sdata.attrs["agl_sc"]["image_mpp"][f"{name}_image"]
    chosen = np.random.default_rng(0).permutation(len(centres))[:MOST_SPOTS]
    centres = centres[np.sort(chosen)]
    image = np.asarray(get_pyramid_levels(sdata[f"{name}_image"], n=0)).transpose(1, 2, 0)
    low = np.maximum(centres.min(axis=0) - MARGIN_UM / mpp, 0).astype(int)
    high = (centres.max(axis=0) + MARGIN_UM / mpp).astype(int)
    image, centres = image[low[1] : high[1], low[0] : high[0]], centres - low
    step = max(1, round(REDUCED_MPP / mpp)) if scale == "coarse" else 1
    rows, columns = image.shape[0] // step * step, image.shape[1] // step * step
    blocks = image[:rows, :columns].reshape(rows // step, step, columns // step, step, 3)
    pixels = blocks.mean(axis=(1, 3), dtype=np.float32).round().astype(np.uint8) if step > 1 else image
    return Slide(name, np.ascontiguousarray(pixels), centres / step, mpp * step)


def embedded(slide: Slide, *, mpp: float, tile_px: int) -> Embedded:
    """Features of a slide."""
    known = {"slide": {"scalefactors": {"spot_diameter_fullres": 55 / slide.mpp}}}
    spots = AnnData(
        np.ones((len(slide.centres), 1), dtype=np.float32), obsm={"spatial": slide.centres}, uns={"spatial": known}
    )
    sdata = agl_sc.io.from_anndata(spots, slide.pixels, image_mpp=slide.mpp)
    agl_sc.pp.embed(sdata, mpp=mpp, tile_px=tile_px, context=())
    study = Study.of(sdata)
    (mean,) = reference_of(study).values()
    return Embedded(study, np.asarray(study.table.obsm["agl_features"]), mean)


def inverted(slide: Slide) -> Slide:
    """As a negative."""
    return replace(slide, pixels=255 - slide.pixels)


def blurred(slide: Slide) -> Slide:
    """Out of focus."""
    return replace(slide, pixels=gaussian_filter(slide.pixels, sigma=(BLUR_UM / slide.mpp, BLUR_UM / slide.mpp, 0)))


def restained(slide: Slide, dyes: Callable[[NDArray[Any]], NDArray[Any]]) -> Slide:
    """With other densities of haematoxylin, eosin and DAB, (y, x, 3)."""
    pixels = slide.pixels.copy()
    for row in range(0, len(pixels), 512):
        part = rgb2hed(pixels[row : row + 512])
        pixels[row : row + 512] = (255 * hed2rgb(dyes(part))).round().astype(np.uint8)
    return replace(slide, pixels=pixels)


def on_glass(slide: Slide) -> Slide:
    """Places where there is no tissue."""
    low, high = 100 / slide.mpp, np.array(slide.pixels.shape[1::-1]) - 100 / slide.mpp
    places = np.random.default_rng(0).uniform(low, high, size=(100_000, 2))
    distance, _ = cKDTree(slide.centres).query(places)
    return replace(slide, centres=places[distance * slide.mpp > GLASS_UM][:N_GLASS])


def padded(slide: Slide) -> Slide:
    """With glass around it."""
    width = int(2 * GLASS_UM / slide.mpp)
    pixels = np.pad(slide.pixels, ((width, width), (width, width), (0, 0)), constant_values=240)
    return replace(slide, pixels=pixels, centres=slide.centres + width)


CHANGES: dict[str, Callable[[Slide], Slide]] = {
    "inverted": inverted,
    "eosin as DAB": lambda slide: restained(slide, lambda dyes: dyes[..., [0, 2, 1]]),
    "half the dye": lambda slide: restained(slide, lambda dyes: 0.5 * dyes),
    "blurred": blurred,
}


def changed(slide: Slide, views: Mapping[str, Any], mean: NDArray[np.float64]) -> Iterator[tuple[str, Embedded | None]]:
    """A slide in every way in which it may not suit a model; None where features are refused."""
    for name, change in CHANGES.items():
        yield name, embedded(change(slide), **views)
    yield from rescaled(slide, views)
    yield "glass", replace(embedded(on_glass(slide), **views), mean=mean)


def rescaled(slide: Slide, views: Mapping[str, Any]) -> Iterator[tuple[str, Embedded | None]]:
    """A slide at the wrong scales; None where features are refused."""
    for name, factor in (("scale 4x too coarse", 4.0), ("scale 4x too fine", 0.25)):
        try:
            yield name, embedded(slide, **{**views, "mpp": factor * views["mpp"]})
        except ValueError:  # no such pixels
            yield name, None


def seen_scale_of(training: Sequence[Embedded]) -> SeenScale | None:
    """As ``tl.train`` finds it."""
    parts = []
    for code, each in enumerate(training):
        seen = each.other_scales
        own = np.unique(seen.rows)
        steps = np.concatenate([np.zeros(len(own)), seen.steps])
        parts.append((np.concatenate([each.features[own], seen.features]), np.full(len(steps), code), steps))
    features, codes, steps = (np.concatenate(part) for part in zip(*parts, strict=True))
    return SeenScale.fitted(features, codes, steps, held=[np.array([code]) for code in range(len(training))])


def domain_of(training: Sequence[Embedded]) -> Domain:
    """As ``tl.train`` finds it: held-out sections where there are two, else blocks of the one."""
    codes = np.repeat(np.arange(len(training)), [len(each.features) for each in training])
    if len(training) == 1:
        folds = held_out_of(training[0].study, np.ones(len(codes), dtype=bool)).folds
    else:
        folds = [HeldOutFold(np.flatnonzero(codes != code), np.flatnonzero(codes == code)) for code in np.unique(codes)]
    features = np.concatenate([each.features for each in training])
    domain = Domain.fitted(features, codes, folds, means={code: each.mean for code, each in enumerate(training)})
    return replace(domain, seen_scale=seen_scale_of(training))


def shares(domain: Domain, slide: Embedded) -> dict[str, float]:
    """What is beyond of a slide."""
    codes = np.zeros(len(slide.features), dtype=np.int64)
    whole = domain.distance(slide.features, codes, means={0: slide.mean})
    spots = replace(domain, seen_scale=None)
    alone = spots.distance(slide.features, codes, means={0: domain.reference.centre})
    moved = (domain.reference.shifts(slide.mean) / domain.limit).max()
    found = {"beyond": (whole > BEYOND).mean(), "spots alone": (alone > BEYOND).mean(), "moved": moved}
    if domain.seen_scale is None:
        return found
    return found | {"scale": domain.seen_scale.power(slide.mean), "limit": domain.seen_scale.limit[1]}


class Table:
    """Rows, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self, model: str, training: Sequence[Embedded], slides: Mapping[str, Embedded | None], *, kind: str
    ) -> None:
        """Lay slides before a model."""
        domain = domain_of(training)
        for name, slide in slides.items():
            found = {"beyond": np.nan} if slide is None else shares(domain, slide)
            self.rows.append({"model of": model, "slide": name, "kind": kind, **found})
            print(
                *(f"{value:.3f}" if isinstance(value, float) else value for value in self.rows[-1].values()),
                sep=" | ",
                flush=True,
            )

    def told(self) -> str:
        """The table, and how many rows are as they should be."""
        table = pd.DataFrame(self.rows)
        known = table[table["beyond"].notna()]
        shown = {
            name: ["refused" if np.isnan(value) else f"{value:.3f}" for value in table[name]]
            for name in ("beyond", "spots alone", "moved", "scale", "limit")
        }
        like, other = (known.loc[(known["kind"] == "like") == is_like, "beyond"] for is_like in (True, False))
        lines = [
            table.assign(**shown).to_markdown(index=False, disable_numparse=True),
            f"held-out sections like those of training: mean {like.mean():.3f} beyond, most {like.max():.3f}, below .10 in {(like < 0.1).sum()} of {len(like)}",
            f"others: mean {other.mean():.3f} beyond, fewest {other.min():.3f}, above .90 in {(other > 0.9).sum()} of {len(other)}",
        ]
        return "\n".join(lines)


def read(data: str, scale: str) -> tuple[dict[str, Slide], dict[str, Slide], dict[str, Slide]]:
    """Sections of one tumour, that of another patient last; two sections of another organ; a third organ."""
    if data == "toy":
        toy = agl_sc.datasets.toy_tissue(n_sections=5, n_spots_per_side=8)
        slides = {name: padded(slide_of(toy, name, scale)) for name in toy.shapes}
        return dict(list(slides.items())[:3]), dict(list(slides.items())[3:]), {}
    names = ["C2", "C3", "C4", "C5", "C6", "B4"]
    tumour = {
        name: slide_of(read_st_folder(Path(data) / "her2st", sections=[name], image_mpp=0.69), name, scale)
        for name in names
    }
    if scale == "fine":
        return tumour, {}, {}
    others = {
        "A1": "mousebrain_V10F24-078_A1",
        "B1": "mousebrain_V10F24-078_B1",
        "organoid": "kidneyorganoid_V19D02-085_B1",
    }
    found = {
        name: slide_of(agl_sc.io.read_visium({name: Path(data) / "visium" / folder}), name, scale)
        for name, folder in others.items()
    }
    return tumour, {name: found[name] for name in ("A1", "B1")}, {"organoid": found["organoid"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the sections, or toy")
    parser.add_argument("scale", choices=list(SCALES))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    warnings.simplefilter("ignore")
    views = SCALES[arguments.scale]
    slides, table, clock = read(arguments.data, arguments.scale), Table(), time.process_time()
    tumour, brain, third = ({name: embedded(each, **views) for name, each in part.items()} for part in slides)
    print(
        f"{sum(len(part) for part in slides)} sections embedded in {time.process_time() - clock:.0f} s of processor time"
    )
    *own, patient = tumour
    for name in own:
        table.add(
            f"the others of {own[0]} to {own[-1]}",
            [tumour[each] for each in own if each != name],
            {name: tumour[name]},
            kind="like",
        )
    all_own, other_organs = [tumour[name] for name in own], {**brain, **third}
    table.add(f"{own[0]} to {own[-1]}", all_own, {f"{patient}, another patient": tumour[patient]}, kind="like")
    table.add(f"{own[0]} to {own[-1]}", all_own, other_organs, kind="organ")
    found = {f"{own[-1]}, {name}": each for name, each in changed(slides[0][own[-1]], views, tumour[own[-1]].mean)}
    table.add(f"{own[0]} to {own[-2]}", all_own[:-1], found, kind="changed")
    for name, model in ((patient, all_own), (own[0], [tumour[patient]]), (own[-1], [tumour[patient]])):
        of = f"{own[0]} to {own[-1]}" if name == patient else patient
        if name != patient:
            table.add(of, model, {f"{name}, another patient": tumour[name]}, kind="like")
        wrong = {f"{name}, {how}": each for how, each in rescaled(slides[0][name], views)}
        table.add(of, model, wrong, kind="changed")
    for name, other in zip(brain, reversed(brain), strict=True):
        table.add(name, [brain[name]], {other: brain[other]}, kind="like")
        table.add(name, [brain[name]], {**tumour, **third}, kind="organ")
    if brain:
        *_, (first, _), (second, slide) = slides[1].items()
        found = {f"{second}, {name}": each for name, each in changed(slide, views, brain[second].mean)}
        table.add(first, [brain[first]], found, kind="changed")
    print(table.told())


if __name__ == "__main__":
    main()
