"""Models on the hub: pushed and read with the real client against a local double of the hub."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from tests.hub_double import Hub, hub_double

from agl_sc._model_file import CARD, FORMAT, WEIGHTS, checksum
from agl_sc.core.choices import no_trace
from agl_sc.core.encoders.licences import licence_of
from agl_sc.core.network.network import Network
from agl_sc.model import Model

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own call of httpx
REPO = "me/breast-model"
N_FEATURES, GENES = 6, ["ERBB2", "KRT8", "a|b"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A local hub that huggingface_hub takes for the real one, with an empty cache."""
    with hub_double() as found:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        template = found.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", found.token)
        yield found


@pytest.fixture
def model() -> Model:
    """Three genes, one of them auxiliary, of the offline encoder."""
    torch.manual_seed(0)
    network = Network(N_FEATURES, len(GENES), rank=2, hidden=3)
    tensors = {f"network.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
    ones = torch.ones(len(GENES))
    features = {
        "encoder": "efficientnet_lite0",
        "weights_digest": "abc",
        "tile_px": 224,
        "mpp": 0.5,
        "image_mpp": {},
        "images": {},
        "sections": {},
    }
    card = {
        "features": features, "normalize": "log1p_cp10k", "params": {"seed": 0}, "versions": {"agl-sc": "0.1.0"},
        "fitted_on": {"C2": "d1", "C3": "d2"}, "split": "cafe",
    }  # fmt: skip
    return Model(
        tensors={**tensors, "feature_scale": torch.ones(N_FEATURES), "slope": ones, "intercept": ones.clone()},
        genes=GENES,
        weights=np.array([1.0, 1.0, 0.8]),
        n_targets=2,
        selected=np.ones(3, dtype=bool),
        method="agl",
        search=None,
        cutoff=None,
        best_epoch=1,
        card=card,
        history=pd.DataFrame({"epoch": [0, 1], "validation_pearson": [0.2, 0.25]}),
        cutoff_trace=no_trace().astype(float),
    )


def of_encoder(model: Model, name: str, *, finetuned: bool = False) -> Model:
    tensors = {**model.tensors, "encoder.weight": torch.ones(2)} if finetuned else model.tensors
    return replace(model, tensors=tensors, card={**model.card, "features": {**model.card["features"], "encoder": name}})


def header(readme: str) -> dict[str, Any]:
    return dict(cast("Any", ModelCard(readme)).data.to_dict())


def test_what_is_pushed_is_what_is_read(hub: Hub, model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        address = model.push_to_hub(REPO, tissue="human breast cancer")
    (number, files) = hub.repositories[REPO].commits[-1]
    assert address == f"{hub.address}/{REPO}/commit/{number}"
    assert len(hub.repositories[REPO].commits) == 2  # that of its making, and one for all files
    assert {CARD, WEIGHTS, "README.md"} <= set(files)
    assert hub.repositories[REPO].private
    read = Model.from_hub(REPO)
    features = np.random.default_rng(0).normal(size=(5, N_FEATURES))
    sections = np.array(["a"] * 5)
    np.testing.assert_array_equal(read.predict(features, sections), model.predict(features, sections))
    assert (read.genes, read.card, read.trust_encoder) == (model.genes, model.card, False)
    assert Model.from_hub(REPO, trust_encoder=True).trust_encoder


def test_a_revision_stays_what_it_was(hub: Hub, model: Model) -> None:
    first = model.push_to_hub(REPO, tissue="human breast cancer").rpartition("/")[2]
    replace(model, best_epoch=7).push_to_hub(REPO, tissue="human breast cancer")
    assert Model.from_hub(REPO, revision=first).best_epoch == 1
    assert Model.from_hub(REPO).best_epoch == 7
    with pytest.raises(KeyError, match=r"revision='nothing' is none of 'me/breast-model'; leave it out for the newest"):
        Model.from_hub(REPO, revision="nothing")


def test_without_a_network_what_was_read_before_is_there(
    hub: Hub, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = model.push_to_hub(REPO, tissue="human breast cancer").rpartition("/")[2]
    Model.from_hub(REPO, revision=number)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    n_requests = len(hub.requests)
    assert Model.from_hub(REPO, revision=number).genes == GENES
    assert len(hub.requests) == n_requests
    with pytest.raises(
        ConnectionError, match=r"'me/other' could not be read from .*; check the network and HF_HUB_OFFLINE"
    ):
        Model.from_hub("me/other")


def test_a_person_reads_it(hub: Hub, model: Model) -> None:
    said: dict[str, Any] = {
        "tissue": "human breast cancer", "patients": "8 women", "licence": "CC-BY-4.0", "limits": "Not for lobular cancer.",
        "citation": "Doe et al., 2026.",
    }  # fmt: skip
    scores = {
        "by": "section",
        "words": "2 sections, each predicted from the others",
        "sections": ["C2", "C3"],
        "columns": {"pearson": [0.31, 0.2, None]},
    }
    replace(model, card={**model.card, "scores": scores}).push_to_hub(REPO, **said)
    readme = hub.repositories[REPO].commits[-1][1]["README.md"].decode()
    assert header(readme) == {
        "license": "cc-by-4.0",
        "library_name": "agl-sc",
        "tags": ["agl-sc", "histology", "spatial-transcriptomics", "gene-expression"],
    }
    for text in (
        *said.values(),
        "C2, C3",
        "cafe",
        "0.250, at epoch 1",
        "log(1 + counts per 10,000)",
        "Apache-2.0",
        "224 px at 0.5 um/px",
    ):
        if text != "CC-BY-4.0":
            assert text in readme
    assert "| ERBB2 | target | 1.00 | 0.31 |" in readme
    assert "| a\\|b | auxiliary | 0.80 |  |" in readme
    assert f'agl_sc.Model.from_hub("{REPO}")' in readme
    assert "Not for diagnosis" in readme


@pytest.mark.parametrize(
    ("encoder", "licence", "expected"),
    [
        ("efficientnet_lite0", None, {"license": "apache-2.0"}),
        ("UNI2-h", None, {"license": "cc-by-nc-nd-4.0", "base_model": "MahmoodLab/UNI2-h"}),
        (
            "Phikon-v2",
            None,
            {"license": "other", "license_name": "Owkin non-commercial", "base_model": "owkin/phikon-v2"},
        ),
        ("hf-hub:somebody/encoder", None, {"license": "unknown", "base_model": "somebody/encoder"}),
        ("hf-hub:somebody/encoder", "MIT", {"license": "mit", "base_model": "somebody/encoder"}),
        ("resnet18", None, {"license": "apache-2.0"}),
    ],
)
def test_the_licence_of_the_encoder_is_carried(
    *, hub: Hub, model: Model, encoder: str, licence: str | None, expected: dict[str, str]
) -> None:
    of_encoder(model, encoder).push_to_hub(REPO, tissue="breast", licence=licence)
    readme = hub.repositories[REPO].commits[-1][1]["README.md"].decode()
    found = header(readme)
    assert {name: found[name] for name in found if name not in ("library_name", "tags")} == expected
    assert (licence_of(encoder) or "not known; ask its authors") in readme


@pytest.mark.parametrize("name", ["UNI2-h", "hf-hub:MahmoodLab/UNI2-h", "UNI2-h@/home/me/uni", "H-optimus-0"])
def test_fine_tuned_weights_of_a_gated_encoder_stay_here(hub: Hub, model: Model, name: str) -> None:
    message = r"holds the weights of (UNI2-h|H-optimus-0), fine-tuned, and these are not to be passed on: .*; push a model trained with finetune=False"
    with pytest.raises(ValueError, match=message):
        of_encoder(model, name, finetuned=True).push_to_hub(REPO, tissue="breast")
    assert not hub.requests


def test_fine_tuned_weights_of_unknown_licence(hub: Hub, model: Model) -> None:
    tuned = of_encoder(model, "hf-hub:somebody/encoder", finetuned=True)
    with pytest.raises(ValueError, match=r"whose licence is not known; pass licence= if you may pass them on"):
        tuned.push_to_hub(REPO, tissue="breast")
    tuned.push_to_hub(REPO, tissue="breast", licence="MIT")
    assert "inside this repository, fine-tuned" in hub.repositories[REPO].commits[-1][1]["README.md"].decode()


def test_an_encoder_of_this_machine(hub: Hub, model: Model) -> None:
    with pytest.raises(
        ValueError, match=r"is a file of this machine \('resnet18@/home/me/weights.pth'\), which others do not have"
    ):
        of_encoder(model, "resnet18@/home/me/weights.pth").push_to_hub(REPO, tissue="breast")
    of_encoder(model, "UNI2-h@/home/me/uni").push_to_hub(REPO, tissue="breast")
    files = hub.repositories[REPO].commits[-1][1]
    assert b"/home/me" not in files[CARD] + files["README.md"]
    assert Model.from_hub(REPO).card["features"]["encoder"] == "UNI2-h"


def files_of(model: Model, tmp_path: Path) -> dict[str, bytes]:
    model.save(tmp_path / "model")
    return {name: (tmp_path / "model" / name).read_bytes() for name in (CARD, WEIGHTS)}


def without(name: str) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {key: data for key, data in files.items() if key != name}


def truncated(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, WEIGHTS: files[WEIGHTS][:-10]}


def with_card(text: bytes) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    return lambda files: {**files, CARD: text}


def newer(files: dict[str, bytes]) -> dict[str, bytes]:
    fields = {**json.loads(files[CARD]), "format": FORMAT + 1}
    del fields["sha256"]
    return {**files, CARD: json.dumps({**fields, "sha256": checksum(files[WEIGHTS], fields)}).encode()}


BAD = [
    pytest.param(without(CARD), r"'me/breast-model' is not a model of agl-sc: model.json is missing; name a repository", id="no card"),
    pytest.param(without(WEIGHTS), r"is not a model of agl-sc: model.safetensors is missing", id="no weights"),
    pytest.param(with_card(b'{"model_type": "bert"}'), r"is not a model of agl-sc: model.json has no format", id="another's"),
    pytest.param(with_card(b"[1, 2]"), r"is not a model of agl-sc: model.json has no format", id="list"),
    pytest.param(with_card(b'{"format": 2, '), r"The model in 'me/breast-model' cannot be read \(model.json is truncated or altered .*\); name a whole one", id="half a card"),
    pytest.param(truncated, r"cannot be read \(it is truncated or altered: its files do not have the checksum in model.json\)", id="half the weights"),
    pytest.param(newer, rf"has format {FORMAT + 1}, and this agl-sc .* reads up to {FORMAT}; update it with pip install", id="newer"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "match"), BAD)
def test_what_is_no_model_of_ours_is_refused(
    *, hub: Hub, model: Model, tmp_path: Path, spoil: Callable[[dict[str, bytes]], dict[str, bytes]], match: str
) -> None:
    hub.put(REPO, spoil(files_of(model, tmp_path)))
    with pytest.raises(ValueError, match=match):
        Model.from_hub(REPO)


def test_tokens(*, hub: Hub, model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.put(REPO, files_of(model, tmp_path), private=True)
    assert Model.from_hub(REPO).genes == GENES
    monkeypatch.setenv("HF_TOKEN", "hf_stranger")
    with pytest.raises(FileNotFoundError, match=r"no repository 'me/other' that this token may see; check its name"):
        Model.from_hub("me/other")
    with pytest.raises(PermissionError, match=r"Hugging Face refuses the token for 'me/new'; run `hf auth login`"):
        model.push_to_hub("me/new", tissue="breast")
    model.push_to_hub("me/new", tissue="breast", token=hub.token)
    assert "me/new" in hub.repositories


@pytest.mark.parametrize("repo", ["", "name", "a/b/c", "../x", "me/a..b", "https://huggingface.co/me/x", None, 3])
def test_names_that_are_none(hub: Hub, model: Model, repo: Any) -> None:
    for call in (lambda: Model.from_hub(repo), lambda: model.push_to_hub(repo, tissue="breast")):
        with pytest.raises(ValueError, match=r"repo=.* is no repository of the hub; pass such as 'owner/name'"):
            call()
    assert not hub.requests
