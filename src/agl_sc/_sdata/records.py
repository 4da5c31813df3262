"""What an analysis remembers in ``uns[key_added]``: typed records, and the one way to write and to read them.

Every record names its own entries; nothing else in the package knows them.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from agl_sc.core.spots.genes import Normalize

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from agl_sc._sdata.keys import Keys
    from agl_sc.core.arrays import IntArray


class Record(Protocol):
    """Something that is remembered."""

    def entries(self) -> dict[str, Any]:
        """Entries of ``uns[key_added]``, as h5ad and zarr take them."""
        ...

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self | None:
        """From all entries of ``uns[key_added]``; None where nothing of the kind is remembered."""
        ...


class DamagedRecordError(ValueError):
    """A record lacks something, and the message says what to do."""


R = TypeVar("R", bound=Record)


def remembered(table: "AnnData", keys: "Keys", kind: type[R]) -> R | None:
    """The record of a kind, or None; refused where its entries are none that agl_sc wrote."""
    entries = _entries(table, keys)
    try:
        return kind.of(entries)
    except DamagedRecordError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = (
            f'uns["{keys.uns}"] holds no {kind.__name__} that agl_sc wrote ({type(error).__name__}: {error}); '
            f'take it away with del table.uns["{keys.uns}"] and prepare anew, or pass another key_added=.'
        )
        raise ValueError(msg) from error


def remember(table: "AnnData", keys: "Keys", *records: Record) -> None:
    """Write records, leaving others as they are."""
    entries = dict(_entries(table, keys))
    for each in records:
        entries |= each.entries()
    table.uns[keys.uns] = entries


def forget(table: "AnnData", keys: "Keys", name: str) -> None:
    """Take an entry of an earlier step away."""
    table.uns.get(keys.uns, {}).pop(name, None)


def _entries(table: "AnnData", keys: "Keys") -> Mapping[str, Any]:
    found = table.uns.get(keys.uns, {})
    if not isinstance(found, Mapping):
        msg = f'uns["{keys.uns}"] holds a {type(found).__name__} that agl_sc did not write; pass another key_added=.'
        raise ValueError(msg)
    return found


@dataclass(frozen=True, slots=True)
class FeatureRecord:
    """What features were made from."""

    encoder: str
    """Name of the encoder."""
    weights_digest: str
    """Of its weights."""
    tile_px: int
    """Side of a tile in pixels."""
    mpp: float
    """Microns per pixel of a tile."""
    image_mpp: dict[str, float]
    """Microns per pixel of the image of every region."""
    images: dict[str, str]
    """Digest of the image of every region."""
    sections: dict[str, str]
    """Digest of the tiles of every region."""
    context: str = ""
    """Wider fields of view in sides of the tile, separated by blanks."""
    neighbors: int = 0
    """Rings of neighbouring spots whose mean features were added."""
    orientations: int = 1
    """Ways of laying every tile that were averaged over."""
    stages: bool = False
    """Whether mean and spread of the stages' feature maps are there."""
    maps: str = "none"
    """Which fields of view are means over maps of the tissue: ``"none"``, as in older records, ``"wider"`` or ``"all"``."""
    halo_px: int | None = None
    """Halo of the windows of wider fields by maps. None of tiles, and of older maps: 32 px, their own tiles laid in all orientations."""
    precision: str | None = None
    """Of the arithmetic; None in records older than this entry."""

    def plain(self) -> dict[str, Any]:
        """As JSON values, in an order that no file changes."""
        values = asdict(self)
        for name in ("image_mpp", "images", "sections"):
            values[name] = dict(sorted(values[name].items()))
        return {name: value for name, value in values.items() if value is not None}

    def entries(self) -> dict[str, Any]:
        """Under ``features``."""
        return {"features": self.plain()}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "FeatureRecord | None":
        """None where there is none."""
        found = entries.get("features")
        return None if found is None else cls.read(found)

    @classmethod
    def read(cls, found: Any) -> "FeatureRecord":
        """From what :meth:`plain` gave, here or in the card of a model; refuses what is no such record."""
        needed = ("encoder", "weights_digest", "tile_px", "mpp", "image_mpp", "images", "sections")
        missing = [name for name in needed if not isinstance(found, Mapping) or name not in found]
        if missing:
            msg = f"The record of the features has no {missing[0]!r}; run agl_sc.pp.embed(sdata) again."
            raise DamagedRecordError(msg)
        known = {each.name for each in fields(cls)}
        values = {name: _unboxed(value) for name, value in found.items() if name in known}
        return cls(**values)


@dataclass(frozen=True, slots=True, eq=False)
class TileRecord:
    """Which tiles features were made of, spot by spot."""

    fingerprints: "IntArray"
    """Of every spot's name and tile, increasing, (n_spots,); of spots with a position alone."""

    def entries(self) -> dict[str, Any]:
        """Under ``tiles``."""
        return {"tiles": self.fingerprints}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "TileRecord | None":
        """Of features that are older than this record there is none."""
        found = entries.get("tiles")
        return None if found is None else cls(np.asarray(found, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class AddressRecord:
    """Where the data was found, for later steps that are told nothing."""

    image_key: dict[str, str] = field(default_factory=dict)
    """Image of every region."""
    image_mpp: dict[str, float] = field(default_factory=dict)
    """Microns per pixel of the image of every region, where the user stated it."""
    image_px: dict[str, list[int]] = field(default_factory=dict)
    """Height and width of that image: of another size it has another scale."""
    coordinate_system: str | None = None
    """What joins image and spots, where the user named it."""
    layer: str | None = None
    """Layer with raw counts, where the user named one; ``"X"`` for X."""

    def entries(self) -> dict[str, Any]:
        """Under ``address``, without what nobody said."""
        return {"address": {name: value for name, value in asdict(self).items() if value}}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "AddressRecord | None":
        """None where nothing is remembered."""
        found = entries.get("address")
        if not isinstance(found, Mapping):
            return None
        return cls(
            image_key={str(name): str(key) for name, key in found.get("image_key", {}).items()},
            image_mpp={str(name): float(mpp) for name, mpp in found.get("image_mpp", {}).items()},
            image_px={str(name): [int(px) for px in size] for name, size in found.get("image_px", {}).items()},
            coordinate_system=found.get("coordinate_system"),
            layer=found.get("layer"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SplitRecord:
    """How spots were divided: the manifest of a split or of folds."""

    hash: str
    """Over the set, or the sets in all folds, of every spot."""
    settings: dict[str, Any]
    """What was asked for, and what is still shared, as plain values."""
    names: list[str] | None = None
    """Of folds; None of a split."""
    sets: Any = None
    """Number of the set of every spot in every fold, (n_folds, n_obs); None of a split."""

    def entries(self) -> dict[str, Any]:
        """Under ``split``."""
        folds = {} if self.names is None else {"names": np.array(self.names, dtype=object), "sets": self.sets}
        return {"split": {**self.settings, "hash": self.hash, **folds}}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "SplitRecord | None":
        """None where the user wrote the column."""
        found = entries.get("split")
        if not isinstance(found, Mapping) or "hash" not in found:
            return None
        settings = {name: value for name, value in found.items() if name not in ("hash", "names", "sets")}
        names = None if "sets" not in found else [str(name) for name in found["names"]]
        return cls(str(found["hash"]), settings, names, found.get("sets"))


@dataclass(frozen=True, slots=True)
class FittedRecord:
    """Hashes of the splits that roles and prior ranks were fitted on."""

    by: dict[str, str]
    """By what was fitted: ``"role"``, ``"prior_rank"``."""

    def entries(self) -> dict[str, Any]:
        """Under ``fitted_on``."""
        return {"fitted_on": dict(self.by)}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "FittedRecord | None":
        """None where nothing was fitted."""
        found = entries.get("fitted_on")
        return cls({str(name): str(value) for name, value in found.items()}) if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class SettingsRecord:
    """Settings that results were made with."""

    values: dict[str, Any]
    """Of training or of the choice of genes, ``normalize`` among them."""
    versions: dict[str, str] | None = None
    """Of the packages that made them."""

    @property
    def normalize(self) -> Normalize:
        """Units in which genes are modelled."""
        normalize: Normalize = self.values.get("normalize", "log1p_cp10k")
        return normalize

    def entries(self) -> dict[str, Any]:
        """Under ``params`` and ``versions``."""
        return {"params": dict(self.values), **({} if self.versions is None else {"versions": dict(self.versions)})}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "SettingsRecord | None":
        """None where nothing was chosen or trained."""
        found = entries.get("params")
        return cls(dict(found), entries.get("versions")) if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class PredictionRecord:
    """What predictions in the layer belong to."""

    units: str
    """Units they are in."""
    split: str | None = None
    """Hash of the split that the model was fitted under; None of a model that has seen nothing here."""
    layer: str | None = None
    """Layer of the counts that the model was fitted to; ``"X"`` for X, None of a model that has seen nothing here."""
    counts: str | None = None
    """Digest of those counts."""
    spots: str | None = None
    """Digest of the names of the spots, and of where they lie."""

    def entries(self) -> dict[str, Any]:
        """Under ``units`` and ``prediction``."""
        said = {name: value for name, value in asdict(self).items() if value is not None}
        return {"units": self.units, "prediction": said}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "PredictionRecord | None":
        """Of predictions older than this record, their units alone."""
        found = entries.get("prediction")
        if isinstance(found, Mapping):
            return cls(**{each.name: found[each.name] for each in fields(cls) if each.name in found})
        units = entries.get("units")
        return None if units is None else cls(str(units))


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRecord:
    """How training went."""

    history: "pd.DataFrame"
    """A row per epoch."""
    cutoff_trace: "pd.DataFrame"
    """A row per step of the search for the cutoff."""
    best_epoch: int
    """Epoch that was kept."""
    cutoff: float | None
    """Learned; None without one."""

    def entries(self) -> dict[str, Any]:
        """Under ``history``, ``cutoff_trace``, ``best_epoch`` and ``cutoff``."""
        found = {
            "history": {str(name): self.history[name].to_numpy() for name in self.history},
            "cutoff_trace": {str(name): self.cutoff_trace[name].to_numpy(dtype=float) for name in self.cutoff_trace},
            "best_epoch": self.best_epoch,
        }
        return found if self.cutoff is None else {**found, "cutoff": self.cutoff}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "TrainingRecord | None":
        """None before training."""
        import pandas as pd

        if "history" not in entries:
            return None
        history, trace = (pd.DataFrame(dict(entries[name])) for name in ("history", "cutoff_trace"))
        return cls(history, trace, int(entries["best_epoch"]), entries.get("cutoff"))


@dataclass(frozen=True, slots=True)
class MappingRecord:
    """A mapping of plain values under one entry."""

    values: dict[str, Any]
    """Plain values."""
    entry: ClassVar[str]

    def entries(self) -> dict[str, Any]:
        """Under its entry."""
        return {self.entry: dict(self.values)}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Self | None:
        """None where there is no such entry."""
        found = entries.get(cls.entry)
        return cls(dict(found)) if isinstance(found, Mapping) else None


@dataclass(frozen=True, slots=True)
class CrossValidationRecord(MappingRecord):
    """How out-of-fold predictions were made."""

    entry: ClassVar[str] = "cross_validation"


@dataclass(frozen=True, slots=True)
class HeldOutRecord(MappingRecord):
    """How the held-out scores of a model's genes came about."""

    entry: ClassVar[str] = "held_out"


@dataclass(frozen=True, slots=True)
class PredictableRecord(MappingRecord):
    """How :func:`agl_sc.tl.predictable_genes` held spots out."""

    entry: ClassVar[str] = "predictable"


@dataclass(frozen=True, slots=True)
class PaperRecord(MappingRecord):
    """What :func:`agl_sc.tl.paper_prepare` was asked for, and what it left out."""

    entry: ClassVar[str] = "paper"


@dataclass(frozen=True, slots=True)
class OwnTablesRecord:
    """Tables that predictions have of their own."""

    by: dict[str, str]
    """Name of the table by what it holds: ``"model"``, ``"oof"``."""
    entry: ClassVar[str] = "prediction_tables"

    def entries(self) -> dict[str, Any]:
        """Under ``prediction_tables``."""
        return {self.entry: dict(self.by)}

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> "OwnTablesRecord | None":
        """None where predictions are layers."""
        found = entries.get(cls.entry)
        return cls({str(kind): str(name) for kind, name in found.items()}) if isinstance(found, Mapping) else None


def _unboxed(value: Any) -> Any:
    """Plain values again, after a file has made numpy's of them."""
    if isinstance(value, Mapping):
        return {str(name): _unboxed(each) for name, each in value.items()}
    return value.item() if isinstance(value, np.generic) else value
