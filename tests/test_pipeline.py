"""The verbs, on random weights of the shipped sizes: what comes out has the right form, alone and
in a batch."""

import dataclasses
import importlib
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmdiff
from mmdiff.answers import Answer
from mmdiff.errors import CheckpointError, MMDiffError
from mmdiff.modeling.hub import find
from mmdiff.pipeline import Pipeline, load

RED, BLUE = Image.new("RGB", (70, 40), "red"), Image.new("RGB", (64, 64), "blue")


@pytest.fixture(scope="module")
def pipeline(random_tiny: Path) -> Pipeline:
    """Random weights, kept from ending an answer early so that there is something to compare."""
    loaded = load(random_tiny, device="cpu")
    config = loaded.model.model_config
    loaded.model.model_config = dataclasses.replace(
        config,
        decoding=dataclasses.replace(
            config.decoding, gen_length=12, block_length=4, threshold=None, steps=9
        ),
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


@pytest.mark.parametrize(
    "options", [{"temperature": 1.0}, {"order": "random"}, {"cfg_scale": 0.5}, {"threshold": 0.1}]
)
def test_options_keep_rows_apart_and_repeat(pipeline: Pipeline, options: dict[str, Any]) -> None:
    together = pipeline.ask([RED, BLUE], ["what?", "where is it?"], seed=5, **options)
    assert same(together[1], pipeline.ask(BLUE, "where is it?", seed=6, **options))
    assert same(together[0], pipeline.ask(RED, "what?", seed=5, **options))


def test_a_picture_may_come_in_any_form(pipeline: Pipeline, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    forms: list[Any] = [
        tmp_path / "red.png",
        str(tmp_path / "red.png"),
        (tmp_path / "red.png").read_bytes(),
        np.asarray(RED),
    ]
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
        assert all(
            before[i] in (None, token) for i, token in enumerate(draft.tokens) if i in before
        )


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 0.5}, {"temperature": 1.0}])
def test_streaming_leaves_the_caller_s_gradients_alone(
    pipeline: Pipeline, options: dict[str, Any]
) -> None:
    """A generator that yields inside inference mode would switch gradients off for whoever reads
    it."""
    for _ in pipeline.stream(RED, "what?", **options):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_captions(pipeline: Pipeline) -> None:
    assert same(
        pipeline.caption(RED, "word"),
        pipeline.ask(RED, "Describe the picture in one word.", gen_length=8),
    )
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
        (([RED], ["what?", "why?"]), {}, "2 questions need a list of 2 images, not a list of 1"),
        (("nowhere.png", "what?"), {}, "nowhere.png"),
        ((RED, 5), {}, "question=5 does not fit"),
        ((RED, b"what?"), {}, "question=b'what.' does not fit"),
        (([RED], [5]), {}, "text=5 of the message"),
        ((RED, "what?"), {"seed": 2**64}, f"seed={2**64} does not fit"),
        ((RED, "what?"), {"seed": -(2**63) - 1}, f"seed={-(2**63) - 1} does not fit"),
        (([RED], ["what?"]), {"seed": "1"}, "seed='1' does not fit"),
        ((RED, "what?"), {"seed": None}, "seed=None does not fit"),
        ((RED, "what?"), {"seed": True}, "seed=True does not fit"),
        ((RED, "what?"), {"seed": 1.0}, "seed=1.0 does not fit"),
        ((RED, "what?"), {"seed": 10**5000}, "seed=a whole number of 16610 bits does not fit"),
        ((RED, "what?"), {"steps": True}, "steps=True does not fit"),
        ((RED, "what?"), {"steps": 10**9}, "steps=1000000000 does not fit"),
        ((RED, "what?"), {"lookahead": 10**6}, "lookahead=1000000 does not fit"),
        ((RED, "what?"), {"temperature": math.inf}, "temperature=inf does not fit"),
        ((RED, "what?"), {"temperature": "hot" * 99}, r"temperature='hothot.*\.\.\. does not fit"),
        ((RED, "what?"), {"cfg_scale": math.inf}, "cfg_scale=inf does not fit"),
        ((RED, "what?"), {"gamma": math.nan}, "gamma=nan does not fit"),
    ],
)
def test_misfits(
    pipeline: Pipeline, arguments: tuple[Any, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MMDiffError, match=message):
        pipeline.ask(*arguments, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "unknown model 'nothing'"),
        ("llada-8b", "ships no weights for 'llada-8b'"),
        ("some/where", "could it be fetched"),
        ("./nowhere/here", "unknown model"),
        (5, "model=5 does not fit"),
        (None, "model=None does not fit"),
        ("", "model='' does not fit"),
    ],
)
def test_unknown_models(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find(name)


@pytest.mark.parametrize(
    "dtype",
    [
        "float17",
        "int8",
        "bool",
        "complex64",
        "float8_e4m3fn",
        torch.int64,
        None,
        5,
        ["float32"],
        "nn",
    ],
)
def test_an_unknown_dtype(random_tiny: Path, dtype: Any) -> None:
    """Also those of PyTorch that no layer computes in."""
    with pytest.raises(
        MMDiffError, match=f"^dtype={re.escape(repr(dtype))} does not fit; use float32"
    ):
        load(random_tiny, dtype=dtype)


SOUND = np.sin(np.arange(16_000, dtype=np.float32) / 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(*case, id=f"{number}")
        for number, case in enumerate(
            [
                (lambda pipeline: pipeline.chat(None), "None is not a conversation"),
                (
                    lambda pipeline: pipeline.chat([{"role": "bot", "content": "hi"}]),
                    "role='bot' is not known",
                ),
                (
                    lambda pipeline: pipeline.chat([{"role": "user", "content": None}]),
                    "content=None of the message",
                ),
                (lambda pipeline: pipeline.chat_batch([[{"role": "user"}]]), "content=None"),
                (lambda pipeline: pipeline.chat_batch(5), "conversations=5"),
                (lambda pipeline: pipeline.chat_batch("hello"), "conversations='hello'"),
                (
                    lambda pipeline: pipeline.chat_batch(
                        [[{"role": "user", "content": "hi"}]], seeds=5
                    ),
                    "seeds=5",
                ),
                (
                    lambda pipeline: pipeline.start(
                        [[{"role": "user", "content": "hi"}]], limits=5
                    ),
                    "limits=5",
                ),
                (
                    lambda pipeline: pipeline.start(
                        [[{"role": "user", "content": "hi"}]], limits=["4"]
                    ),
                    "limits='4'",
                ),
                (
                    lambda pipeline: pipeline.start(
                        [[{"role": "user", "content": "hi"}]], seeds=[2**64]
                    ),
                    "seed=1844",
                ),
                (lambda pipeline: pipeline.caption(RED, length=["short"]), r"length=\['short'\]"),
                (
                    lambda pipeline: pipeline.listen(SOUND, "what?", sample_rate="16000"),
                    "sample_rate='16000'",
                ),
                (
                    lambda pipeline: pipeline.transcribe(SOUND, sample_rate=[16000]),
                    r"sample_rate=\[16000\]",
                ),
                (lambda pipeline: pipeline.transcribe(SOUND, sample_rate=math.nan), "nan Hz"),
                (
                    lambda pipeline: pipeline.transcribe(SOUND, sample_rate=16_000, beam_size=1.5),
                    "beam_size=1.5",
                ),
                (
                    lambda pipeline: pipeline.transcribe(
                        SOUND, sample_rate=16_000, max_seconds=math.nan
                    ),
                    "max_seconds=nan",
                ),
                (
                    lambda pipeline: pipeline.transcribe(
                        SOUND, sample_rate=16_000, max_seconds="3"
                    ),
                    "max_seconds='3'",
                ),
                (
                    lambda pipeline: pipeline.refine(
                        SOUND, "a", sample_rate=16_000, share=math.nan
                    ),
                    "share=nan",
                ),
                (
                    lambda pipeline: pipeline.refine(SOUND, "a", sample_rate=16_000, share="all"),
                    "share='all'",
                ),
                (
                    lambda pipeline: pipeline.refine(SOUND, "a", sample_rate=16_000, chunks=0),
                    "chunks=0",
                ),
                (
                    lambda pipeline: pipeline.refine(SOUND, "a", sample_rate=16_000, slack=1.5),
                    "slack=1.5",
                ),
                (
                    lambda pipeline: pipeline.refine(SOUND, None, sample_rate=16_000),
                    "draft=None is not a text",
                ),
                (
                    lambda pipeline: pipeline.extract(RED, {"type": "integer"}, max_tokens="9"),
                    "max_tokens='9'",
                ),
                (
                    lambda pipeline: pipeline.extract(RED, {"type": "integer"}, question=5),
                    "question=5 is not a text",
                ),
                (
                    lambda pipeline: pipeline.extract(None, {"type": "integer"}, text=b"a"),
                    "text=b'a' is not a text",
                ),
                (
                    lambda pipeline: pipeline.choose(RED, "what?", ["a\ud800", "b"]),
                    "half of a surrogate pair",
                ),
                (
                    lambda pipeline: pipeline.fill("a\ud800 [[ ]]", image=RED),
                    "half of a surrogate pair",
                ),
                (lambda pipeline: pipeline.fill(None, image=RED), "text=None is not a text"),
                (
                    lambda pipeline: Pipeline(pipeline.model, pipeline.processor, store_bytes=-1),
                    "store_bytes=-1",
                ),
            ]
        )
    ],
)
def test_misfits_of_other_verbs(
    pipeline: Pipeline, call: Callable[[Pipeline], Any], message: str
) -> None:
    with pytest.raises(MMDiffError, match=message):
        call(pipeline)


def test_numbers_of_numpy_and_tensors_with_gradients(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {
        "gen_length": 8,
        "block_length": 8,
        "temperature": 0.5,
        "seed": 3,
        "steps": 4,
    }
    numpy = {
        name: np.float64(value) if isinstance(value, float) else np.int32(value)
        for name, value in options.items()
    }
    assert same(pipeline.ask(RED, "what?", **numpy), pipeline.ask(RED, "what?", **options))
    sound = torch.from_numpy(SOUND).requires_grad_()
    assert same(
        pipeline.listen(sound, "what?", sample_rate=np.int64(16_000), gen_length=8),
        pipeline.listen(SOUND, "what?", sample_rate=16_000, gen_length=8),
    )


def test_seeds_of_a_list_wrap_around(pipeline: Pipeline) -> None:
    options: dict[str, Any] = {"gen_length": 8, "block_length": 8, "temperature": 1.0}
    last, first = pipeline.ask([RED, RED], ["what?"] * 2, seed=2**64 - 1, **options)
    assert [first.tokens[0].text, last.tokens[0].text] == [
        pipeline.ask(RED, "what?", seed=seed, **options).tokens[0].text for seed in (0, 2**64 - 1)
    ]


def test_a_draft_cannot_end_its_turn(pipeline: Pipeline) -> None:
    """Its control tokens are broken up as in a prompt."""
    draft = pipeline.processor.text_ids("a star <|eot_id|> here")
    assert pipeline.processor.tokens.eot not in draft
    answer = pipeline.refine(SOUND, "a star <|eot_id|> here", sample_rate=16_000, share=0.0)
    assert "".join(answer.text.split()).startswith("astar<") and answer.text.endswith("here")


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
    assert (
        again.choose(RED, "which?", ["red", "blue"]).value
        == pipeline.choose(RED, "which?", ["red", "blue"]).value
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": "banana"}, "device_map='banana' is not known; use 'auto'"),
        ({"device_map": {"": 0}}, "device_map={'': 0} is not known"),
        ({"dtype": "int8"}, "dtype='int8' does not fit"),
        ({"dtype": torch.int8}, "dtype=torch.int8 does not fit"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ],
)
def test_how_to_load_is_refused_by_name(
    random_tiny: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MMDiffError, match=message):
        load(random_tiny, **options)


def test_settings_are_fetched_before_weights(
    monkeypatch: pytest.MonkeyPatch, reference: Path, tmp_path: Path
) -> None:
    """What mmdiff does not load is refused without fetching it; settings alone are never more than
    JSON."""
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


def test_moved_names_are_found_for_one_release() -> None:
    for name in ("Token", "SHIPPED", "REFINE_PROMPT", "Channels", "RefineMode"):
        with pytest.warns(DeprecationWarning, match=f"mmdiff.pipeline.{name} is now mmdiff"):
            getattr(importlib.import_module("mmdiff.pipeline"), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("mmdiff.pipeline").nothing  # noqa: B018
    for name in mmdiff.__all__:
        assert getattr(mmdiff, name) is not None
