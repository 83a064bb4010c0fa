"""The verbs, on random weights of the shipped sizes: what comes out has the right form, alone and in a batch."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.errors import CheckpointError, MMDiffError
from mmdiff.pipeline import Answer, Pipeline, find, load

RED, BLUE = Image.new("RGB", (70, 40), "red"), Image.new("RGB", (64, 64), "blue")


@pytest.fixture(scope="module")
def pipeline(random_tiny: Path) -> Pipeline:
    """Random weights, kept from ending an answer early so that there is something to compare."""
    loaded = load(random_tiny, device="cpu")
    config = loaded.model.model_config
    loaded.model.model_config = dataclasses.replace(
        config, decoding=dataclasses.replace(config.decoding, gen_length=12, block_length=4, threshold=None, steps=9)
    )
    return loaded


def same(one: Answer, other: Answer) -> bool:
    return one.text == other.text and [t.step for t in one.tokens] == [t.step for t in other.tokens]


def test_a_row_in_a_batch_answers_as_alone(pipeline: Pipeline) -> None:
    """Ragged rows: no picture, one, two; short and long questions."""
    pictures: list[Any] = [RED, None, [RED, BLUE], BLUE, RED, BLUE, None, RED]
    questions = [f"what {'really ' * n}is it?" for n in range(8)]
    together = pipeline.ask(pictures, questions)
    for picture, question, answer in zip(pictures, questions, together, strict=True):
        alone = pipeline.ask(picture, question)
        assert same(alone, answer)
        for here, there in zip(alone.tokens, answer.tokens, strict=True):
            assert here.confidence == pytest.approx(there.confidence, abs=1e-4)


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"order": "random"}, {"cfg_scale": 0.5}, {"threshold": 0.1}])
def test_options_keep_rows_apart_and_repeat(pipeline: Pipeline, options: dict[str, Any]) -> None:
    together = pipeline.ask([RED, BLUE], ["what?", "where is it?"], seed=5, **options)
    assert same(together[1], pipeline.ask(BLUE, "where is it?", seed=6, **options))
    assert same(together[0], pipeline.ask(RED, "what?", seed=5, **options))


def test_a_picture_may_come_in_any_form(pipeline: Pipeline, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    forms: list[Any] = [tmp_path / "red.png", str(tmp_path / "red.png"), (tmp_path / "red.png").read_bytes(),
                        np.asarray(RED)]
    answers = [pipeline.ask(form, "what?") for form in [RED, *forms]]
    assert all(same(answers[0], answer) for answer in answers)


def test_the_stream_ends_with_the_answer(pipeline: Pipeline) -> None:
    drafts = list(pipeline.stream(RED, "what?"))
    answer = pipeline.ask(RED, "what?")
    assert [draft.step for draft in drafts] == list(range(answer.steps))
    assert drafts[-1].tokens == answer.tokens
    decided = [sum(token is not None for token in draft.tokens) for draft in drafts]
    assert decided[0] < len(drafts[0].tokens)
    before = dict(enumerate(drafts[0].tokens))
    for draft in drafts[1:]:  # what is decided stays
        assert all(before[i] in (None, token) for i, token in enumerate(draft.tokens) if i in before)


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 0.5}, {"temperature": 1.0}])
def test_streaming_leaves_the_caller_s_gradients_alone(pipeline: Pipeline, options: dict[str, Any]) -> None:
    """A generator that yields inside inference mode would switch gradients off for whoever reads it."""
    for _ in pipeline.stream(RED, "what?", **options):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_captions(pipeline: Pipeline) -> None:
    assert same(pipeline.caption(RED, "word"), pipeline.ask(RED, "Describe the picture in one word.", gen_length=8))
    assert len(pipeline.caption([RED, BLUE])) == 2
    with pytest.raises(MMDiffError, match="length='novel' is not known"):
        pipeline.caption(RED, "novel")  # type: ignore[arg-type]


def test_an_empty_batch_is_empty(pipeline: Pipeline) -> None:
    assert pipeline.ask([], []) == []


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((RED, "  "), {}, "the question is empty"),
        ((RED, "what?"), {"stepps": 3}, "unknown decoding setting 'stepps'"),
        ((RED, "what?"), {"steps": 0}, "steps=0"),
        ((RED, "what?"), {"gen_length": 0}, "gen_length=0"),
        ((RED, "what?"), {"block_length": -1}, "block_length=-1"),
        ((RED, "what?"), {"steps": 2}, "steps=2 is fewer than the 3 blocks"),
        ((RED, "what?"), {"temperature": -1.0}, "temperature=-1.0"),
        ((RED, "what?"), {"threshold": 1.5}, "threshold=1.5"),
        ((RED, "what?"), {"order": "best"}, "order='best'"),
        ((RED, "what?"), {"gen_length": 1000, "steps": 1000}, "gen_length=1000 and a prompt of"),
        (([RED], ["what?", "why?"]), {}, "2 questions need a list of 2 pictures, not a list of 1"),
        (("nowhere.png", "what?"), {}, "nowhere.png"),
    ],
)
def test_misfits(pipeline: Pipeline, arguments: tuple[Any, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(MMDiffError, match=message):
        pipeline.ask(*arguments, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "unknown model 'nothing'"),
        ("llada-8b", "ships no weights for 'llada-8b'"),
        ("some/where", "could it be fetched"),
        ("./nowhere/here", "unknown model"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find(name)


def test_an_unknown_dtype(random_tiny: Path) -> None:
    with pytest.raises(MMDiffError, match="dtype='float17'"):
        load(random_tiny, dtype="float17")


def test_bfloat16_runs(random_tiny: Path) -> None:
    loaded = load(random_tiny, device="cpu", dtype="bfloat16")
    assert loaded.model.dtype == torch.bfloat16
    assert isinstance(loaded.ask(RED, "what?", gen_length=4, block_length=4), Answer)


def test_device_map_runs(random_tiny: Path) -> None:
    loaded = load(random_tiny, device="cpu", device_map="auto")
    assert isinstance(loaded.ask(RED, "what?", gen_length=4, block_length=4), Answer)


def test_a_pipeline_can_be_pickled(pipeline: Pipeline) -> None:
    pipeline.choose(RED, "which?", ["red", "blue"])  # compiles what cannot be pickled
    again = pickle.loads(pickle.dumps(pipeline))
    assert same(again.ask(RED, "what is it?"), pipeline.ask(RED, "what is it?"))
    assert again.choose(RED, "which?", ["red", "blue"]).value == pipeline.choose(RED, "which?", ["red", "blue"]).value


@pytest.mark.parametrize(("options", "message"), [
    ({"device_map": "banana"}, "device_map='banana' is not known; use 'auto'"),
    ({"device_map": {"": 0}}, "device_map={'': 0} is not known"),
    ({"dtype": "int8"}, "dtype='int8' does not fit"), ({"dtype": torch.int8}, "dtype=torch.int8 does not fit"),
    ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
])
def test_how_to_load_is_refused_by_name(random_tiny: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MMDiffError, match=message):
        load(random_tiny, **options)


def test_settings_are_fetched_before_weights(monkeypatch: pytest.MonkeyPatch, reference: Path, tmp_path: Path) -> None:
    """What mmdiff does not load is refused without fetching it; settings alone are never more than JSON."""
    asked: list[list[str]] = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    (tmp_path / "config.json").write_bytes((reference / "dream" / "config.json").read_bytes())
    assert find("some/model", weights=False) == tmp_path
    assert all(pattern.endswith("config.json") for pattern in asked[0]) and len(asked) == 1
    assert find("some/model") == tmp_path and "*.safetensors" in asked[-1]
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    asked.clear()
    with pytest.raises(CheckpointError, match="LlamaForCausalLM"):
        load("some/model", device="cpu")
    assert len(asked) == 1 and "*.safetensors" not in asked[0]
