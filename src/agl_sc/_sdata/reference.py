"""What is remembered of the reference that features are centred on; one of the records of :mod:`agl_sc._sdata.records`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from agl_sc.core.arrays import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceRecord:
    """What the features of every region are centred on: their mean over a fixed set of its tissue tiles."""

    means: dict[str, FloatArray]
    """Of every region, (n_features,)."""
    n_tiles: dict[str, int]
    """Tiles that each is the mean of."""

    def entries(self) -> dict[str, Any]:
        """Under ``reference``."""
        return {"reference": {"means": dict(self.means), "n_tiles": dict(self.n_tiles)}}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "ReferenceRecord | None":
        """Of features that are older than this record there is none."""
        found = entries.get("reference")
        if not isinstance(found, Mapping):
            return None
        means = {str(name): np.asarray(mean, dtype=float) for name, mean in found["means"].items()}
        return cls(means, {name: int(found["n_tiles"][name]) for name in means})
