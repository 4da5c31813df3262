"""Trackers of an Accelerator that is used for several trainings."""

from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import GeneralTracker
from spatialdata import SpatialData

from agl_sc.tl import TrainConfig, train


class Remembering(GeneralTracker):  # type: ignore[misc]
    """Keeps in memory what happens to it."""

    name = "remembering"
    requires_logging_directory = False
    main_process_only = True

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    @property
    def tracker(self) -> list[Any]:
        return self.events

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.events.append(values["method"])

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        del values, kwargs
        self.events.append(step)

    def finish(self) -> None:
        self.events.append("finish")


@pytest.fixture
def accelerator(another_accelerator: None) -> Accelerator:
    return Accelerator(cpu=True, log_with=[Remembering()])


def test_each_training_is_a_run_of_its_own(
    *, prepared: SpatialData, config: TrainConfig, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(AcceleratorState, "destroy_process_group", lambda *_: ended.append("connection"), raising=False)
    for method in ("pgl", "agl"):
        train(prepared, method=method, config=config, accelerator=accelerator)
    assert accelerator.log_with[0].events == ["pgl", 1, 2, 3, "finish", "agl", 1, 2, 3, "finish"]
    assert not ended, "the next training needs the other processes"


def test_trackers_of_the_user_stay_open(prepared: SpatialData, config: TrainConfig, accelerator: Accelerator) -> None:
    accelerator.init_trackers("mine", config={"method": "mine"})
    train(prepared, method="pgl", config=config, accelerator=accelerator)
    assert accelerator.trackers[0].events == ["mine", 1, 2, 3]
