"""How well every gene can be predicted, from predictions of spots that were held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from agl_sc.core.arrays import BoolArray, FloatArray, IntArray
from agl_sc.core.evaluation.lattice import Lattice
from agl_sc.core.evaluation.metrics import pearson
from agl_sc.core.evaluation.noise_ceiling import RawCounts, noise_ceilings
from agl_sc.core.evaluation.shift_test import combined_p_values, false_discovery_rate, shift_z_p_values

FEWEST_SPOTS = 10
"""Of a section that a correlation is taken over."""
COLUMNS = ("pearson", "n_spots", "n_sections", "noise_ceiling", "pearson_of_ceiling", "q_value")
"""Of a table of scores."""


@dataclass(frozen=True, slots=True, eq=False)
class GeneScores:
    """Scores of genes in sections, filled block by block of genes."""

    rows: list[IntArray]
    """Spots of every section that were held out, each (n_spots,)."""
    lattices: list[Lattice | None]
    """Lattice of these spots, where they lie on one."""
    pearson: FloatArray
    """(n_sections, n_genes), NaN where undefined."""
    p_value: FloatArray
    """Of Pearson > 0, (n_sections, n_genes), NaN without positions."""
    ceiling: FloatArray
    """Noise ceiling of Pearson, (n_sections, n_genes)."""

    @classmethod
    def empty(
        cls, sections: IntArray, held: BoolArray, *, n_genes: int, lattices: Mapping[int, Lattice]
    ) -> "GeneScores":
        """Nothing scored yet.

        Parameters
        ----------
        sections
            Section of every spot, (n_spots,).
        held
            Spots that were held out, (n_spots,).
        n_genes
            Number of genes.
        lattices
            Lattice of all spots of a section, by its code.
        """
        codes = [code for code in np.unique(sections) if (held & (sections == code)).sum() >= FEWEST_SPOTS]
        rows = [np.flatnonzero(held & (sections == code)) for code in codes]
        placed = [lattices[code].take(held[sections == code]) if code in lattices else None for code in map(int, codes)]
        values = [np.full((len(rows), n_genes), np.nan) for _ in range(3)]
        return cls(rows, placed, *values)

    def add(self, genes: slice, measured: FloatArray, predicted: FloatArray) -> None:
        """Score a block of genes, from measured and predicted expression of all spots, (n_spots, n) each."""
        for number, (rows, lattice) in enumerate(zip(self.rows, self.lattices, strict=True)):
            pair = measured[rows], predicted[rows]
            self.pearson[number, genes] = pearson(*pair)
            if lattice is not None:
                known = lattice.known
                self.p_value[number, genes] = shift_z_p_values(pair[0][known], pair[1][known], lattice.take(known))

    def add_ceilings(self, counts: RawCounts, *, seed: int) -> None:
        """Noise ceiling of all genes in every section, from the counts of all spots."""
        for number, rows in enumerate(self.rows):
            part = RawCounts(counts.values[rows], counts.library[rows], counts.normalize)
            self.ceiling[number] = noise_ceilings(part, rng=np.random.default_rng(seed))

    def table(self, genes: Sequence[str]) -> pd.DataFrame:
        """A row per gene: means over the sections where they are defined, and the number of these."""
        defined = np.isfinite(self.pearson)
        n_sections = defined.sum(axis=0)
        sizes = np.array([len(rows) for rows in self.rows], dtype=np.int64)
        score, ceiling = _mean(self.pearson, defined), _mean(self.ceiling, defined & np.isfinite(self.ceiling))
        both = defined & np.isfinite(self.ceiling)
        share = _mean(self.pearson, both) / _mean(self.ceiling, both)
        q_value = false_discovery_rate(combined_p_values(self.p_value))
        columns = (score, sizes @ defined, n_sections, ceiling, share, q_value)
        table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), index=pd.Index(genes, name="gene"))
        return table.astype({"n_spots": np.int64, "n_sections": np.int64})


def _mean(values: FloatArray, defined: BoolArray) -> FloatArray:
    """Mean over sections of the values that are defined, (n_genes,); NaN where none is."""
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    mean: FloatArray = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean
