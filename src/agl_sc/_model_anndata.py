"""Predictions of a model as an AnnData, without a trace in the sections that they are of."""

import copy
from typing import TYPE_CHECKING, Any, Self

from agl_sc._sdata.sections import Names, Scales

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from agl_sc.model import Model


class ToAnnData:
    """What a model does to predict into a new AnnData."""

    __slots__ = ()

    def to_anndata(
        self: Self,
        sdata: "SpatialData",
        *,
        device: str | None = None,
        batch_size: int = 32,
        table_key: str | None = None,
        image_key: Names = None,
        shapes_key: Names = None,
        coordinate_system: str | None = None,
        image_mpp: Scales = None,
        min_r: float | None = None,
        interval: float | None = None,
        key_added: str = "agl",
    ) -> "AnnData":
        """Predict, and give the predicted genes alone, as scanpy, squidpy and Seurat read them.

        The same as :func:`agl_sc.tl.predict` and then :func:`agl_sc.tl.to_anndata`, but ``sdata`` stays as it is: features that it
        has are used, others are computed and not kept in it.

        Parameters
        ----------
        sdata
            SpatialData with one table that annotates the spots of all sections.
        device
            ``"cpu"``, ``"cuda"`` (in half precision), ``"mps"``; the fastest there is by default.
        batch_size
            Tiles per forward pass.
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
        min_r
            As :func:`agl_sc.tl.predict` takes it.
        interval
            As :func:`agl_sc.tl.predict` takes it.
        key_added
            Prefix of all slots.

        Returns
        -------
        A new AnnData as :func:`agl_sc.tl.to_anndata` describes it, spots with a prediction x predicted genes; with
        ``interval`` also ``layers["lower"]`` and ``layers["upper"]``.

        Raises
        ------
        ValueError
            As :func:`agl_sc.tl.predict`.

        Examples
        --------
        >>> import agl_sc
        >>> sdata = agl_sc.datasets.toy_tissue(n_sections=3, n_spots_per_side=6)
        >>> agl_sc.pp.embed(sdata, tile_px=32, mpp=1.0, context=(), orientations=1, stages=False)
        >>> config = agl_sc.tl.TrainConfig(batch_size=16, max_epochs=2)
        >>> model = agl_sc.tl.train(sdata, config=config)
        >>> other = agl_sc.datasets.toy_tissue(n_sections=1, n_spots_per_side=6, seed=1)
        >>> adata = model.to_anndata(other)
        >>> adata.n_vars == model.n_predicted
        True
        """
        from agl_sc import tl

        model: Model = self  # type: ignore[assignment]  # which inherits this
        own = _own_tables(sdata)
        where: dict[str, Any] = {
            "table_key": table_key, "image_key": image_key, "shapes_key": shapes_key, "coordinate_system": coordinate_system,
            "image_mpp": image_mpp, "key_added": key_added,
        }  # fmt: skip
        tl.predict(own, model, device=device, batch_size=batch_size, min_r=min_r, interval=interval, **where)
        return tl.to_anndata(own, **where)


def _own_tables(sdata: "SpatialData") -> "SpatialData":
    """The same images and shapes, not copied, with copies of the tables."""
    from spatialdata import SpatialData

    return SpatialData(
        images=dict(sdata.images),
        labels=dict(sdata.labels),
        points=dict(sdata.points),
        shapes=dict(sdata.shapes),
        tables={name: table.copy() for name, table in sdata.tables.items()},
        attrs=copy.deepcopy(sdata.attrs),
    )
