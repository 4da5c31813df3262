"""Ways to damage a file, and what a reader may do about it."""

import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Damage = Callable[[Path], None]


def cut(share: float) -> Damage:
    """Keep the beginning of a file, but always lose a byte."""
    return lambda path: _change(path, lambda data: data[: min(int(len(data) * share), len(data) - 1)])


def flip(seed: int, n_bytes: int = 1) -> Damage:
    """Change bytes anywhere."""

    def change(data: bytes) -> bytes:
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), n_bytes):
            damaged[place] ^= int(rng.integers(1, 256))
        return bytes(damaged)

    return lambda path: _change(path, change)


def become(content: bytes) -> Damage:
    """Hold something else."""
    return lambda path: _change(path, lambda _: content)


def be_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap(name: str) -> Damage:
    """Hold what another file of the folder holds."""

    def change(path: Path) -> None:
        other = path.parent / name
        path.write_bytes(other.read_bytes())

    return change


def put(key: str, value: Any) -> Damage:
    """Change an entry of a JSON file; ``...`` takes it out."""

    def change(path: Path) -> None:
        said = json.loads(path.read_text())
        said.pop(key, None)
        path.write_text(json.dumps(said if value is ... else {**said, key: value}))

    return change


def _change(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


WRONG_KINDS = {
    "empty": b"",
    "text": b"hello\n",
    "zeros": bytes(300),
    "latin": "caf\xe9\t1\n".encode("latin-1"),
    "page": b"<!DOCTYPE html><html>404: not found</html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
}


def damaged(folder: Path, scratch: Path, changes: dict[str, dict[str, Damage]]) -> Iterator[tuple[str, Path, str]]:
    """Copies of a folder, each with one file damaged in one way: a name of the case, the copy, and the file."""
    for name, ways in changes.items():
        for way, change in ways.items():
            copy = scratch / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            change(copy / name)
            yield f"{name}: {way}", copy, name


def refusal(read: Callable[[], Any]) -> tuple[Any, str]:
    """What a reader returns, or the sentence with which it refuses; any other error is passed on with its place."""
    try:
        return read(), ""
    except (ValueError, KeyError, OSError) as error:
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        if "agl_sc" not in place:
            raise
        return None, str(error.args[0])
