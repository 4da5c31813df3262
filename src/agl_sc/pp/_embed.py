"""Encoder features of every tile, kept in ``obsm`` and computed again only when something they depend on changed."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from agl_sc._boundary import Names, Section, get_table, record, recorded, sections
from agl_sc._keys import Keys
from agl_sc.core.encoder import OFFLINE, Encoder, load_encoder
from agl_sc.core.tiles import Boxes, tile_batches
from agl_sc.pp._tiles import Mpp, TileSpec, place

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

Float32Array = NDArray[np.float32]
Placed = list[tuple[Section, Boxes]]

logger = logging.getLogger(__name__)


def embed(
    sdata: "SpatialData",
    *,
    encoder: str = OFFLINE,
    tile_px: int = 224,
    mpp: Mpp = 0.5,
    image_mpp: float | None = None,
    batch_size: int = 32,
    device: str | None = None,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    key_added: str = "agl",
) -> None:
    """Compute the encoder features of the tile around every spot.

    Nothing is computed when features of the same image, tiles and encoder weights are there already.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    encoder
        ``"efficientnet_lite0"`` (ImageNet weights that need no network) or any timm model name.
    tile_px
        Side of a tile in pixels.
    mpp
        Microns per pixel of a tile, or ``"image"`` for the image's own resolution whatever it is.
    image_mpp
        Microns per pixel of the full image; from metadata or spot pitch by default.
    batch_size
        Tiles per forward pass.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``; the fastest there is by default.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    Nothing; writes ``obsm["agl_features"]``, float32 (n_spots, n_features), NaN where a spot has no position, and
    ``uns["agl"]["features"]``, what they were made from.

    Raises
    ------
    ValueError
        The scale of an image is unknown, contradicts the spot pitch, or is too coarse; several images or coordinate
        systems fit; an image is not 3-channel uint8.
    KeyError
        An element does not exist.
    """
    spec = TileSpec(tile_px, mpp)
    if batch_size < 1:
        msg = f"batch_size={batch_size} is not a positive number of tiles; 32 is usual."
        raise ValueError(msg)
    table = get_table(sdata, table_key)
    keys = Keys(key_added)
    found = sections(sdata, table, image_key=image_key, shapes_key=shapes_key, coordinate_system=coordinate_system)
    placed = [place_section(section, spec, image_mpp) for section in found]
    network = load_encoder(encoder)
    made_from = provenance(network, spec, placed)
    if keys.features in table.obsm and recorded(table, keys, "features") == made_from:
        logger.info('Kept obsm["%s"]: same image, tiles and encoder.', keys.features)
        return
    features = encode(network, placed, sizes=(table.n_obs, spec.tile_px, batch_size), device=pick_device(device))
    table.obsm[keys.features] = features
    record(table, keys, {"features": made_from})
    logger.info('Wrote obsm["%s"]: %d x %d from %s.', keys.features, *features.shape, encoder)


def pick_device(device: str | None) -> torch.device:
    """The device asked for, or the fastest there is."""
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def place_section(section: Section, spec: TileSpec, image_mpp: float | None) -> tuple[Section, Boxes]:
    """A section reduced to the spots with a position, its scale resolved, and its boxes; tells of padded tiles."""
    known = np.isfinite(section.centres).all(axis=1)
    if not known.all():
        logger.warning("%d spots of %s have no position and get no features.", (~known).sum(), section.name)
    image_mpp = section.mpp(image_mpp)
    section = replace(section, rows=section.rows[known], centres=section.centres[known], image_mpp=image_mpp)
    boxes = place(section, spec, image_mpp)
    n_padded = int(boxes.padded.sum())
    if n_padded:
        logger.warning(
            "%d of %d tiles of %s reach beyond the image and are padded with its background.",
            n_padded,
            len(section.rows),
            section.name,
        )
    return section, boxes


def provenance(network: Encoder, spec: TileSpec, placed: Sequence[tuple[Section, Boxes]]) -> dict[str, Any]:
    """What features depend on: encoder, tiles, and per section the scale and digests of the image and of the tiles."""
    return {
        "encoder": network.name,
        "weights_digest": network.digest,
        "tile_px": spec.tile_px,
        "mpp": float(np.mean([boxes.mpp for _, boxes in placed])) if spec.mpp == "image" else spec.mpp,
        "image_mpp": {section.name: section.image_mpp for section, _ in placed},
        "images": {section.name: boxes.overview_digest for section, boxes in placed},
        "sections": {section.name: _tiles_digest(boxes) for section, boxes in placed},
    }


def _tiles_digest(boxes: Boxes) -> str:
    sha = hashlib.sha256(f"{boxes.image.shape} {boxes.side} {boxes.overview_digest}".encode())
    sha.update(boxes.origins.tobytes())
    return sha.hexdigest()


def placed_again(sdata: "SpatialData", table: "AnnData", keys: Keys, *, elements: dict[str, Any]) -> Placed:
    """Sections and boxes of the tiles that the features in place were made from."""
    made_from = recorded(table, keys, "features")
    spec = TileSpec(int(made_from["tile_px"]), float(made_from["mpp"]))
    scales = made_from["image_mpp"]
    return [place_section(section, spec, scales.get(section.name)) for section in sections(sdata, table, **elements)]


def check_provenance(made_from: dict[str, Any], network: Encoder) -> None:
    """Refuse an encoder whose weights are not those that features were made with."""
    if made_from["weights_digest"] != network.digest:
        msg = f"The weights of encoder={network.name!r} are not those the features were made with; run agl_sc.pp.embed again."
        raise ValueError(msg)


def encode(
    network: Encoder, placed: Sequence[tuple[Section, Boxes]], *, sizes: tuple[int, int, int], device: torch.device
) -> Float32Array:
    """Features (n_obs, n_features) of all placed tiles; ``sizes`` are n_obs, tile_px, batch_size."""
    n_obs, tile_px, batch_size = sizes
    features = np.full((n_obs, network.n_features), np.nan, dtype=np.float32)
    module = network.module.to(device).to(memory_format=torch.channels_last)
    total = sum(len(section.rows) for section, _ in placed)
    with tqdm(total=total, desc="tiles", unit="tile", disable=None) as bar, torch.inference_mode():
        for section, boxes in placed:
            for index, tiles in tile_batches(boxes, tile_px, batch_size):
                scaled = network.scale(tiles.to(device)).contiguous(memory_format=torch.channels_last)
                features[section.rows[index]] = module(scaled).float().cpu().numpy()
                bar.update(len(index))
    return features
