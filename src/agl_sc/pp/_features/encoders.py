"""The pathology encoders as a table."""

from typing import TYPE_CHECKING

from agl_sc.core.encoders.pathology import CARDS

if TYPE_CHECKING:
    import pandas as pd


def encoders() -> "pd.DataFrame":
    """Pathology encoders that ``encoder=`` of :func:`agl_sc.pp.embed` takes by name, as their authors describe them.

    Any timm name, any ``hf-hub:`` name of a timm model and local weights are taken too. Those of networks that see nothing
    far away (ResNet, ConvNeXt, EfficientNet-Lite, of which ``"efficientnet_lite0"`` is the default) pass over the tissue once
    by default. Others can be asked to by ``maps=``, where their features are means over feature maps or patch tokens; what
    can do neither goes by tiles, and :func:`agl_sc.pp.embed` says so.

    Returns
    -------
    One row per encoder: repository on the hub, ``input_px`` (side of the tiles it takes), ``mean`` and ``std`` (pixel
    scaling), ``mpp`` (microns per pixel it was trained at, None where the authors print none), ``n_features``,
    ``embedding`` (how features are made), ``maps`` (what ``maps="wider"`` or ``"all"`` of :func:`agl_sc.pp.embed` averages in a
    field of view; by default all of these encoders go by tiles), ``licence`` of the weights, ``gated`` (access has to be requested) and
    ``source`` (address of the model card).

    Examples
    --------
    >>> import agl_sc
    >>> table = agl_sc.pp.encoders()
    >>> table.loc["UNI2-h", "n_features"]
    np.int64(1536)
    """
    import pandas as pd

    rows = [
        {
            "name": card.name,
            "repository": card.repository,
            "input_px": card.input_px,
            "mean": card.scaling[0],
            "std": card.scaling[1],
            "mpp": card.mpp,
            "n_features": card.n_features,
            "embedding": card.embedding,
            "maps": card.maps,
            "licence": card.licence,
            "gated": card.gated,
            "source": card.source,
        }
        for card in CARDS
    ]
    return pd.DataFrame(rows).set_index("name")
