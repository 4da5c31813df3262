"""What a cross-validation depended on, as plain values."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agl_sc._sdata.records import SplitRecord, remembered
from agl_sc._sdata.study import Study
from agl_sc._sdata.table import section_of
from agl_sc.pp._features.made_from import made_by_embed
from agl_sc.pp._splits.folds import Fold, FoldPlan
from agl_sc.pp._splits.manifest import hash_of
from agl_sc.pp._splits.units import SETS
from agl_sc.tl._benchmark.request import Request
from agl_sc.tl._benchmark.runs import Runs
from agl_sc.tl._model.train import PACKAGES

if TYPE_CHECKING:
    from anndata import AnnData


def provenance_of(study: Study, folds: Sequence[Fold], request: Request) -> dict[str, Any]:
    """Plain values that say what was run."""
    codes = np.array([pd.Categorical(fold.assigned, categories=list(SETS)).codes for fold in folds])
    manifest = remembered(study.table, study.keys, SplitRecord)
    in_place = request.plan is None and request.own_folds is None and manifest is not None
    plan = manifest.settings if in_place and manifest is not None else asdict(request.plan or FoldPlan())
    return {
        **{name: plan[name] for name in ("by", "validation", "block_um", "buffer_um")},
        **({} if request.own_folds is None else {"by": "own"}),
        "n_folds": len(folds),
        "hash": hash_of(study.table, fold_of(folds, [str(fold.number) for fold in folds]), codes),
        "folds": [fold.name for fold in folds],
        "methods": request.methods,
        "predictions": request.written,
        "seeds": list(range(request.seed, request.seed + request.n_seeds)),
        **request.protocol.plain(),
        "versions": versions(),
    }


def whole_provenance(
    study: Study, request: Request, runs: Runs, *, folds: dict[str, Any], shared: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the numbers depend on, as JSON values in an order that no file changes."""
    table = study.table
    known = {gene for outcome in runs.values() for gene in outcome.genes}
    n_updates = {
        name: float(np.mean([run.n_updates for (_, own, _), run in runs.items() if own == name]))
        for name in request.methods
    }
    whole = {
        "data": {
            "n_spots": pd.Series(study.section_names).value_counts().sort_index().to_dict(),
            **({"n_patients": table.obs["patient"].nunique()} if "patient" in table.obs else {}),
            "n_genes": table.n_vars,
            "targets": [name for name in table.var_names if name in known],
            "targets_named": not isinstance(request.protocol.genes, int | np.integer),
            **shared,
        },
        **folds,
        "features": made_by_embed(study).plain(),
        "n_updates": n_updates,
    }
    plain: dict[str, Any] = json.loads(json.dumps(whole, default=str, sort_keys=True))
    return plain


def patients_of(table: "AnnData") -> dict[str, str]:
    """Patient of every section whose spots have one and the same; empty where the table names none."""
    if "patient" not in table.obs:
        return {}
    pairs = set(zip(section_of(table), table.obs["patient"].astype(str), strict=True))
    names = [section for section, _ in pairs]
    return {section: patient for section, patient in pairs if names.count(section) == 1}


def fold_of(folds: Sequence[Fold], names: Sequence[str]) -> NDArray[Any]:
    """The name of the fold that every spot is test in, or unused, (n_obs,)."""
    tests = np.array([fold.assigned == "test" for fold in folds])
    return np.where(tests.any(axis=0), np.array(names)[tests.argmax(axis=0)], "unused")


def versions() -> dict[str, str]:
    """Versions of all packages that the numbers depend on."""
    return {name: version(name) for name in sorted((*PACKAGES, "scikit-learn", "scipy"))}
