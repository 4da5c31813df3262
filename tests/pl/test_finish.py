import os
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from agl_sc.pl._finish import check_save, finish, one_axes


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    calls: list[bool] = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(True))
    return calls


@pytest.mark.parametrize(
    ("interactive", "is_new", "show", "expected"),
    [
        (False, True, None, False),
        (True, True, None, True),
        (True, False, None, False),
        (False, False, True, True),
        (True, True, False, False),
    ],
    ids=["script", "notebook", "axes of the user", "asked for", "refused"],
)
def test_show(
    *,
    shown: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    interactive: bool,
    is_new: bool,
    show: bool | None,
    expected: bool,
) -> None:
    monkeypatch.setattr(mpl, "is_interactive", lambda: interactive)
    finish(one_axes(None, height_in=2), is_new=is_new, show=show, path=None)
    assert bool(shown) is expected


@pytest.mark.parametrize("name", ["figure.png", "figure.PDF", "figure.svg"])
def test_save_writes_the_format_of_the_ending(tmp_path: Path, name: str) -> None:
    path = check_save(str(tmp_path / name))
    finish(one_axes(None, height_in=2), is_new=True, show=None, path=path)
    magic = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[Path(name).suffix.lower()]
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_save_draws_the_whole_figure_at_200_dpi(tmp_path: Path) -> None:
    left, right = plt.figure(figsize=(4, 2), layout="constrained").subfigures(1, 2, squeeze=False).ravel()
    right.add_subplot()
    finish(left.add_subplot(), is_new=True, show=None, path=tmp_path / "figure.png")
    assert mpl.image.imread(tmp_path / "figure.png").shape[1] == pytest.approx(800, abs=60)


@pytest.mark.parametrize(
    ("error", "save", "message"),
    [
        (TypeError, True, "save=True is a bool, not a path"),
        (ValueError, ".", "is a folder; name a file in it"),
        (ValueError, "figure.docx", "ends in '.docx', not in one of .*pdf, .*png"),
        (FileNotFoundError, "absent/figure.png", "The folder '.*absent' of save=.* does not exist"),
    ],
)
def test_save_that_cannot_be(*, tmp_path: Path, error: type[Exception], save: Any, message: str) -> None:
    path = tmp_path / save if isinstance(save, str) else save
    with pytest.raises(error, match=message):
        check_save(path)


@pytest.mark.parametrize("exists", [False, True])
def test_save_without_write_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    path = tmp_path / "figure.png"
    if exists:
        path.touch()
    # as root every folder can be written, so the answer of the system is replaced
    denied = path if exists else tmp_path
    monkeypatch.setattr(os, "access", lambda asked, mode: not (asked == denied and mode == os.W_OK))
    with pytest.raises(PermissionError, match=r"figure\.png' cannot be written"):
        check_save(path)


def test_axes_of_the_user_are_drawn_on() -> None:
    ax = plt.figure().add_subplot()
    assert one_axes(ax, height_in=2) is ax
    with pytest.raises(TypeError, match="ax is a str, not a matplotlib Axes"):
        one_axes("ax", height_in=2)  # type: ignore[arg-type]


def test_a_full_disk_leaves_the_older_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "figure.png").write_text("older")

    def full(figure: Any, path: Path, **options: Any) -> None:
        Path(path).write_bytes(b"half of a figure")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="No space left"):
        finish(one_axes(None, height_in=2), is_new=True, show=None, path=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_text() == "older"
    assert [each.name for each in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(("name", "expected"), [("figure", "figure.png"), ("fig.", "fig.png"), ("a.b.svg", "a.b.svg")])
def test_a_figure_goes_where_matplotlib_would_put_it(tmp_path: Path, name: str, expected: str) -> None:
    finish(one_axes(None, height_in=2), is_new=True, show=None, path=tmp_path / name)
    assert [each.name for each in tmp_path.iterdir()] == [expected]


def test_a_figure_goes_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_text("older")
    (tmp_path / "figure.png").symlink_to("real.png")
    finish(one_axes(None, height_in=2), is_new=True, show=None, path=tmp_path / "figure.png")
    assert (tmp_path / "figure.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")
