"""A model trained once, with what it wrote."""

import copy
from typing import TYPE_CHECKING

import pytest
from spatialdata import SpatialData

if TYPE_CHECKING:
    from agl_sc.model import Model
    from agl_sc.tl import TrainConfig


@pytest.fixture(scope="session")
def _trained(_prepared: SpatialData, config: "TrainConfig") -> "tuple[SpatialData, Model]":
    from agl_sc.tl import train

    sdata = with_own_table(_prepared)
    return sdata, train(sdata, config=config)


@pytest.fixture
def trained(_trained: "tuple[SpatialData, Model]") -> "tuple[SpatialData, Model]":
    """The prepared tissue after ``train`` (dkgsb), and the model."""
    sdata, model = _trained
    return with_own_table(sdata), model


def with_own_table(sdata: SpatialData) -> SpatialData:
    return SpatialData(
        images=dict(sdata.images),
        shapes=dict(sdata.shapes),
        tables={name: table.copy() for name, table in sdata.tables.items()},
        attrs=copy.deepcopy(sdata.attrs),
    )
