"""How far work has come: a bar on a terminal, and a line of the log a minute elsewhere."""

import logging
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")

EVERY_S = 60.0
"""Seconds between two lines of the log, where there is no terminal to draw a bar on."""
DELAY_S = 3.0
"""Seconds before a bar is drawn: what is done by then needs none."""

logger = logging.getLogger(__name__)


class Progress(Generic[T]):
    """A bar of tqdm where there is a terminal, else a line a minute; as much of tqdm's manners as the package uses."""

    def __init__(
        self,
        items: Iterable[T] = (),
        *,
        total: int,
        desc: str,
        unit: str,
        initial: int = 0,
        hidden: bool = False,
    ) -> None:
        """Begin.

        Parameters
        ----------
        items
            What is gone through, where the object is iterated over instead of updated.
        total
            How many there are.
        desc
            What they are, as the bar calls it.
        unit
            One of them.
        initial
            How many are done already.
        hidden
            Neither bar nor lines, as in all processes but the first.
        """
        self._items, self._total, self._desc = items, total, desc
        self._first = self._done = initial
        self._begun = self._told = time.monotonic()
        self._hidden = hidden
        self._bar: tqdm[Any] = tqdm(
            total=total, initial=initial, desc=desc, unit=unit, disable=True if hidden else None, delay=DELAY_S
        )

    def __iter__(self) -> Iterator[T]:
        """Go through the items, each of which counts when it is done with."""
        with self:
            for item in self._items:
                yield item
                self.update()

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._done += n
        self._bar.update(n)
        now = time.monotonic()
        if self._bar.disable and not self._hidden and now - self._told >= EVERY_S:
            self._told = now
            self._tell(now - self._begun)

    def set_postfix(self, **values: Any) -> None:
        """Say beside the bar what has been reached."""
        if not self._bar.disable:
            self._bar.set_postfix(refresh=False, **values)

    def _tell(self, spent_s: float) -> None:
        done = self._done - self._first
        left_s = spent_s / done * (self._total - self._done) if done else 0.0
        logger.info(
            "%s: %d of %d after %.0f min, about %.0f min left.",
            self._desc,
            self._done,
            self._total,
            spent_s / 60,
            left_s / 60,
        )
