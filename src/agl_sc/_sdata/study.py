"""Where the data is: said once, resolved once, remembered by later steps."""

import copy
import logging
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from agl_sc._sdata.keys import Keys
from agl_sc._sdata.records import AddressRecord, FeatureRecord, SettingsRecord, remember, remembered
from agl_sc._sdata.sections import Names, Scales, Section, sections
from agl_sc._sdata.table import X, check_features, check_unique_genes, counts_of, name_of_table, section_of
from agl_sc.core.arguments import check_name, check_names, check_scales

if TYPE_CHECKING:
    import scipy.sparse
    from anndata import AnnData
    from spatialdata import SpatialData

    from agl_sc._sdata.predictions import WriteTo
    from agl_sc.core.arrays import StrArray
    from agl_sc.core.spots.genes import Normalize

TILES_CHECKED = "tiles checked"
"""Of the memo: the features in place were made from the tiles that the spots have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the data is, as far as somebody says; None where nobody does."""

    table_key: str | None = None
    """Table."""
    image_key: Names = None
    """Image element or elements."""
    shapes_key: Names = None
    """Regions."""
    coordinate_system: str | None = None
    """What joins image and spots."""
    image_mpp: Scales = None
    """Microns per pixel of the full image, of all or by section."""
    layer: str | None = None
    """Layer with raw counts; ``"X"`` for X where another one was named earlier."""

    def __post_init__(self) -> None:
        for argument in ("table_key", "coordinate_system", "layer"):
            check_name(argument, getattr(self, argument))
        for argument in ("image_key", "shapes_key"):
            names = getattr(self, argument)
            check_names(argument, names)
            if names is not None and not len(names):
                msg = f"{argument}={names!r} names nothing; name one or several, or pass None for the default."
                raise ValueError(msg)
        check_scales(self.image_mpp)


@dataclass(frozen=True, eq=False)
class Study:
    """A SpatialData with everything about where its data is resolved."""

    sdata: "SpatialData"
    """Images, shapes, tables."""
    table_key: str
    """Name of the table."""
    keys: Keys
    """Names of the slots."""
    address: Address
    """What was said now, and where nothing was, what an earlier step remembers."""
    memo: dict[str, Any] = field(default_factory=dict, repr=False)
    """What was looked up once, such as the checked split; whoever changes that forgets it."""
    is_scratch: bool = False
    """Whether the table is a copy for one run: what is written to it, nobody sees."""
    write_to: "WriteTo" = "auto"
    """Where predictions go: a layer, a table of their own, or the layer where that costs no more than the counts do."""
    n_layers: int = 1
    """Layers that are written there: three with intervals."""

    @classmethod
    def of(cls, sdata: "SpatialData", address: Address | None = None, key_added: str = "agl") -> "Study":
        """Resolve an address, refused where it leads nowhere.

        Parameters
        ----------
        sdata
            The user's.
        address
            What was said.
        key_added
            Prefix of all slots.
        """
        address, keys = address or Address(), Keys(key_added)
        name = name_of_table(sdata, address.table_key, keys.uns)
        study = cls(sdata, name, keys, replace(address, table_key=name))
        check_unique_genes(study.table)
        check_features(study.table, study.keys.features)
        return study.recalled()

    def recalled(self) -> "Study":
        """The same with what is remembered by now."""
        found = remembered(self.table, self.keys, AddressRecord) or AddressRecord()
        said = self.address
        return replace(
            self,
            address=replace(
                said,
                coordinate_system=said.coordinate_system or found.coordinate_system,
                layer=said.layer or (found.layer if found.layer in (X, *self.table.layers) else None),
            ),
        )

    @property
    def table(self) -> "AnnData":
        """The table."""
        table: AnnData = self.sdata.tables[self.table_key]
        return table

    def around(self, table: "AnnData") -> "Study":
        """The same images and shapes, not copied, around another table of the same spots, with counts in X."""
        address = replace(self.address, table_key="table", layer=None)
        other = Study(around(self.sdata, table), "table", self.keys, address, is_scratch=True)
        for name in ("imaged", "positioned", "section_names"):  # the same spots
            if name in self.__dict__:
                other.__dict__[name] = self.__dict__[name]
        if TILES_CHECKED in self.memo:
            other.memo[TILES_CHECKED] = True
        return other

    def tell_written(self, logger: logging.Logger, message: str, *values: object) -> None:
        """Log what was written, unless it is to a copy."""
        if not self.is_scratch:
            logger.info(message, *values, stacklevel=2)

    def of_regions(self, names: list[str]) -> "Study":
        """Of some regions alone."""
        return replace(self, address=replace(self.address, shapes_key=names))

    @cached_property
    def imaged(self) -> list[Section]:
        """Every region with its image, which it must have."""
        return self._sections(need_image=True)

    @cached_property
    def positioned(self) -> list[Section]:
        """Every region with its positions, and with its image where there is one that nobody doubts."""
        if self.address.image_mpp is not None and len(self.sdata.images):  # which is of an image
            return self.imaged
        return self._sections(need_image=False, one_image=False)

    @cached_property
    def pictured(self) -> list[Section]:
        """Every region with its positions, and with its image where it has one; of several one has to be named."""
        return self._sections(need_image=False)

    def _sections(self, *, need_image: bool, one_image: bool = True) -> list[Section]:
        address = self.address
        return sections(
            self.sdata,
            self.table,
            image_key=address.image_key,
            shapes_key=address.shapes_key,
            coordinate_system=address.coordinate_system,
            image_mpp=address.image_mpp,
            remembered=remembered(self.table, self.keys, AddressRecord),
            need_image=need_image,
            one_image=one_image,
        )

    @cached_property
    def counts(self) -> "scipy.sparse.csr_matrix":
        """Raw counts, (n_obs, n_genes)."""
        return counts_of(self.table, self.address.layer)

    @cached_property
    def section_names(self) -> "StrArray":
        """Section of every spot, (n_obs,)."""
        return section_of(self.table).to_numpy(dtype=str)

    @property
    def normalize(self) -> "Normalize":
        """Units in which genes are modelled, as an earlier step recorded them."""
        return (remembered(self.table, self.keys, SettingsRecord) or SettingsRecord({})).normalize

    @property
    def features(self) -> FeatureRecord | None:
        """What the features in place were made from."""
        return remembered(self.table, self.keys, FeatureRecord)

    def remember_images(self, found: list[Section]) -> None:
        """For later steps: the image of every region, and what was said of coordinate system and scale."""
        before = remembered(self.table, self.keys, AddressRecord) or AddressRecord()
        names = {section.name for section in found}
        scales = {name: mpp for name, mpp in before.image_mpp.items() if name not in names}
        sizes = {name: px for name, px in before.image_px.items() if name not in names}
        for section in found:
            if section.stated_mpp is not None:
                scales[section.name] = float(section.stated_mpp)
                sizes[section.name] = list(section.levels[0].shape[1:])
        record = AddressRecord(
            image_key={**before.image_key, **{section.name: section.image_key for section in found}},
            image_mpp=scales,
            image_px=sizes,
            coordinate_system=self.address.coordinate_system,
            layer=before.layer,
        )
        remember(self.table, self.keys, record)

    def remember_layer(self) -> None:
        """For later steps: the layer that was named."""
        before = remembered(self.table, self.keys, AddressRecord) or AddressRecord()
        if self.address.layer != before.layer:
            remember(self.table, self.keys, replace(before, layer=self.address.layer))


def around(sdata: "SpatialData", table: "AnnData") -> "SpatialData":
    """The same images, shapes, points and labels, not copied, around another table named ``table``."""
    from spatialdata import SpatialData

    for name, shapes in sdata.shapes.items():  # which spatialdata would refuse without a name
        if "radius" in shapes and not (shapes["radius"] > 0).all():
            msg = f"shapes {name!r} hold radii that are not positive; mend sdata.shapes[{name!r}]['radius'], in pixels of its coordinate system."
            raise ValueError(msg)
    elements = {kind: dict(getattr(sdata, kind)) for kind in ("images", "labels", "shapes", "points")}
    with warnings.catch_warnings():  # of a region without shapes, which was told when sdata was made
        warnings.filterwarnings("ignore", message="The table is annotating", category=UserWarning)
        return SpatialData(**elements, tables={"table": table}, attrs=dict(sdata.attrs))


def known_positions(found: list[Section], n_obs: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Spots that lie somewhere, (n_obs,)."""
    known = np.zeros(n_obs, dtype=bool)
    for section in found:
        known[section.rows] = np.isfinite(section.centres).all(axis=1)
    return known


def without_counts(table: "AnnData", keys: Keys) -> "AnnData":
    """A copy of the spots of a table and of what is remembered of them."""
    from anndata import AnnData

    names = [name for name in ("spatialdata_attrs", keys.uns) if name in table.uns]
    return AnnData(obs=table.obs.copy(), uns=copy.deepcopy({name: table.uns[name] for name in names}))
