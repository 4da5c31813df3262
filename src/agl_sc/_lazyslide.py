"""A trained model as LazySlide takes models that predict from features of tiles."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from agl_sc.core.arrays import Float32Array

if TYPE_CHECKING:
    from agl_sc.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class LazySlideModel:
    """What ``lazyslide.tl.feature_prediction(wsi, model, feature_key)`` takes: its ``FeaturePredictionModelProtocol``."""

    model: "Model"
    """The trained model."""
    name: str
    """Before ``_tiles``, the name of the table that LazySlide writes."""
    features_model_name: str
    """Encoder whose features it takes; LazySlide looks for the table of that name where none is named."""
    whole_slide: ClassVar[bool] = True
    """All tiles are predicted at once, since features are seen against those of their slide."""
    needs_coords: ClassVar[bool] = False

    @classmethod
    def of(cls, model: "Model", name: str) -> "LazySlideModel":
        """A model, refused where it takes features that LazySlide does not compute."""
        made_from = model.card["features"]
        more = [entry for entry in ("context", "neighbors", "stages") if made_from.get(entry)]
        if made_from.get("orientations", 1) != 1:
            more.append("orientations")
        if made_from.get("maps", "none") != "none":
            more.append("maps")
        if more or model.finetuned:
            taken = f"takes features with {', '.join(more)} of agl_sc.pp.embed"
            msg = (
                f"This model {'brings an encoder of its own' if model.finetuned else taken}, which LazySlide does not compute; train one on "
                "features of single tiles, or predict with agl_sc.tl.predict."
            )
            raise ValueError(msg)
        return cls(model, name, str(made_from["encoder"]))

    def predict(self, features: Any, coords: Any = None, *_: Any, **__: Any) -> dict[str, Float32Array]:
        """Expression of every predicted gene, (n_tiles,), of the tiles of one slide.

        Parameters
        ----------
        features
            Of the model's own encoder and tiles, (n_tiles, n_features).
        coords
            Not used.
        """
        values = np.asarray(features.toarray() if hasattr(features, "toarray") else features)
        predicted = self.model.predict(values, np.zeros(len(values), dtype=np.int64))
        return {gene: predicted[:, column] for column, gene in enumerate(self.model.predicted_genes)}

    def get_transform(self) -> None:
        """Of images, of which it takes none."""
        return

    def to(self, device: Any) -> "LazySlideModel":
        """Itself: it predicts on the CPU, in no time."""
        return self

    def try_compile(self, **options: Any) -> None:
        """Nothing to compile."""
