"""LLaDA2.0 and 2.1 equal the published implementation, through `mmdiff.load` alone."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.config import DecodingConfig, ExpertsConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import Sampler
from mmdiff.errors import CheckpointError, MMDiffError
from mmdiff.generation import collect
from mmdiff.modeling.checkpoint import canonical_state, config_of, save_folder
from mmdiff.modeling.moe import GroupedSigmoidRouter
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.pipeline import Pipeline, load
from mmdiff.serve.engine.detokenizer import settled_text
from tests.helpers.published import as_published, load_published

SOURCE = Path(__file__).parents[1] / "reference" / "llada2"
CASES = json.loads((SOURCE / "generate.json").read_text())
IDS = {"mask_token_id": 300}
MASK, EOS = 300, 301


@pytest.fixture(scope="module")
def llada2(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load_published(SOURCE, tmp_path_factory.mktemp("llada2"), **IDS)


@pytest.mark.parametrize("length", [8, 4, None])
def test_logits_equal_the_published_ones(llada2: Pipeline, length: int | None) -> None:
    expected = load_file(SOURCE / "forward.safetensors")
    ids, name = expected["input_ids"], "logits_full" if length is None else f"logits_block{length}"
    blocks = torch.arange(ids.shape[1]) // (length or ids.shape[1])
    with torch.no_grad():
        made = llada2.model(ids, segment_ids=blocks.expand_as(ids)).logits
    torch.testing.assert_close(made, expected[name], rtol=1e-4, atol=1e-4)


def settings_of(case: dict[str, Any], **changes: Any) -> DecodingConfig:
    params = case["params"]
    length, block = params["gen_length"], params["block_length"]
    given = {
        "gen_length": length,
        "block_length": block,
        "threshold": params["threshold"],
        "block_origin": "sequence",
    }
    if case["kind"] == "llada2":
        steps = min(params["steps"], length // params["minimal_topk"])
        given |= {"rule": "threshold_or_quota", "steps": steps * -(-length // block)}
    else:
        given |= {"rule": "editing", "stop": params["eos_early_stop"]}
        for key in ("editing_threshold", "max_post_steps", "num_to_transfer"):
            given[key] = params[key]
    return DecodingConfig(**(given | changes))


def decode(model: MMDiffModel, prompts: list[list[int]], decoding: DecodingConfig) -> Sampler:
    """The sampler with canvases that reach to the end of a block."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(each)) + each for each in prompts])
    valid = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    lengths = []
    for each in prompts:
        total = len(each) + decoding.gen_length
        lengths.append(decoding.gen_length + -total % decoding.block_length)
    runner = make_runner(ModelRunner(model, ids, valid), decoding)
    canvas = Canvas.ragged(lengths, max(lengths), MASK)
    limits = [decoding.gen_length] * len(prompts)
    return Sampler(runner, canvas, decoding, model.model_config.tokens, limits=limits)


def answers(sampler: Sampler) -> list[list[int]]:
    """Of each sequence, up to its end token and with it."""
    made = []
    for row in collect(sampler).canvas.ids_BG.tolist():
        row = [token for token in row if token >= 0]
        made.append(row[: row.index(EOS) + 1] if EOS in row else row)
    return made


@pytest.mark.parametrize("cache", ["none", "finished_blocks"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_ids_equal_the_published_samplers(llada2: Pipeline, number: int, cache: str) -> None:
    case = CASES[number]
    sampler = decode(llada2.model, [case["prompt"]], settings_of(case, cache=cache))
    steps = 0
    while sampler.working:
        sampler.step()
        steps += 1
    assert case["prompt"] + answers(sampler)[0] == case["output"]
    if EOS in case["output"] and case["kind"] == "llada2":
        assert steps <= case["nfe"]  # the rest of a block behind the end changes nothing
    else:
        assert steps == case["nfe"]


@pytest.mark.parametrize("kind", ["llada2", "llada21"])
def test_a_sequence_of_a_batch_is_that_alone(llada2: Pipeline, kind: str) -> None:
    case = next(each for each in CASES if each["kind"] == kind)
    prompts = [each["prompt"] for each in CASES[:4]]
    decoding = settings_of(case, gen_length=16)
    together = answers(decode(llada2.model, prompts, decoding))
    assert together == [answers(decode(llada2.model, [each], decoding))[0] for each in prompts]


@pytest.mark.parametrize("rule", ["threshold_or_quota", "editing"])
def test_an_answer_of_the_pipeline_is_cut_at_its_length(llada2: Pipeline, rule: str) -> None:
    """Its last block is completed, and what that adds is not told."""
    asked = [{"role": "user", "content": "5 6 7"}]
    shorter = {"gen_length": 11, "block_length": 8, "steps": 16, "rule": rule, "stop": False}
    batch = llada2.start([asked], **shorter)
    while batch.working:
        batch.step()
    (sequence,) = batch.running
    assert (sequence.prompt.length + sequence.length) % 8 == 0 and sequence.length >= 11
    assert batch.pop_finished().canvas.ids_BG.shape == (1, 11)


def test_blocks_are_counted_from_the_start_of_the_sequence(llada2: Pipeline) -> None:
    prompted = ModelRunner(llada2.model, torch.tensor([[1, 2, 3]]))
    with pytest.raises(MMDiffError, match="block_origin='answer' does not fit"):
        make_runner(prompted, DecodingConfig(8, 8, 8))


def test_saved_and_loaded_it_is_the_same(llada2: Pipeline, tmp_path: Path) -> None:
    save_folder(llada2.model, llada2.processor, tmp_path / "saved")
    again = load(tmp_path / "saved", device="cpu")
    assert again.model.model_config == llada2.model.model_config
    before, after = canonical_state(llada2.model), canonical_state(again.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_router_by_its_formula() -> None:
    """The bias chooses and does not weigh; only the best groups are chosen from."""
    torch.manual_seed(0)
    config = ExpertsConfig(
        12,
        3,
        4,
        router="grouped_sigmoid",
        router_bias=True,
        num_groups=4,
        groups_per_token=2,
        scale=2.5,
    )
    router, x = GroupedSigmoidRouter(5, config), torch.randn(7, 5)
    assert router.expert_bias is not None
    router.expert_bias.copy_(torch.randn(12) / 4)
    weights, experts = router(x)
    for row in range(7):
        s = (router.weight @ x[row]).sigmoid()
        c = (s + router.expert_bias).view(4, 3)
        best = c.sort(1, descending=True).values[:, :2].sum(1).argsort(descending=True)[:2]
        kept = torch.full((4, 3), -torch.inf)
        kept[best] = c[best]
        chosen = kept.flatten().argsort(descending=True)[:3]
        assert experts[row].tolist() == chosen.tolist()
        torch.testing.assert_close(weights[row], 2.5 * s[chosen] / s[chosen].sum())


PUBLISHED = {
    "vocab_size": 157184,
    "hidden_size": 2048,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "rotary_dim": 64,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "mask_token_id": None,
    "max_position_embeddings": 32768,
}


def test_settings_of_the_published_sizes(tmp_path: Path) -> None:
    """16,255,643,392 parameters and buffers of mini in 20 layers, all but the first alike."""
    counts = []
    for layers in (1, 2):
        folder = as_published(SOURCE, tmp_path, **PUBLISHED, num_hidden_layers=layers)
        with torch.device("meta"):
            model = MMDiffModel(MMDiffConfig.of(config_of(folder)))
        counts.append(sum(each.numel() for each in model.state_dict().values()))
    assert counts[0] + 19 * (counts[1] - counts[0]) == 16_255_643_392
    config = config_of(folder)
    assert (config.tokens.mask, config.tokens.eos) == (156895, 156892)
    assert (config.decoding.rule, config.decoding.block_length) == ("editing", 32)
    earlier = as_published(SOURCE, tmp_path, **PUBLISHED | {"max_position_embeddings": 16384})
    assert config_of(earlier).decoding.rule == "threshold_or_quota"


# All that a configuration may say besides: 0 key heads means as many as query heads.
OTHER = {
    "num_experts": 18,
    "n_group": 6,
    "topk_group": 3,
    "use_bias": True,
    "use_qkv_bias": True,
    "num_shared_experts": 2,
    "first_k_dense_replace": 0,
    "partial_rotary_factor": 1,
    "rotary_dim": None,
    "num_key_value_heads": 0,
    "use_qk_norm": False,
}


def test_every_variant_has_its_tensors(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = MMDiffModel(
            MMDiffConfig.of(config_of(as_published(SOURCE, tmp_path, **IDS | OTHER)))
        )
    state = model.state_dict()
    layer = "backbone.layers.0."
    assert state[layer + "mlp.shared_expert.up_proj.weight"].shape == (32, 48)
    assert state[layer + "mlp.gate.expert_bias"].shape == (18,)
    assert state[layer + "self_attn.o_proj.bias"].shape == (48,)
    assert state[layer + "self_attn.k_proj.bias"].shape == (64,)
    assert not any("q_norm" in name for name in state)
    assert model.backbone.config.rotary_dim == 16


def published_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors under LLaDA2's names, queries, keys and values joined."""
    names = {
        "backbone.": "model.",
        "model.embed_tokens": "model.word_embeddings",
        "model.lm_head": "lm_head",
        "self_attn.o_proj": "attention.dense",
        "shared_expert.": "shared_experts.",
    }
    made: dict[str, torch.Tensor] = {}
    joined: dict[str, list[torch.Tensor]] = {}
    for name, tensor in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        if (found := re.fullmatch(r"(.*)self_attn\.[qkv]_proj\.(.*)", name)) is not None:
            joined.setdefault(found.expand(r"\1attention.query_key_value.\2"), []).append(tensor)
        else:
            made[name] = tensor
    return made | {name: torch.cat(parts) for name, parts in joined.items()}


def test_every_variant_loads_by_its_published_names(tmp_path: Path) -> None:
    folder = as_published(SOURCE, tmp_path, **IDS | OTHER)
    torch.manual_seed(0)
    state = MMDiffModel(MMDiffConfig.of(config_of(folder))).state_dict()
    for tensor in state.values():
        tensor.normal_(std=0.2)
    save_file(published_names(state), folder / "model.safetensors")
    loaded = load(folder, device="cpu")
    after = loaded.model.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(state[name], after[name]) for name in state)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before, later = (loaded.model(ids[:, :length]).logits[:, :32] for length in (32, 40))
    torch.testing.assert_close(before, later)  # a block never sees those behind it


@pytest.mark.parametrize("rule", ["threshold_or_quota", "editing"])
def test_with_guidance_and_guesses_the_cache_is_exact(llada2: Pipeline, rule: str) -> None:
    asked = [{"role": "user", "content": "5 6 7 8"}]
    settings = {"gen_length": 12, "block_length": 8, "steps": 16, "stop": False}
    settings |= {"rule": rule, "threshold": 0.5, "editing_threshold": 0.3}
    found = []
    for more in ({"cfg_scale": 1.0}, {"lookahead": 2}, {}):
        for cache in ("none", "finished_blocks"):
            batch = llada2.start([asked], **settings, **more, cache=cache)
            found.append(collect(batch).canvas.ids_BG.tolist())
    assert found[0] == found[1] and found[2] == found[3] == found[4] == found[5]


@pytest.mark.parametrize("rule", ["threshold_or_quota", "editing"])
def test_text_is_settled_only_where_nothing_replaces_it(llada2: Pipeline, rule: str) -> None:
    asked = [{"role": "user", "content": "5 6 7"}]
    settings = {"threshold": 0.2, "editing_threshold": 0.1, "rule": rule, "stop": False}
    batch = llada2.start([asked], gen_length=21, block_length=8, steps=24, **settings)
    told = list[str]()
    while batch.working:
        batch.step()
        told.append(settled_text(llada2, batch, 0))
    assert len(told[-1].split()) == 21
    assert all(told[-1].startswith(each) for each in told)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("score_function", "softmax"),
        ("router_dtype", "bf16"),
        ("norm_head", True),
        ("use_rmsnorm", False),
        ("rotary_dim", 6),
        ("head_dim", None),
        ("topk_group", 5),
        ("use_sliding_window", True),
        ("tie_word_embeddings", True),
        ("num_nextn_predict_layers", 1),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    told = {"topk_group": "groups_per_token"}.get(key, key.removeprefix("use_"))
    with pytest.raises(CheckpointError, match=told):
        config_of(as_published(SOURCE, tmp_path, **IDS | {key: value}))
