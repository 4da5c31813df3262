"""The files of a benchmark: never over something else, never half, and read with a sentence."""

import json
import random
from pathlib import Path

import pytest

from agl_sc.tl import Benchmark
from agl_sc.tl._benchmark.files import (
    DIFFERENCES,
    PROVENANCE,
    REPORT,
    RESULTS,
    check_report_folder,
    read_provenance,
    read_table,
    write_files,
)

TEXTS = {
    PROVENANCE: json.dumps({"cross_validation": {"by": "section"}}),
    REPORT: "# Benchmark\n\n3 folds. Hash of the folds: `abc`.\n",
    RESULTS: "method,fold,seed,section,gene,metric,value\nridge,a,0,a,G1,mse,0.1\n",
    DIFFERENCES: "method,reference,metric,unit,n_units,mean,low,high,distinguishable\nagl,pgl,mse,gene,2,.1,.0,.2,True\n",
}
NEWER = {name: text.replace("0.1", "0.2") for name, text in TEXTS.items()}


def contents(folder: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in sorted(folder.iterdir())}


def test_an_earlier_report_is_replaced_and_the_rest_of_the_folder_stays(tmp_path: Path) -> None:
    for texts in (TEXTS, NEWER):
        write_files(check_report_folder(tmp_path / "report"), texts)
        (tmp_path / "report" / "notes.txt").write_text("mine")
    assert contents(tmp_path / "report") == {**NEWER, "notes.txt": "mine"}
    assert [each.name for each in tmp_path.iterdir()] == ["report"]


def test_a_folder_of_other_things_takes_a_report_beside_them(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    write_files(check_report_folder(tmp_path), TEXTS)
    assert contents(tmp_path) == {**TEXTS, "thesis.tex": "mine"}


@pytest.mark.parametrize("name", [REPORT, RESULTS, DIFFERENCES, PROVENANCE])
@pytest.mark.parametrize("text", ["", "# My report\n", "a,b\n1,2\n", '{"mine": 1}', "[]"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "in a report"])
def test_a_file_of_the_user_is_not_replaced(tmp_path: Path, *, name: str, text: str, beside: bool) -> None:
    if beside:
        write_files(tmp_path / "report", TEXTS)
    (tmp_path / "report").mkdir(exist_ok=True)
    (tmp_path / "report" / name).write_text(text)
    with pytest.raises(
        FileExistsError, match=rf"{name} is not of a benchmark and is not replaced; choose another folder"
    ):
        check_report_folder(tmp_path / "report")
    assert (tmp_path / "report" / name).read_text() == text


def test_a_report_without_its_provenance_is_not_known_for_one(tmp_path: Path) -> None:
    write_files(tmp_path / "report", TEXTS)
    (tmp_path / "report" / PROVENANCE).unlink()
    with pytest.raises(FileExistsError, match=r"report\.md is not of a benchmark"):
        check_report_folder(tmp_path / "report")


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "report", TEXTS)
    write_text = Path.write_text

    def full(path: Path, text: str, encoding: str) -> int:
        if path.name == DIFFERENCES:
            raise OSError(28, "No space left on device")
        return write_text(path, text, encoding=encoding)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_files(tmp_path / "report", NEWER)
        with pytest.raises(OSError, match="No space left"):
            write_files(tmp_path / "another", NEWER)
    assert contents(tmp_path / "report") == TEXTS
    assert [each.name for each in tmp_path.iterdir()] == ["report"]


def test_random_damage_is_named_or_does_no_harm(tmp_path: Path) -> None:
    refused = 0
    for seed in range(200):
        draw = random.Random(seed)
        write_files(check_report_folder(tmp_path / str(seed)), TEXTS)
        file = tmp_path / str(seed) / draw.choice([RESULTS, DIFFERENCES, PROVENANCE])
        data = bytearray(file.read_bytes())
        for _ in range(draw.randint(1, 5)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data[: draw.randrange(len(data))] if draw.random() < 0.3 else data)
        try:
            Benchmark.load(file.parent)
        except ValueError as error:
            refused += 1
            assert_is_a_sentence(error, file)
    assert refused > 50


def assert_is_a_sentence(error: ValueError, file: Path) -> None:
    assert str(error).startswith(f"{file} is damaged (")
    assert str(error).endswith("); save the benchmark again.")
    assert "\n" not in str(error)


def test_what_is_read(tmp_path: Path) -> None:
    write_files(tmp_path / "report", TEXTS)
    assert read_table(tmp_path / "report" / RESULTS)["value"].tolist() == [0.1]
    assert read_provenance(tmp_path / "report" / PROVENANCE) == json.loads(TEXTS[PROVENANCE])
