"""What some measured spots of a section are worth: tl.adapt against the model as it is, and against the measured spots interpolated.

    python benchmarks/adapt.py ../shared/data her2st        # B4 (another patient) and C6 from the other sections
    python benchmarks/adapt.py ../shared/data mousebrain    # A1 from B1 and back, hires image

Every row is over --draws random choices of the measured spots; scores are over the spots of the section that were not chosen, the same for
all columns: mean Pearson of the 50 targets, and mean squared error over the mean square of the model as it is. "interpolated" is the mean of
the measured spots weighted by exp(-distance / 200 um), which needs no image; "mean" is the mean of the measured spots alone.
"""

import argparse
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from real import TILES, sections_of  # type: ignore[import-not-found]  # beside this file
from scipy.spatial.distance import cdist

import agl_sc
from agl_sc._sdata.study import Study
from agl_sc.core.evaluation.metrics import pearson
from agl_sc.core.spots.genes import normalize_counts

TARGETS = {"her2st": ["B4", "C6"], "mousebrain": ["A1", "B1"]}
NUMBERS = {"her2st": (5, 10, 20, 50), "mousebrain": (5, 10, 20, 50, 125, 250)}
DECAY_UM = 200.0


def interpolated(places: Any, values: Any, chosen: Any) -> Any:
    """Mean of the chosen spots' values weighted by how near they lie, (n_spots, n_genes)."""
    weights = np.exp(-cdist(places, places[chosen]) / DECAY_UM) + 1e-12
    return weights @ values[chosen] / weights.sum(axis=1, keepdims=True)


def scores(measured: Any, predicted: Any, rows: Any) -> tuple[float, float]:
    """Mean Pearson, and mean squared error over the mean variance of the genes."""
    error = ((measured[rows] - predicted[rows]) ** 2).mean(axis=0) / measured[rows].var(axis=0)
    return float(np.nanmean(pearson(measured[rows], predicted[rows]))), float(np.mean(error))


def draws_of(sdata: Any, model: Any, section: str, *, numbers: Any, n_draws: int) -> list[dict[str, Any]]:
    """A row per number of measured spots and draw."""
    study = Study.of(sdata)
    (region,) = [each for each in study.positioned if each.name == section]
    places = np.full((study.table.n_obs, 2), np.nan)
    places[region.rows] = region.centres * region.mpp()
    counts = study.counts
    columns = study.table.var_names.get_indexer(model.targets)
    measured = np.asarray(normalize_counts(counts, study.normalize)[:, columns].toarray(), dtype=float)
    features, reference = study.table.obsm["agl_features"], study.table.uns["agl"]["reference"]["means"]
    names = study.table.obs[study.table.uns["spatialdata_attrs"]["region_key"]].to_numpy(dtype=str)

    def predicted_by(of: Any) -> Any:
        values = np.full((study.table.n_obs, of.n_predicted), np.nan)
        values[region.rows] = of.predict(features[region.rows], names[region.rows], reference)
        return values[:, [of.predicted_genes.index(gene) for gene in model.targets]]

    plain = predicted_by(model)
    library = np.asarray(counts[region.rows].sum(axis=1)).ravel()
    usable = region.rows[np.isfinite(plain[region.rows]).all(axis=1) & (library > 0)]
    split, fitted = study.table.obs["agl_split"].copy(), dict(study.table.uns["agl"])
    rows = []
    for number in numbers:
        for draw in range(n_draws):
            chosen = np.random.default_rng(draw).choice(usable, number, replace=False)
            mask = np.isin(np.arange(study.table.n_obs), chosen)
            clock = time.perf_counter()
            adapted = agl_sc.tl.adapt(sdata, model, mask)
            seconds = time.perf_counter() - clock
            study.table.obs["agl_split"], study.table.uns["agl"] = split.copy(), dict(fitted)
            rest = np.setdiff1d(usable, chosen)
            found = {
                "model": plain,
                "adapted": predicted_by(adapted),
                "interpolated": interpolated(places, measured, chosen),
                "mean": np.broadcast_to(measured[chosen].mean(axis=0), measured.shape),
            }
            row: dict[str, Any] = {"section": section, "spots": number, "seconds": seconds}
            for name, values in found.items():
                r, error = scores(measured, values, rest)
                row |= {f"r {name}": r, f"error {name}": error}
            said = adapted.card["adapted"]
            rows.append({**row, **{part: said[part] is not None for part in ("shift", "slope", "residual")}})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("design", choices=list(TARGETS))
    parser.add_argument("--draws", type=int, default=10)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.simplefilter("ignore")
    sdata = sections_of(arguments.data, "mousebrain" if arguments.design == "mousebrain" else "sections")
    agl_sc.pp.embed(sdata, **TILES.get(arguments.design, {}))
    found = []
    for section in TARGETS[arguments.design]:
        others = sorted(set(sdata["table"].obs["section"]) - {section})
        by: Any = (
            {"test": [section], "validation": others[-1:]} if len(others) > 1 else {"test": [section], "validation": []}
        )
        if len(others) > 1:
            agl_sc.pp.split(sdata, **by)
        else:
            agl_sc.pp.split(sdata, assignments={section: "test", others[0]: "train"})
            is_held = (sdata["table"].obs["section"] == others[0]) & (
                np.random.default_rng(0).random(sdata["table"].n_obs) < 0.2
            )
            sdata["table"].obs.loc[is_held, "agl_split"] = "validation"
            del sdata["table"].uns["agl"]["split"]
        agl_sc.pp.target_genes(sdata)
        agl_sc.pp.rank_auxiliary(sdata, score="mean")
        model = agl_sc.tl.train(sdata, method="pgl")
        found += draws_of(sdata, model, section, numbers=NUMBERS[arguments.design], n_draws=arguments.draws)
        table = pd.DataFrame(found).groupby(["section", "spots"], sort=False).mean()
        print(table.to_markdown(floatfmt=".3f"), flush=True)


if __name__ == "__main__":
    main()
