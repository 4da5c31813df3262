"""What is remembered of intervals around predictions; one of the records of :mod:`agl_sc._sdata.records`."""

from dataclasses import dataclass
from typing import ClassVar

from agl_sc._sdata.records import MappingRecord


@dataclass(frozen=True, slots=True)
class IntervalRecord(MappingRecord):
    """Their level, by section what they promise there, and why there are none in the others."""

    entry: ClassVar[str] = "interval"

    @property
    def level(self) -> float:
        """Share of spots that they are to cover."""
        return float(self.values["level"])

    def covers_level(self, section: str) -> bool | None:
        """Whether those of a section cover its level too; None where it has none."""
        said = self.values["sections"].get(section)
        return None if said is None else str(said["kind"]) != "sections"

    def words(self, section: str) -> str:
        """The promise of a section with intervals."""
        return str(self.values["sections"][section]["words"])
