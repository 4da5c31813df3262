"""At which multiple of its scale a section seems to be seen, from the mean features of its tissue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.linear_model import Ridge

from agl_sc.core.arrays import FloatArray, Floats, IntArray

STEPS = (-2.0, -1.0, 1.0, 2.0)
"""Other scales at which training tissue is seen, as powers of two: finer, then coarser."""
_PENALTY = 0.1
_LEAST_SPREAD = 0.05
_LEAST_LIMIT, _BEYOND_FARTHEST = 0.65, 1.5
"""Powers of two from which on a scale is another, and how much farther than any section that was held out. At the right scale,
sections of other patients seemed off by .4 at most; at four times another, by .8 or more."""
_NEVER = 64.0
"""A limit that no image comes to, on a side on which training tissue was not seen."""


@dataclass(frozen=True, slots=True, eq=False)
class SeenScale:
    """A linear function of features that tells the scale, learned from training tissue that was seen at others too."""

    slope: FloatArray
    """Of every feature, (n_features,)."""
    offset: FloatArray
    """(1,)."""
    limit: FloatArray
    """Powers of two from which on a section is finer, and coarser, (2,); out of reach where training tissue was not seen so."""

    @classmethod
    def fitted(
        cls, features: Floats, sections: IntArray, steps: FloatArray, *, held: Sequence[IntArray] = ()
    ) -> "SeenScale | None":
        """By ridge regression; None unless tissue was seen finer or coarser. Where images allow one of them, that alone is told.

        What tells the scale is much the same in all tissues of a kind, though every feature varies with stain and patient: the
        regression finds directions along which these do not. It shrinks, so that what it says of a slide is rather too near to 0.

        Parameters
        ----------
        features
            Of tiles, (n_tiles, n_features), neither clipped nor centred per section.
        sections
            Section of every tile, (n_tiles,).
        steps
            At which power of two of its scale every tile is seen, (n_tiles,): 0 as it is, 2 four times too coarse.
        held
            Sections that are held out together, to know how far off one may seem that is as it should be.
        """
        sides = np.array([(steps < 0).any(), (steps > 0).any()])
        if not sides.any():
            return None
        found = cls._of(features, sections, steps)
        farthest = 0.0
        for codes in held:
            out = np.isin(sections, codes)
            if out.all() or not out.any():
                continue
            other = cls._of(features[~out], sections[~out], steps[~out])
            means = [
                features[(sections == code) & (steps == 0)].mean(axis=0, dtype=float)
                for code in np.unique(sections[out])
            ]
            farthest = max(farthest, *(abs(other.power(mean)) for mean in means))
        return replace(found, limit=np.where(sides, max(_LEAST_LIMIT, _BEYOND_FARTHEST * farthest), _NEVER))

    @classmethod
    def _of(cls, features: Floats, sections: IntArray, steps: FloatArray) -> "SeenScale":
        values = np.asarray(features, dtype=float)
        own = [values[(sections == code) & (steps == 0)] for code in np.unique(sections)]
        within = np.sqrt(np.mean([part.var(axis=0) for part in own], axis=0))
        varying = within[within > 0]
        scale = np.maximum(within, _LEAST_SPREAD * (np.median(varying) if len(varying) else 1.0))
        centre = values.mean(axis=0)
        scaled = (values - centre) / scale
        fit = Ridge(alpha=max(_PENALTY * float(scaled.var(axis=0).sum()), 1e-9), solver="cholesky").fit(scaled, steps)
        slope = fit.coef_ / scale
        return cls(slope, np.array([float(fit.intercept_) - slope @ centre]), np.full(2, _LEAST_LIMIT))

    def power(self, mean: FloatArray) -> float:
        """Power of two of its scale at which the tissue of these mean features, (n_features,), seems to be seen; below 0 finer."""
        return float(self.slope @ mean + self.offset[0])

    def is_other(self, mean: FloatArray) -> bool:
        """Whether that is another scale."""
        finer, coarser = self.limit.tolist()
        return not -finer <= self.power(mean) <= coarser
