"""Under which licence the weights of an encoder are."""

import timm

from agl_sc.core.encoders.load import OFFLINE
from agl_sc.core.encoders.pathology import card_of


def licence_of(name: str) -> str | None:
    """Licence of an encoder's weights: of the offline encoder, of a card, or as timm states it; None where nobody does.

    Parameters
    ----------
    name
        As :func:`agl_sc.core.encoders.load.load_encoder` takes it.
    """
    prefix, at, _ = name.partition("@")
    if name == OFFLINE:
        return "Apache-2.0"
    card = card_of(name) or card_of(prefix)
    if card is not None:
        return card.licence
    if at or name.startswith("hf-hub:") or not timm.is_model(name):
        return None
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    found = getattr(settings, "license", None)
    return str(found) if found else None
