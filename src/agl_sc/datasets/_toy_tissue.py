"""Data to learn and to test with."""

import logging
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from spatialdata import SpatialData

from agl_sc.datasets._hest1k import hest1k
from agl_sc.datasets._toy_counts import ROLES, GeneLaw, draw_counts, draw_law
from agl_sc.datasets._toy_image import (
    FIELD_SCALE_PX,
    IMAGE_MPP,
    SPOT_RADIUS_PX,
    VISIBLE_FIELDS,
    ToySection,
    draw_section,
)
from agl_sc.io._layout import TABLE_KEY, SectionData, assemble

__all__ = ["hest1k", "toy_tissue"]

_MIN_SPOTS_PER_SIDE = 6
_MAX_SHIFT = 2.0
_IMAGE_STREAM, _COUNT_STREAM = 0, 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Look:
    """How plainly the tissue shows."""

    depth: float = 1.0
    """Factor on all library sizes."""
    noise: float = 1.0
    """Factor on what nothing explains of a gene."""
    field_px: float = FIELD_SCALE_PX
    """Scale on which the tissue changes, in pixels."""


def toy_tissue(
    *,
    n_sections: int = 2,
    n_spots_per_side: int = 21,
    n_targets: int = 20,
    n_informative: int = 80,
    n_auxiliary: int = 380,
    stain_shift: float = 0.0,
    depth_shift: float = 0.0,
    seed: int = 0,
) -> SpatialData:
    r"""Synthetic H&E sections with spots, counts and a planted answer.

    Five smooth tissue fields are drawn as morphology: epithelium, lymphocytes, collagen, adipose and haemorrhage; a sixth
    leaves no trace in the image. The log of a gene's expected expression is a sum of terms, plus noise; counts are
    negative-binomial, with library sizes. Genes differ in what drives them:

    =========== ============================================ =================
    role        driven by                                    noise
    =========== ============================================ =================
    target      epithelium, lymphocytes, collagen, products  much
    informative epithelium, lymphocytes, collagen, products  some
    distractor  adipose, haemorrhage, waves of the two       little
    invisible   the sixth field, its square                  little
    noise       nothing                                      all of it
    =========== ============================================ =================

    So informative genes, each noisy too but many, tell a shared trunk what to look for, and the others compete for its
    width: distractors vary in many ways, all visible. Targets alone are too noisy to tell, the more so the fewer spots
    there are to train on. The same genes follow the same law in every section; each section is another random piece of
    tissue.

    Parameters
    ----------
    n_sections
        Number of sections, ``section_1``, ..., each of its own patient, ``patient_1``, ...
    n_spots_per_side
        Columns of the hexagonal Visium grid (pitch 100 um, spot diameter 55 um); about nine tenths of the grid lie on
        tissue. The image has 1 um per pixel and about 100 pixels a side for each column.
    n_targets
        Number of target genes, the most variable ones by design.
    n_informative
        Number of auxiliary genes that help: the planted boundary k*.
    n_auxiliary
        Number of all auxiliary genes; those that are not informative are distractors, invisible and noise, a third each.
    stain_shift
        Log factor on haematoxylin, the inverse on eosin, from minus this in the first section to plus this in the last.
    depth_shift
        Log factor on library sizes, from minus this in the first section to plus this in the last.
    seed
        Same seed, same bytes. Sections are drawn independently: more sections leave the fields of the first ones as they are.

    Returns
    -------
    SpatialData with image ``section_1_image`` and spots ``section_1`` per section, and one ``table`` of raw counts, whose

    - ``uns["truth"]`` holds ``targets``, ``informative``, ``distractor``, ``invisible``, ``noise`` (gene names, best first),
      ``fields`` (names of the visible fields), ``k_star`` and ``cutoff_star`` (k* and where it lies on the rank axis [0, 1]);
    - ``var["truth_role"]`` and ``var["truth_prior"]`` hold every gene's role and a prior score that puts the informative
      genes first, then distractors, invisible and noise (NaN for targets), for ``rank_auxiliary(score="truth_prior")``;
    - ``obs["truth_field_0"]`` to ``obs["truth_field_4"]`` and ``obs["truth_invisible"]`` hold the fields at the spots,
      within each section of mean 0, variance 1 and uncorrelated.

    Raises
    ------
    TypeError
        A number is not a number, or a count is not whole.
    ValueError
        A number is out of range.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=1, n_spots_per_side=6)
    >>> sdata["table"].uns["truth"]["k_star"]
    80
    """
    _check_count("n_sections", n_sections, minimum=1)
    _check_count("n_spots_per_side", n_spots_per_side, minimum=_MIN_SPOTS_PER_SIDE)
    _check_count("n_targets", n_targets, minimum=1)
    _check_count("n_auxiliary", n_auxiliary, minimum=0)
    _check_count("n_informative", n_informative, minimum=0, maximum=n_auxiliary, limit=" (n_auxiliary)")
    _check_count("seed", seed, minimum=0)
    _check_shift("stain_shift", stain_shift)
    _check_shift("depth_shift", depth_shift)
    sizes = _role_sizes(n_targets, n_informative, n_auxiliary)
    return drawn_tissue(
        n_sections, n_spots_per_side, sizes, stain_shift=stain_shift, depth_shift=depth_shift, seed=seed
    )


def drawn_tissue(
    n_sections: int,
    n_spots_per_side: int,
    sizes: dict[str, int],
    *,
    stain_shift: float = 0.0,
    depth_shift: float = 0.0,
    look: Look | None = None,
    seed: int = 0,
) -> SpatialData:
    """As :func:`toy_tissue`, of genes counted by role, and of another look."""
    look = look or Look()
    law = draw_law(np.random.default_rng([seed, 0]), sizes, len(VISIBLE_FIELDS))
    genes = _gene_names(len(law.role))
    tissues, sections = [], []
    for number, offset in enumerate(_offsets(n_sections), start=1):
        image_rng, count_rng = (
            np.random.default_rng([seed, number, stream]) for stream in (_IMAGE_STREAM, _COUNT_STREAM)
        )
        tissue = draw_section(image_rng, n_spots_per_side, stain_offset=offset * stain_shift, field_px=look.field_px)
        counts = draw_counts(
            count_rng,
            law,
            visible=tissue.fields,
            invisible=tissue.invisible,
            depth_offset=np.log(look.depth) + offset * depth_shift,
            noise=look.noise,
        )
        tissues.append(tissue)
        sections.append(
            SectionData(
                name=f"section_{number}",
                image=tissue.image,
                counts=counts,
                genes=genes,
                spots=[f"spot_{spot}" for spot in range(len(tissue.centres))],
                centres_px=tissue.centres,
                radius_px=SPOT_RADIUS_PX,
                patient=f"patient_{number}",
                image_mpp=IMAGE_MPP,
                technology="visium",
            )
        )
    sdata = assemble(sections)
    _write_truth(sdata.tables[TABLE_KEY], law, tissues)
    logger.info("Drew %d sections with %d spots and %d genes.", n_sections, *sdata.tables[TABLE_KEY].shape)
    return sdata


def _check_count(name: str, value: Any, *, minimum: int, maximum: int | None = None, limit: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        msg = f"{name}={value!r} is not a whole number; give an int of at least {minimum}."
        raise TypeError(msg)
    number = int(value)
    if number < minimum or (maximum is not None and number > maximum):
        legal = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}{limit}"
        msg = f"{name}={value} is out of range; it must be {legal}."
        raise ValueError(msg)


def _check_shift(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        msg = f"{name}={value!r} is not a number; give a float between -{_MAX_SHIFT:g} and {_MAX_SHIFT:g}."
        raise TypeError(msg)
    if not abs(float(value)) <= _MAX_SHIFT:
        msg = f"{name}={value} is out of range; it must be between -{_MAX_SHIFT:g} and {_MAX_SHIFT:g}."
        raise ValueError(msg)


def _role_sizes(n_targets: int, n_informative: int, n_auxiliary: int) -> dict[str, int]:
    third, rest = divmod(n_auxiliary - n_informative, 3)
    sizes = (n_targets, n_informative, third + (rest > 0), third + (rest > 1), third)
    return dict(zip(ROLES, sizes, strict=True))


def _gene_names(n_genes: int) -> list[str]:
    width = max(4, len(str(n_genes)))
    return [f"G{number:0{width}d}" for number in range(1, n_genes + 1)]


def _offsets(n_sections: int) -> NDArray[np.float64]:
    """Positions of the sections from -1 to 1; a single one is in the middle."""
    return np.linspace(-1.0, 1.0, n_sections) if n_sections > 1 else np.zeros(1)


def _write_truth(table: AnnData, law: GeneLaw, tissues: list[ToySection]) -> None:
    n_targets, n_informative = (int((law.role == ROLES.index(name)).sum()) for name in ("target", "informative"))
    n_auxiliary = len(law.role) - n_targets
    best_first = np.argsort(law.role, kind="stable")
    prior = np.full(len(law.role), np.nan)
    prior[best_first[n_targets:]] = np.linspace(1.0, 0.0, n_auxiliary)
    table.var["truth_role"] = pd.Categorical(np.array(ROLES)[law.role], categories=list(ROLES))
    table.var["truth_prior"] = prior

    names = table.var_names.to_numpy(dtype=str)[best_first]
    by_role = {name: names[law.role[best_first] == index] for index, name in enumerate(ROLES)}
    boundary = (n_informative - 0.5) / max(n_auxiliary - 1, 1)
    table.uns["truth"] = {
        "targets": by_role.pop("target"),
        **by_role,
        "fields": np.array(VISIBLE_FIELDS),
        "k_star": n_informative,
        "cutoff_star": float(np.clip(boundary, 0.0, 1.0)),
    }
    for index, field in enumerate(np.concatenate([tissue.fields for tissue in tissues]).T):
        table.obs[f"truth_field_{index}"] = field
    table.obs["truth_invisible"] = np.concatenate([tissue.invisible for tissue in tissues])
