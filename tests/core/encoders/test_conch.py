"""CONCH's image tower: the names of the released weights, and the features by hand."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from agl_sc.core.encoders import conch
from agl_sc.core.encoders import load as encoders
from agl_sc.core.encoders.conch import conch_module
from agl_sc.core.encoders.load import load_encoder, weights_digest
from agl_sc.core.encoders.pathology import card_of

State = dict[str, torch.Tensor]
WIDTH, N_FEATURES, N_HEADS = 32, 512, 8


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"img_size": 64, "embed_dim": WIDTH, "depth": 2, "num_heads": 4}.items():
        monkeypatch.setitem(conch.TRUNK, name, value)


@pytest.fixture
def state() -> State:
    """Random weights under the names of ``pytorch_model.bin``."""
    shapes: dict[str, tuple[int, ...]] = {
        "visual.trunk.cls_token": (1, 1, WIDTH),
        "visual.trunk.pos_embed": (1, 1 + 16, WIDTH),
        "visual.trunk.patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "visual.trunk.patch_embed.proj.bias": (WIDTH,),
        "visual.attn_pool_contrast.query": (1, N_FEATURES),
        "visual.attn_pool_contrast.attn.q_proj_weight": (N_FEATURES, N_FEATURES),
        "visual.attn_pool_contrast.attn.k_proj_weight": (N_FEATURES, WIDTH),
        "visual.attn_pool_contrast.attn.v_proj_weight": (N_FEATURES, WIDTH),
        "visual.attn_pool_contrast.attn.in_proj_bias": (3 * N_FEATURES,),
        "visual.attn_pool_contrast.attn.out_proj.weight": (N_FEATURES, N_FEATURES),
        "visual.attn_pool_contrast.attn.out_proj.bias": (N_FEATURES,),
        "visual.proj_contrast": (N_FEATURES, N_FEATURES),
        "visual.attn_pool_caption.query": (4, 8),
        "visual.ln_caption.weight": (8,),
        "text.token_embedding.weight": (5, 8),
        "text_decoder.text_projection": (8, 5),
        "logit_scale": (),
    }
    norms = {
        "trunk.norm": WIDTH,
        "attn_pool_contrast.ln_q": N_FEATURES,
        "attn_pool_contrast.ln_k": WIDTH,
        "ln_contrast": N_FEATURES,
    }
    for block in ("trunk.blocks.0", "trunk.blocks.1"):
        norms |= {f"{block}.norm1": WIDTH, f"{block}.norm2": WIDTH}
        for name, shape in {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}.items():
            n_out, n_in = (factor * WIDTH for factor in shape)
            shapes |= {f"visual.{block}.{name}.weight": (n_out, n_in), f"visual.{block}.{name}.bias": (n_out,)}
    for name, width in norms.items():
        shapes |= {f"visual.{name}.weight": (width,), f"visual.{name}.bias": (width,)}
    randomness = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=randomness) / 4 for name, shape in shapes.items()}


def scaled_tiles() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def by_hand(state: State, tiles: torch.Tensor) -> torch.Tensor:
    """Tokens by timm's own ViT-B/16, the pooling in plain arithmetic and double precision."""
    trunk = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0, **conch.TRUNK).eval()
    own = {name.removeprefix("visual.trunk."): v for name, v in state.items() if name.startswith("visual.trunk.")}
    trunk.load_state_dict(own)
    with torch.inference_mode():
        tokens = trunk.forward_features(tiles).double()  # type: ignore[operator]
    pool = {name.removeprefix("visual.attn_pool_contrast."): v.double() for name, v in state.items()}

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        centred = values - values.mean(dim=-1, keepdim=True)
        spread = (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return centred / spread * pool[f"{name}.weight"] + pool[f"{name}.bias"]

    def heads(values: torch.Tensor, part: str, place: int) -> torch.Tensor:
        bias = pool["attn.in_proj_bias"][place * N_FEATURES : (place + 1) * N_FEATURES]
        projected = values @ pool[f"attn.{part}_proj_weight"].T + bias
        return projected.reshape(*projected.shape[:-1], N_HEADS, -1).transpose(-2, -3)

    normed = norm(tokens, "ln_k")
    query, key, value = heads(norm(pool["query"], "ln_q"), "q", 0), heads(normed, "k", 1), heads(normed, "v", 2)
    weights = torch.softmax(query @ key.mT / math.sqrt(N_FEATURES // N_HEADS), dim=-1)
    attended = (weights @ value).transpose(-2, -3).flatten(-2)[:, 0]
    pooled = attended @ pool["attn.out_proj.weight"].T + pool["attn.out_proj.bias"]
    return norm(pooled, "visual.ln_contrast").float()


def test_features_are_the_normed_contrast_query_before_the_projection(state: State) -> None:
    tiles = scaled_tiles()
    with torch.inference_mode():
        features = conch_module(state).eval()(tiles)
    expected = by_hand(state, tiles)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_tower_is_as_large_as_the_released_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViT-B/16 at 448 px: 28 x 28 patches and the class token, and a pool of 512."""
    for name, value in {"img_size": 448, "embed_dim": 768, "depth": 12, "num_heads": 12}.items():
        monkeypatch.setitem(conch.TRUNK, name, value)
    with torch.device("meta"):
        tower = conch.ImageTower(VisionTransformer(num_classes=0, **conch.TRUNK))
    shapes = {name: tuple(value.shape) for name, value in tower.state_dict().items()}
    assert shapes["trunk.pos_embed"] == (1, 785, 768)
    assert shapes["attn_pool_contrast.attn.k_proj_weight"] == (512, 768)
    assert sum(name.endswith("attn.qkv.weight") for name in shapes) == 12


def lack(state: State) -> None:
    del state["visual.attn_pool_contrast.ln_q.bias"]


def exceed(state: State) -> None:
    state["visual.trunk.head.weight"] = torch.zeros(2, WIDTH)


def misfit(state: State) -> None:
    state["visual.ln_contrast.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lack, "visual.attn_pool_contrast.ln_q.bias"),
        (exceed, "visual.trunk.head.weight"),
        (misfit, "visual.ln_contrast.weight"),
        (dict.clear, "visual.attn_pool_contrast.attn.in_proj_bias"),
    ],
    ids=["lacks one", "one too many", "another size", "none"],
)
def test_other_weights_are_refused(state: State, spoil: Callable[[State], None], name: str) -> None:
    spoil(state)
    with pytest.raises(ValueError, match=rf"not those of CONCH \(e.g. '{name}'\); take pytorch_model.bin of"):
        conch_module(state)


def test_it_is_loaded_by_name_from_the_hub_and_from_a_folder(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models--MahmoodLab--CONCH" / "snapshots" / "1"
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("1")
    torch.save(state, folder / "pytorch_model.bin")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    card = card_of("CONCH")
    assert card is not None
    monkeypatch.setattr(encoders, "card_of", lambda _: replace(card, input_px=64))
    loaded = load_encoder("conch"), load_encoder(f"CONCH@{folder}")
    assert [encoder.name for encoder in loaded] == ["CONCH", f"CONCH@{folder}"]
    for encoder in loaded:
        assert encoder.n_features == N_FEATURES
        assert encoder.digest == weights_digest(conch_module(state).state_dict())
        tiles = torch.arange(3 * 64 * 64, dtype=torch.float32).reshape(1, 3, 64, 64).remainder(256).to(torch.uint8)
        with torch.inference_mode():
            expected = by_hand(state, encoder.scale(tiles))
            torch.testing.assert_close(encoder(tiles), expected, rtol=1e-4, atol=1e-5)
