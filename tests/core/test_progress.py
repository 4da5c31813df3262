"""A bar on a terminal, a line a minute elsewhere."""

import io
import logging
import sys

import pytest

from agl_sc.core import progress
from agl_sc.core.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("agl_sc.core.progress.time.monotonic", made)
    return made


def test_a_line_a_minute_without_a_terminal(
    clock: Clock, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    for _ in Progress(range(12), total=12, desc="runs", unit="run"):
        clock.now += 25
    lines = [record.getMessage() for record in caplog.records if record.name == "agl_sc.core.progress"]
    assert lines == [
        f"runs: {done} of 12 after {done * 25 / 60:.0f} min, about {(12 - done) * 25 / 60:.0f} min left."
        for done in (3, 6, 9, 12)
    ]
    assert capsys.readouterr().err == ""


def test_what_was_done_before_tells_nothing_of_the_speed(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress[int](total=100, initial=80, desc="epochs", unit="epoch") as bar:
        clock.now += 120
        bar.update(10)
        bar.set_postfix(loss="0.1")
    assert caplog.messages == ["epochs: 90 of 100 after 2 min, about 2 min left."]


def test_quick_work_and_hidden_work_say_nothing(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert list(Progress("abc", total=3, desc="tiles", unit="tile")) == ["a", "b", "c"]
    for _ in Progress(range(3), total=3, desc="tiles", unit="tile", hidden=True):
        clock.now += 100
    assert caplog.messages == []


def test_a_bar_on_a_terminal_and_no_lines(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    caplog.set_level(logging.INFO)
    with Progress[int](total=4, desc="runs", unit="run") as bar:
        clock.now += 100
        bar.update(4)
        bar.set_postfix(k=3)
    assert "runs: 100%" in screen.getvalue()
    assert "k=3" in screen.getvalue()
    assert caplog.messages == []
