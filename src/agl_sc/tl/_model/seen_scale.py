"""What a model knows of the scale of its training tissue."""

import logging

import numpy as np

from agl_sc._sdata.study import Study
from agl_sc.core.arrays import IntArray
from agl_sc.core.encoders.trust import is_harmless
from agl_sc.core.evaluation.seen_scale import STEPS, SeenScale
from agl_sc.pp._features.embed import FeatureRequest
from agl_sc.pp._features.other_scales import at_other_scales
from agl_sc.tl._model.held_out import HeldOut

logger = logging.getLogger(__name__)


def seen_scale_of(
    study: Study, spots: HeldOut, codes: IntArray, *, width: int, tiles: FeatureRequest
) -> SeenScale | None:
    """Learned from some tiles of the held-out spots' sections; None without images, or without an encoder that is at hand.

    Parameters
    ----------
    study
        With features of its images.
    spots
        Spots to learn from, and what of them is held out together.
    codes
        Number of the region of every spot of the table, (n_obs,).
    width
        Features of the tile itself, the first of a spot's.
    tiles
        Where the encoder runs.
    """
    made_from = study.features
    if made_from is None or not made_from.sections or not len(study.sdata.images):
        return None
    if not is_harmless(made_from.encoder):  # a name that the table came with is no reason to fetch it
        logger.info("The model cannot tell slides at another scale: %r is not loaded for that.", made_from.encoder)
        return None
    try:
        seen = at_other_scales(study, spots.rows, (0.0, *STEPS), tiles=tiles)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, ImportError) as error:
        logger.info("The model cannot tell slides at another scale: %s", error)
        return None
    if not len(seen.rows) or seen.features.shape[1] != width:
        return None
    held = [np.setdiff1d(codes[spots.rows[fold.held]], codes[spots.rows[fold.fit]]) for fold in spots.folds]
    return SeenScale.fitted(seen.features, codes[seen.rows], seen.steps, held=held)
