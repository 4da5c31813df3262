"""What a release needs, read as its readers will: workflows, recipe, image, licences."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import agl_sc

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
CONDA_NAMES = {"torch": "pytorch", "huggingface-hub": "huggingface_hub", "matplotlib": "matplotlib-base"}
KNOWN_TOOLS = {"agl-sc", "cd", "pytest", "python", "uv"}


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """Commands of a shell text, one of a line or chained, as words."""
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [shlex.split(part) for line in lines for part in line.split("&&") if part.strip()]


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in parsed(path)["jobs"].values() for step in job["steps"]]


def gate() -> list[str]:
    """Commands of the gate, as they are spelt."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith("scripts/in-env")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_runs_what_exists(path: Path) -> None:
    workflow = parsed(path)
    assert workflow[True]  # "on", which YAML takes for a truth
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["steps"][0]["uses"].startswith("actions/checkout@")
    for step in steps(path):
        assert set(step) <= {"uses", "run", "with", "env", "name"}
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or re.fullmatch(r"[\w.-]+/[\w./-]+@[\w./-]+", step["uses"])
        for words in commands(step.get("run", "")):
            script = ROOT / words[0]
            assert words[0] in KNOWN_TOOLS or (script.is_file() and os.access(script, os.X_OK)), words
            named = [word for word in words if word.startswith(("tests/", "docs/", "scripts/")) and "*" not in word]
            assert [word for word in named if not (ROOT / word).exists()] == [
                word for word in named if "_build" in word
            ]


def test_the_tests_are_a_package_which_no_foreign_one_of_the_name_hides() -> None:
    """Dependencies install theirs as ``tests`` into site-packages now and then, and pytest 8 took that."""
    found = importlib.util.find_spec("tests")
    assert found is not None
    assert found.origin == str(ROOT / "tests" / "__init__.py")


def test_all_pythons_run_the_gate() -> None:
    jobs = parsed(ROOT / ".github" / "workflows" / "test.yaml")["jobs"]
    offered = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert jobs["gate"]["strategy"]["matrix"]["python"] == offered
    assert jobs["gate"]["steps"][-1]["run"] == ".ci/run"


def test_ten_thousand_other_calls_are_fuzzed_every_night() -> None:
    workflow = parsed(ROOT / ".github" / "workflows" / "nightly.yaml")
    assert re.fullmatch(r"\d+ \d+ \* \* \*", workflow[True]["schedule"][0]["cron"])
    job = workflow["jobs"]["fuzz"]
    assert job["env"] == {"AGL_SC_FUZZ": "10000", "AGL_SC_FUZZ_FIRST": "${{ github.run_number }}0000"}
    assert "tests/test_fuzz.py" in job["steps"][-1]["run"]
    assert all(name in (ROOT / "tests" / "test_fuzz.py").read_text(encoding="utf-8") for name in job["env"])


def test_gate_is_spelt_the_same_everywhere() -> None:
    tests = gate()[-1]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tests in re.findall(r"^(scripts/in-env [^#\n]*?)\s*(?:#.*)?$", readme, re.MULTILINE)
    contributing = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert [command for command in gate() if command not in contributing] == []
    elsewhere = [step["run"] for path in WORKFLOWS for step in steps(path) if "pytest -n" in step.get("run", "")]
    assert set(elsewhere) == {tests, tests.removeprefix("scripts/in-env ")}


def test_publishing_needs_no_password() -> None:
    job = parsed(ROOT / ".github" / "workflows" / "release.yaml")["jobs"]["pypi"]
    assert job["permissions"] == {"id-token": "write"}
    assert job["steps"][-1]["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert all("secrets." not in path.read_text(encoding="utf-8") for path in WORKFLOWS)


def test_site_is_built_as_here() -> None:
    config = parsed(ROOT / ".readthedocs.yaml")
    assert (ROOT / config["sphinx"]["configuration"]).is_file()
    assert config["sphinx"]["fail_on_warning"]
    assert config["build"]["jobs"]["install"][-1] == "python -m pip install .[doc]"
    site = "scripts/in-env python -m sphinx -W -n -b html docs docs/_build"
    assert site in [step.get("run") for step in steps(ROOT / ".github" / "workflows" / "docs.yaml")]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_forms_and_settings_are_read(path: Path) -> None:
    found = parsed(path)
    if path.parent.name == "ISSUE_TEMPLATE" and path.stem != "config":
        assert {"name", "description", "body"} <= set(found)
        assert len({field["id"] for field in found["body"]}) == len(found["body"])
        assert all(field["attributes"]["label"] for field in found["body"])


def test_recipe_needs_what_the_package_needs() -> None:
    recipe = parsed(ROOT / "conda" / "recipe.yaml")
    needed = [Requirement(text) for text in PROJECT["dependencies"]]
    expected = {f"{CONDA_NAMES.get(each.name, each.name)} {each.specifier}" for each in needed}
    build = {str(Requirement(text)).replace(">", " >") for text in PYPROJECT["build-system"]["requires"]}
    assert set(recipe["requirements"]["host"]) == build | {"python ${{ python_min }}.*", "pip"}
    assert set(recipe["requirements"]["run"]) == expected | {"python >=${{ python_min }}"}
    assert recipe["context"]["version"] == PROJECT["version"] == agl_sc.__version__
    assert PROJECT["requires-python"] == f">={recipe['context']['python_min']}"
    assert recipe["build"]["python"]["entry_points"] == [f"{k} = {v}" for k, v in PROJECT["scripts"].items()]


def test_entry_of_the_registry_says_what_the_package_says() -> None:
    entry = parsed(ROOT / "scverse" / "meta.yaml")
    assert (entry["name"], entry["install"]) == (PROJECT["name"], {"pypi": PROJECT["name"]})
    assert (entry["version"], entry["license"]) == (PROJECT["version"], PROJECT["license"])
    assert entry["project_home"] == PROJECT["urls"]["Source"]
    assert entry["documentation_home"] == PROJECT["urls"]["Documentation"]
    page = Path(entry["tutorials_home"].removeprefix(f"{PROJECT['urls']['Documentation']}en/latest/"))
    assert (ROOT / page.with_suffix(".ipynb")).is_file()
    extra = re.search(r"\[(\w+)\]", entry["test_command"])
    assert extra is not None
    assert extra[1] in PROJECT["optional-dependencies"]
    assert set(entry) >= {"description", "tags", "contact"}  # what else its schema requires


def test_image_is_made_of_what_exists() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {line[0] for line in lines} <= {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "ENV", "ENTRYPOINT", "CMD"}
    assert [line[0] for line in lines].index("USER") < [line[0] for line in lines].index("ENTRYPOINT")
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for name, rest in lines if name == "COPY" for word in rest.split()[:-1]}
    assert copied == sent
    assert all((ROOT / word).exists() for word in copied)
    python = re.search(r"FROM python:(3\.\d+)-", text)
    assert python is not None
    assert f"Programming Language :: Python :: {python[1]}" in PROJECT["classifiers"]


def test_package_is_typed_and_says_where_it_lives() -> None:
    assert (Path(agl_sc.__file__).parent / "py.typed").is_file()
    assert {"Documentation", "Source", "Issues", "Changelog", "Paper"} <= set(PROJECT["urls"])
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())


def test_environment_is_kept_where_nothing_else_is_installed(tmp_path: Path) -> None:
    """The version, tools and prose of pyproject.toml do not make a new environment; a dependency does."""
    (tmp_path / "scripts").mkdir()
    script = (ROOT / "scripts" / "in-env").read_text(encoding="utf-8")
    head = script.partition("if [ ! -e")[0]
    (tmp_path / "scripts" / "in-env").write_text(f'{head}\necho "$env"\n', encoding="utf-8")
    original = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def key(text: str) -> str:
        (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
        command = ["bash", str(tmp_path / "scripts" / "in-env"), "true"]
        environment = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    same = original.replace(f'version = "{PROJECT["version"]}"', 'version = "9.9.9"') + "\n[tool.other]\na = 1\n"
    other = original.replace('"accelerate>=1.2"', '"accelerate>=1.3"')
    assert len({original, same, other}) == 3
    assert key(same) == key(original)
    assert key(other) != key(original)


def test_links_of_the_readme_hold_on_pypi() -> None:
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join((ROOT / part["path"]).read_text(encoding="utf-8") for part in hook["fragments"])
    links = re.compile(r"\]\(([^)\s]+)\)")
    relative = [link for link in links.findall(text) if not link.startswith("https://")]
    assert len(relative) > 5
    assert [link for link in relative if not (ROOT / link).is_file()] == []
    for each in hook["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    assert [link for link in links.findall(text) if not link.startswith("https://")] == []
    shown = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert shown
    assert [link for link in shown if "/blob/" in link] == []


def test_licences_are_listed() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "licences.py")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {line.split()[2] for line in lines[:-1]}
    assert {Requirement(text).name.lower() for text in PROJECT["dependencies"]} <= names
    sizes = [float(line.split()[0]) for line in lines]
    assert sizes[:-1] == sorted(sizes[:-1], reverse=True)
    assert sizes[-1] == pytest.approx(sum(sizes[:-1]), abs=0.1 * len(lines))
    refused = subprocess.run([*command, "gpu"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("'gpu' is not an extra; they are bench, slides, test, doc, dev.")
