"""LLaDA-MoE equals the published implementation, through `mmdiff.load` alone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.config import DecodingConfig, ExpertsConfig, TokenIds, from_dict, to_dict
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.guidance import Guided
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.decoding.sampler import denoise
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import (
    CheckpointTensors,
    canonical_state,
    config_of,
    load_weights,
    save_folder,
)
from mmdiff.modeling.moe import MLP, SoftmaxRouter, SparseMoE
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.quantize import QUANTIZED, quantize
from mmdiff.pipeline import Pipeline, load
from tests.helpers.published import as_published, load_published

SOURCE = Path(__file__).parents[1] / "reference" / "lladamoe"
CASES = json.loads((SOURCE / "generate.json").read_text())
IDS = {"mask_token_id": 300}


@pytest.fixture(scope="module")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_published(SOURCE, tmp_path_factory.mktemp("lladamoe"), **IDS)


def test_logits_equal_the_published_ones(moe: Pipeline) -> None:
    expected = load_file(SOURCE / "forward.safetensors")
    ids, mask = expected["input_ids"], expected["attention_mask"].bool()
    with torch.no_grad():
        whole = moe.model(ids).logits
        masked = moe.model(ids, attention_mask=mask).logits
    torch.testing.assert_close(whole, expected["logits"], rtol=1e-4, atol=1e-4)
    # Padding sees itself here; nothing reads what comes of it.
    torch.testing.assert_close(masked[mask], expected["logits_masked"][mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_ids_equal_the_published_sampler(moe: Pipeline, case: dict[str, Any]) -> None:
    decoding = DecodingConfig(
        **{("order" if key == "remasking" else key): v for key, v in case["params"].items()},
        stop=False,
    )
    prompt, tokens = torch.tensor(case["prompt"]), moe.model.model_config.tokens
    prompted = ModelRunner(moe.model, prompt)
    runner: Any = prompted
    if decoding.cfg_scale:
        runner = Guided(prompted, prompted.unconditional(), decoding.cfg_scale)
    blank = Canvas.blank(len(prompt), decoding.gen_length, tokens.mask)
    canvases = list(denoise(runner, blank, decoding, tokens))
    assert torch.cat((prompt, canvases[-1].ids_BG), dim=1).tolist() == case["output"]
    assert len(canvases) == case["nfe"]


def test_a_sequence_of_a_batch_is_that_alone(moe: Pipeline) -> None:
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids)
    valid[1, :5] = 0
    with torch.no_grad():
        both = moe.model(ids, attention_mask=valid).logits
        alone = moe.model(ids[1:, 5:]).logits
    torch.testing.assert_close(both[1, 5:], alone[0], rtol=1e-5, atol=1e-5)


def test_saved_and_loaded_it_is_the_same(moe: Pipeline, tmp_path: Path) -> None:
    save_folder(moe.model, moe.processor, tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert again.model.model_config == moe.model.model_config
    before, after = canonical_state(moe.model), canonical_state(again.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# Grouped queries, a dense layer, a shared expert, a bias of the router, half of a head rotating.
OTHER = {
    "num_key_value_heads": 2,
    "moe_layer_freq": [0, 1, 1],
    "shared_expert_intermediate_size": 24,
    "moe_router_enable_expert_bias": True,
    "partial_rotary_factor": 0.5,
}


def other_weights() -> dict[str, torch.Tensor]:
    """Random weights by the published table of names and shapes."""
    N, K, D, E, V, dense, expert, shared = 32, 2, 8, 8, 320, 64, 16, 24
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, N),
        "lm_head.weight": (V, N),
        "model.norm.weight": (N,),
    }
    for number in range(3):
        layer = f"model.layers.{number}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}{name}.weight"] = (N,)
        for name in "qkvo":
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (K * D if name in "kv" else N, N)
        for name in "qk":
            shapes[f"{layer}self_attn.{name}_norm.weight"] = (D,)
        parts = {"mlp.": dense}
        if number:
            parts = {f"mlp.experts.{e}.": expert for e in range(E)} | {"shared_expert.": shared}
            shapes[f"{layer}mlp.gate.weight"] = (E, N)
            shapes[f"{layer}mlp.expert_bias"] = (E,)
        for part, size in parts.items():
            for name in ("gate", "up"):
                shapes[f"{layer}{part}{name}_proj.weight"] = (size, N)
            shapes[f"{layer}{part}down_proj.weight"] = (N, size)
    draws = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=draws) / 4 for name, shape in shapes.items()}


def test_every_variant_loads_and_is_saved(tmp_path: Path) -> None:
    folder = as_published(SOURCE, tmp_path / "other", **IDS, **OTHER)
    weights = other_weights()
    save_file(weights, folder / "model.safetensors")
    other = load(folder, device="cpu")
    layers = other.model.backbone.layers
    assert isinstance(layers[0].mlp, MLP) and isinstance(layers[1].mlp, SparseMoE)
    bias = layers[1].mlp.gate.expert_bias
    assert bias is not None and torch.equal(bias, weights["model.layers.1.mlp.expert_bias"])
    save_folder(other.model, other.processor, tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(other.model(ids).logits, again.model(ids).logits)


def test_router_by_its_formula() -> None:
    """The biased probability chooses and weighs; nothing is normalised."""
    torch.manual_seed(0)
    config = ExpertsConfig(6, 2, 4, shared_intermediate_size=3, router_bias=True)
    layer, x = SparseMoE(5, config), torch.randn(2, 3, 5)
    assert isinstance(layer.gate, SoftmaxRouter) and layer.gate.expert_bias is not None
    layer.gate.expert_bias.copy_(torch.randn(6) / 4)
    made = layer(x)
    for row in range(2):
        for place in range(3):
            h = x[row, place]
            p = (layer.gate.weight @ h).softmax(0) + layer.gate.expert_bias
            assert layer.shared_expert is not None
            y = layer.shared_expert(h)
            for number in p.argsort(descending=True)[:2].tolist():
                y = y + p[number] * layer.experts[number](h)
            torch.testing.assert_close(made[row, place], y)


def test_the_router_is_never_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    swapped: list[torch.nn.Linear] = []

    def keep(linear: torch.nn.Linear) -> torch.nn.Module:
        swapped.append(linear)
        return torch.nn.Identity()

    monkeypatch.setitem(QUANTIZED, "8bit", keep)
    layer = SparseMoE(5, ExpertsConfig(6, 2, 4))
    quantize(layer, "8bit")
    assert len(swapped) == 18 and layer.gate.weight.shape == (6, 5)


def test_settings_of_the_published_sizes(tmp_path: Path) -> None:
    """7,356,880,896 parameters, and its ids where the vocabulary is the published one."""
    published = {
        "vocab_size": 157184,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "expert_intermediate_size": 1024,
        "moe_layer_freq": [1] * 16,
        "mask_token_id": None,
    }
    config = config_of(as_published(SOURCE, tmp_path, **published))
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(config))
    assert sum(each.numel() for each in model.parameters()) == 7_356_880_896
    assert config.tokens == TokenIds(mask=156895, eos=156892, eot=156892, bos=156892, pad=156892)
    assert (config.decoding.gen_length, config.decoding.block_length) == (128, 32)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_qkv", 8.0),
        ("hidden_act", "gelu"),
        ("tie_word_embeddings", True),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("num_experts", None),
        ("num_experts_per_tok", 9),
        ("moe_layer_freq", [1, 1]),
        ("n_group", 8),
        ("d_model", 64),
        ("a_new_switch", True),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match="experts_per_token" if value == 9 else key):
        config_of(as_published(SOURCE, tmp_path, **IDS, **{key: value}))


def test_folders_of_before_load(moe: Pipeline) -> None:
    """A folder that was saved without the new settings has their defaults."""
    stored = to_dict(moe.model.model_config.backbone)
    for key in ("head_width", "rotary_fraction", "qk_norm", "o_bias", "experts", "attention_block"):
        del stored[key]
    backbone = from_dict(type(moe.model.model_config.backbone), stored)
    assert backbone == dataclasses.replace(
        moe.model.model_config.backbone, qk_norm=False, experts=None
    )


def test_weights_of_another_layout_name_are_refused(tmp_path: Path) -> None:
    weights = dict(CheckpointTensors(SOURCE))
    weights["model.layers.0.mlp.shared_experts.up_proj.weight"] = torch.zeros(2, 2)
    model = MMDiffModel(MMDiffConfig.of(config_of(as_published(SOURCE, tmp_path, **IDS))))
    with pytest.raises(CheckpointError, match=r"shared_experts\.up_proj"):
        load_weights(model, weights)
