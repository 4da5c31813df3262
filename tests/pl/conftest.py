"""Two small sections with a prediction, and a trained model, for the figures."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from matplotlib import pyplot as plt
from spatialdata import SpatialData

from agl_sc.io._layout import SectionData, assemble

if TYPE_CHECKING:
    from agl_sc.model import Model

GENES = ["ERBB2", "KRT8", "CD74", "IGKC", "ACTB"]
N_SPOTS = {"C2": 30, "C6": 24}


@pytest.fixture(autouse=True)
def _quiet_figures() -> Iterator[None]:
    """No window, and no figure left open."""
    mpl.use("Agg")
    yield
    plt.close("all")


def _section(name: str, n_spots: int, seed: int) -> SectionData:
    rng = np.random.default_rng(seed)
    columns, rows = np.divmod(np.arange(n_spots), 6)
    return SectionData(
        name=name,
        image=rng.integers(0, 256, (3, 200, 180 + 20 * seed), dtype=np.uint8),
        counts=scipy.sparse.csr_matrix(rng.poisson(4, (n_spots, len(GENES))).astype(np.float32)),
        genes=GENES,
        spots=[f"{x}x{y}" for x, y in zip(columns, rows, strict=True)],
        centres_px=np.column_stack([columns, rows]) * 20.0 + 30.0 + seed,
        radius_px=5.0,
        patient="P1",
        image_mpp=10.0,
        technology="st",
    )


@pytest.fixture
def sdata() -> SpatialData:
    """C2 was trained on, C6 is test; ACTB was not predicted, and neither was the first spot of C6."""
    made = assemble([_section(name, n, seed) for seed, (name, n) in enumerate(N_SPOTS.items())])
    table = made.tables["table"]
    predicted = np.random.default_rng(7).gamma(3, 2, table.shape).astype(np.float32)
    predicted[:, GENES.index("ACTB")] = np.nan
    predicted[N_SPOTS["C2"]] = np.nan
    table.layers["agl"] = predicted
    split = np.repeat(["train", "test"], list(N_SPOTS.values()))
    table.obs["agl_split"] = pd.Categorical(split, categories=["train", "validation", "test", "unused"])
    return made


def _make_model(**changes: Any) -> "Model":
    """A model as far as the figures look at it: 3 target genes, 40 auxiliary genes, the first 10 selected."""
    epochs, cutoffs = np.arange(12), np.linspace(0, 1, 9)
    ranks = np.arange(40)
    attributes = {
        "method": "dkgsb",
        "search": "path",
        "cutoff": 0.25,
        "genes": [f"T{i}" for i in range(3)] + [f"GENE{i}" for i in ranks],
        "n_targets": 3,
        "weights": np.concatenate([np.ones(3), 1 / (1 + np.exp((ranks - 9.5) / 0.8))]),
        "history": pd.DataFrame(
            {"epoch": epochs, "loss": 0.9**epochs, "validation_pearson": 0.3 - (epochs - 7) ** 2 / 400}
        ),
        "best_epoch": 7,
        "cutoff_trace": pd.DataFrame(
            {
                "step": np.arange(9),
                "cutoff": cutoffs,
                "k": (40 * cutoffs).astype(int),
                "validation_pearson": 0.3 - (cutoffs - 0.25) ** 2,
            }
        ),
    }
    return cast("Model", SimpleNamespace(**attributes | changes))


@pytest.fixture
def model() -> "Model":
    """A model trained with ``method="dkgsb"`` along the path of cutoffs."""
    return _make_model()


@pytest.fixture
def model_with() -> "Callable[..., Model]":
    """Makes the same model with some attributes changed."""
    return _make_model
