"""Scores of every gene on spots that are held out, in folds that share nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse

from agl_sc._sdata.study import Study
from agl_sc.core.arrays import BoolArray, FloatArray, IntArray, StrArray
from agl_sc.core.evaluation.gene_scores import GeneScores
from agl_sc.core.evaluation.held_out import HeldOutFold, Samples, held_out_predictions
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.noise_ceiling import RawCounts
from agl_sc.core.progress import Progress
from agl_sc.core.spots.genes import normalize_counts
from agl_sc.core.spots.thinned import thinned
from agl_sc.pp._genes.targets_and_ranks import positions_of
from agl_sc.pp._splits.blocks import locate
from agl_sc.pp._splits.units import ASSUMED_KEY, ATTRS_KEY, deal, patient_of

HeldOutBy = Literal["patient", "section", "block"]

FEWEST_PATIENTS = 3
"""Of whom all but one still train a model like that of all."""
MOST_HELD = 2**16
"""More spots than this are not held out: the cost would grow with the spots, and scores would hardly change."""
_MOST_FOLDS = 10
_BLOCK_FOLDS = 5
_BLOCK_UM, _BUFFER_UM = 500.0, 150.0
_FEWEST_FIT = 20
"""Spots that are left to fit on in every fold."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Spots of a table, each held out once."""

    rows: IntArray
    """Of the table, (n_spots,)."""
    by: HeldOutBy
    """What is held out."""
    units: StrArray
    """What every spot is held out with: its patient, its section, or the number of its fold, (n_spots,)."""
    folds: list[HeldOutFold]
    """Positions in ``rows``."""
    sections: StrArray
    """Section of every spot, (n_spots,)."""

    @property
    def names(self) -> list[str]:
        """Sections, in the order of their codes."""
        return sorted(set(self.sections.tolist()))

    @property
    def codes(self) -> IntArray:
        """Code of the section of every spot, (n_spots,)."""
        return np.unique(self.sections, return_inverse=True)[1].astype(np.int64)

    @property
    def words(self) -> str:
        """How scores came about."""
        n_units = len(set(self.units.tolist()))
        if self.by == "block":
            return f"blocks of {', '.join(self.names)}, each predicted from the others"
        return f"{n_units} {self.by}s, each predicted from the others"


def held_out_of(study: Study, usable: BoolArray, *, by: HeldOutBy | None = None) -> HeldOut:
    """Divide spots into folds: by patient where there are three, else by section where there are two, else by block.

    Of more than 65,536 spots about as many, of every section the same share: a correlation over thousands of spots is known well enough.

    Parameters
    ----------
    study
        Where they are.
    usable
        Spots with features and counts, (n_obs,).
    by
        What is held out; the coarsest that the spots allow if None.

    Raises
    ------
    ValueError
        There are fewer than two of what is to be held out, or too few spots.
    """
    rows = np.flatnonzero(usable)
    rows = rows[thinned(np.unique(study.section_names[rows], return_inverse=True)[1], MOST_HELD)]
    sections = study.section_names[rows]
    by = by or _coarsest(study, rows)
    if by == "block":
        units, folds = _blocks(study, rows)
    else:
        units = patient_of(study.table)[rows] if by == "patient" else sections
        names = sorted(set(units.tolist()))
        if len(names) < 2:
            mend = "by='section' or by='block'" if by == "patient" else "by='block'"
            msg = f"by={by!r} holds out whole {by}s, and there is only one ({', '.join(names)}); divide {mend}."
            raise ValueError(msg)
        generator, n_folds = np.random.default_rng(0), min(len(names), _MOST_FOLDS)
        number = deal(units, np.zeros(len(units), dtype=str), n_folds=n_folds, generator=generator)
        folds = [HeldOutFold(np.flatnonzero(number != each), np.flatnonzero(number == each)) for each in range(n_folds)]
    fewest = min(len(fold.fit) for fold in folds)
    if fewest < _FEWEST_FIT:
        msg = f"Only {fewest} of {len(rows)} spots with features and counts are left to fit on in a fold, fewer than {_FEWEST_FIT}; add spots or sections."
        raise ValueError(msg)
    return HeldOut(rows, by, units, folds, sections)


def _coarsest(study: Study, rows: IntArray) -> HeldOutBy:
    table = study.table
    assumed = study.sdata.attrs.get(ATTRS_KEY, {}).get(ASSUMED_KEY)
    if "patient" in table.obs and not assumed:
        patients = table.obs["patient"].iloc[rows]
        if patients.notna().all() and patients.nunique() >= FEWEST_PATIENTS:
            return "patient"
    return "section" if len(set(study.section_names[rows].tolist())) > 1 else "block"


def _blocks(study: Study, rows: IntArray) -> tuple[StrArray, list[HeldOutFold]]:
    """Five folds of spatial blocks, those near to what is held out left out of the fit."""
    places = locate(study)
    within = np.zeros(study.table.n_obs, dtype=bool)
    within[rows] = places.known[rows]
    blocks = places.blocks(_BLOCK_UM)
    n_folds = min(_BLOCK_FOLDS, len(set(blocks[within].tolist())))
    if n_folds < 2:
        msg = f"The spots lie within one block of {_BLOCK_UM:g} um, so none can be held out; add spots or sections."
        raise ValueError(msg)
    fold_of = np.full(study.table.n_obs, -1)
    fold_of[within] = deal(blocks[within], places.sections[within], n_folds=n_folds, generator=np.random.default_rng(0))
    folds = []
    for number in range(n_folds):
        assigned = np.where(fold_of == number, "test", np.where(within, "train", "unused"))
        assigned = places.with_buffer(assigned, _BUFFER_UM)[rows]
        folds.append(HeldOutFold(np.flatnonzero(assigned == "train"), np.flatnonzero(assigned == "test")))
    return fold_of[rows].astype(str), folds


def samples_of(study: Study, spots: HeldOut, columns: IntArray) -> tuple[Samples, RawCounts]:
    """Features and expression of the spots, and counts of the genes ``columns``."""
    counts = study.counts[spots.rows]
    normalize = partial(normalize_counts, normalize=study.normalize)
    library = np.asarray(counts.sum(axis=1), dtype=float).ravel()
    features = np.asarray(study.table.obsm[study.keys.features])[spots.rows]
    expression = scipy.sparse.csr_matrix(normalize(counts)[:, columns])
    raw = RawCounts(scipy.sparse.csr_matrix(counts[:, columns]), library, normalize)
    return Samples(features, expression, library, spots.codes), raw


Blocks = Callable[[slice, FloatArray, FloatArray], None]
"""Takes consecutive genes, with what was measured and predicted of them."""


def score_genes(
    study: Study,
    spots: HeldOut,
    columns: IntArray,
    *,
    lattices: Mapping[str, Lattice],
    seed: int,
    also: Blocks | None = None,
) -> pd.DataFrame:
    """A row per gene with the columns of :data:`agl_sc.core.evaluation.gene_scores.COLUMNS`.

    Parameters
    ----------
    study
        With features and counts.
    spots
        Spots in folds.
    columns
        Genes of the table.
    lattices
        Lattice of all spots of every section of the table that lies on one.
    seed
        Of the count splitting behind the noise ceiling.
    also
        Takes the same predictions, block by block.
    """
    samples, counts = samples_of(study, spots, columns)
    scores = empty_scores(study, spots, n_genes=len(columns), lattices=lattices)
    with Progress[int](total=len(columns), desc="held-out scores", unit="gene") as bar:
        for genes, measured, predicted in held_out_predictions(samples, spots.folds):
            scores.add(genes, measured, predicted)
            if also is not None:
                also(genes, measured, predicted)
            bar.update(measured.shape[1])
    scores.add_ceilings(counts, seed=seed)
    return scores.table([str(name) for name in study.table.var_names[columns]])


def lattices_in(study: Study) -> dict[str, Lattice]:
    """Lattice of all spots of every section that lies on one; none where positions are unknown."""
    try:
        centres, _ = positions_of(study)
    except (KeyError, ValueError):
        return {}
    names = study.section_names
    found = {name: Lattice.fitted(centres[names == name]) for name in sorted(set(names))}
    return {name: lattice for name, lattice in found.items() if lattice is not None}


def empty_scores(study: Study, spots: HeldOut, *, n_genes: int, lattices: Mapping[str, Lattice]) -> GeneScores:
    """Scores to be filled."""
    held = np.zeros(len(spots.rows), dtype=bool)
    for fold in spots.folds:
        held[fold.held] = True
    placed = {}
    for code, name in enumerate(spots.names):
        if name in lattices:
            inside = np.flatnonzero(study.section_names == name)
            placed[code] = lattices[name].take(np.isin(inside, spots.rows))
    return GeneScores.empty(spots.codes, held, n_genes=n_genes, lattices=placed)
