"""How often intervals hold on sections that were held out: tl.predict(interval=) and tl.evaluate, as a user runs them.

    python benchmarks/intervals.py ../shared/data her2st        # every section from the others, B4 from another patient's, patients named
    python benchmarks/intervals.py ../shared/data mousebrain    # A1 from B1 and back, hires image, one animal or two unknown

Every row is one model, one section and one level: what is promised, and the share of spots covered, mean over the 50 targets with
the 5th and 95th percentile of genes; or the reason for the refusal. With --measured the model is adapted to so many random spots of
the section before, over --draws draws.
"""

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from real import TILES, sections_of  # type: ignore[import-not-found]  # beside this file

import agl_sc

LEVELS = (0.8, 0.9)
MEASURED = {"her2st": (10, 20, 50), "mousebrain": (10, 20, 50, 125, 250)}


def covered(sdata: Any, model: Any, section: str, *, level: float) -> dict[str, Any]:
    """A row of the table."""
    try:
        agl_sc.tl.predict(sdata, model, interval=level)
    except ValueError as error:
        return {"level": level, "promise": "refused", "reason": str(error).split(". ", 1)[1]}
    said = sdata["table"].uns["agl"]["interval"]
    if section not in said["sections"]:
        return {"level": level, "promise": "refused", "reason": said["refused"][section]}
    share = agl_sc.tl.evaluate(sdata, metrics=["coverage"], sections=section)["coverage"]
    low, high = np.nanquantile(share, [0.05, 0.95])
    return {
        "level": level, "promise": said["sections"][section]["kind"], "covered": share.mean(), "gene q05": low,
        "gene q95": high,
    }  # fmt: skip


def trained_without(sdata: Any, section: str, others: list[str]) -> Any:
    """A model of some sections, that a test section is predicted by."""
    rows = np.isin(sdata["table"].obs["section"], [section, *others])
    own = sdata.subset([*sdata.images, *sdata.shapes])
    own["table"] = sdata["table"][rows].copy()
    if len(others) > 1:
        agl_sc.pp.split(own, test=[section], validation=others[-1:])
    else:
        table, rng = own["table"], np.random.default_rng(0)
        sets = np.where(
            table.obs["section"] == section, "test", np.where(rng.random(table.n_obs) < 0.2, "validation", "train")
        )
        table.obs["agl_split"] = pd.Categorical(sets)
    agl_sc.pp.target_genes(own)
    agl_sc.pp.rank_auxiliary(own, score="mean")
    return own, agl_sc.tl.train(own, method="pgl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("design", choices=["her2st", "mousebrain"])
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    warnings.simplefilter("ignore")
    is_brain = arguments.design == "mousebrain"
    sdata = sections_of(arguments.data, "mousebrain" if is_brain else "sections")
    if is_brain:
        sdata["table"].obs["patient"] = "mouse"
    agl_sc.pp.embed(sdata, context=(), orientations=1, **TILES.get(arguments.design, {}))
    names = sorted(set(sdata["table"].obs["section"]))
    designs = [(name, [other for other in names if other != name]) for name in names]
    rows: list[dict[str, Any]] = []
    for section, others in designs:
        own, model = trained_without(sdata, section, others)
        of = {"section": section, "trained on": " ".join(others)}
        before, said = own["table"].obs["agl_split"].copy(), dict(own["table"].uns["agl"])
        rows += [{**of, "measured": 0, **covered(own, model, section, level=level)} for level in LEVELS]
        inside = np.flatnonzero(own["table"].obs["section"] == section)
        for number in MEASURED[arguments.design]:
            for draw in range(arguments.draws):
                own["table"].obs["agl_split"], own["table"].uns["agl"] = before.copy(), dict(said)
                chosen = np.random.default_rng(draw).choice(inside, number, replace=False)
                adapted = agl_sc.tl.adapt(own, model, np.isin(np.arange(own["table"].n_obs), chosen))
                rows.append({**of, "measured": number, **covered(own, adapted, section, level=0.9)})
        table = pd.DataFrame(rows)
        print(
            table[table["section"] == section]
            .groupby(["section", "trained on", "measured", "level", "promise"], sort=False)
            .mean(numeric_only=True)
            .reset_index()
            .to_markdown(index=False, floatfmt=".2f"),
            flush=True,
        )
    refused = pd.DataFrame(rows).query("promise == 'refused'")
    for _, row in refused.drop_duplicates(["section", "trained on", "level"]).iterrows():
        print(f"{row['section']} at {row['level']:g}: {row['reason']}")


if __name__ == "__main__":
    main()
