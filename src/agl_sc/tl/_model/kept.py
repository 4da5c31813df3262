"""What is finished is kept: a model outlives a failure to predict."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agl_sc._sdata.study import Study
from agl_sc.model import Model

logger = logging.getLogger(__name__)


@contextmanager
def kept_on_failure(study: Study, model: Model, folder: Path | None) -> Iterator[None]:
    """Say where a trained model is when predicting with it fails or is interrupted.

    Parameters
    ----------
    study
        What it was trained on; of a scratch one nothing is kept.
    model
        The model.
    folder
        Checkpoint that holds it; a new temporary folder is made where there is none.
    """
    try:
        yield
    except BaseException as error:
        if not study.is_scratch:
            text = _kept(study, model, folder)
            error.add_note(text)
            logger.error("%s", text)
        raise


def _kept(study: Study, model: Model, folder: Path | None) -> str:
    """A sentence that says where the model is."""
    slots = f'Training was finished, and var["{study.keys.weight}"] and uns["{study.keys.uns}"] are written, but the predictions are not'
    path = Path(tempfile.mkdtemp(prefix="agl_sc_")) / "model" if folder is None else folder / "model"
    try:
        if folder is None:
            model.save(path)
    except OSError as error:
        return f"{slots}; the model could not be saved either ({error})."
    return f"{slots}; the model is in {path}: predict with agl_sc.tl.predict(sdata, agl_sc.Model.load({str(path)!r}))."
