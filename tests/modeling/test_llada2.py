"""LLaDA2.0 and 2.1 equal the published implementation, through `mmdiff.load` alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import Sampler
from mmdiff.generation import collect
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.pipeline import Pipeline
from tests.helpers.published import load_published

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
