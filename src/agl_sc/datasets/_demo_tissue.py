"""Tissue for a first look: wide structures, deep counts, genes that are named by what they follow."""

import numpy as np
from spatialdata import SpatialData

from agl_sc.datasets._toy_image import VISIBLE_FIELDS
from agl_sc.datasets._toy_tissue import Look, drawn_tissue
from agl_sc.io._layout import TABLE_KEY

LOOK = Look(depth=3.0, noise=0.3, field_px=150.0)
_SIZES = {"target": 30, "informative": 80, "distractor": 100, "invisible": 100, "noise": 100}
_PREFIXES = dict(zip(VISIBLE_FIELDS, ("EPI", "LYM", "COL", "ADI", "HEM"), strict=True))
_LEAST = 0.3
"""Correlation with a tissue field from which on a gene is named by it."""


def demo_tissue(*, n_sections: int = 3, n_spots_per_side: int = 17, seed: int = 0) -> SpatialData:
    """Synthetic sections in which structure is easy to see; genes that follow no visible field are named GEN."""
    sdata = drawn_tissue(n_sections, n_spots_per_side, _SIZES, look=LOOK, seed=seed)
    table = sdata.tables[TABLE_KEY]
    counts = np.asarray(table.X.toarray(), dtype=np.float64)
    scaled = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    fields = table.obs[[f"truth_field_{i}" for i in range(len(VISIBLE_FIELDS))]].to_numpy()
    correlation = np.corrcoef(scaled.T, fields.T)[: table.n_vars, table.n_vars :]
    best, named = correlation.argmax(axis=1), correlation.max(axis=1) >= _LEAST
    prefixes = [
        _PREFIXES[VISIBLE_FIELDS[field]] if is_named else "GEN" for field, is_named in zip(best, named, strict=True)
    ]
    numbers = dict.fromkeys(prefixes, 0)
    names = {}
    for old, prefix in zip(table.var_names, prefixes, strict=True):
        numbers[prefix] += 1
        names[old] = f"{prefix}{numbers[prefix]}"
    table.var_names = [names[old] for old in table.var_names]
    truth = table.uns["truth"]
    for role in _SIZES:
        key = "targets" if role == "target" else role
        truth[key] = np.array([names[old] for old in truth[key]])
    return sdata
