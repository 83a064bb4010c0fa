"""Listen, refine and spoken questions, on random weights: forms, bounds and bad input."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.answers import Answer
from mmdiff.audio.ctc import text_probability
from mmdiff.audio.vad import Span
from mmdiff.errors import MMDiffError
from mmdiff.generation import audio_message
from mmdiff.pipeline import Pipeline, load
from mmdiff.refinement import token_likelihoods, with_open_slots
from mmdiff.transcript import Segment, Transcript

RED = Image.new("RGB", (64, 64), "red")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=int(16_000 * seconds)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def pipeline(random_tiny: Path) -> Pipeline:
    """Random weights that go on to the end of their canvas, and spell no drafts."""
    loaded = load(random_tiny, device="cpu", store_bytes=0)  # answers to the last bit
    config = loaded.model.model_config
    decoding = dataclasses.replace(config.decoding, threshold=None, block_length=8, steps=24)
    ends = (
        config.tokens.eos,
        config.tokens.eot,
        *range(len(loaded.processor.tokenizer), config.backbone.vocab_size),
    )
    tokens = dataclasses.replace(config.tokens, never=(*config.tokens.never, *ends))
    audio = dataclasses.replace(config.audio, ctc_drafts=False)  # type: ignore[type-var]
    loaded.model.model_config = dataclasses.replace(
        config, decoding=decoding, tokens=tokens, audio=audio
    )
    return loaded


def test_listen_hears_all_of_a_sound_or_refuses(pipeline: Pipeline) -> None:
    answer = pipeline.listen(noise(2), "who is it?", sample_rate=16_000, gen_length=8)
    assert isinstance(answer, Answer) and len(answer.tokens) <= 8
    with pytest.raises(MMDiffError, match="exceed the model's 1024 positions"):
        pipeline.listen(noise(100), "who is it?", sample_rate=16_000)


def test_a_spoken_question_is_written_down_and_asked(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pipeline,
        "transcribe",
        lambda speech, **_: Transcript(
            (Segment(0, 1, "what is it", 0.6),) if speech is not None and speech.any() else (),
            1.0,
        ),
    )
    spoken, written = (
        pipeline.ask(RED, speech=noise(1), gen_length=8),
        pipeline.ask(RED, "what is it", gen_length=8),
    )
    assert spoken == dataclasses.replace(written, heard="what is it", heard_confidence=0.6)
    both = pipeline.ask([RED, RED], speech=[noise(1), noise(2)], gen_length=8)
    assert [answer.text for answer in both] == [written.text] * 2
    with pytest.raises(MMDiffError, match="no speech was found"):
        pipeline.ask(RED, speech=np.zeros(16_000, np.float32))
    with pytest.raises(MMDiffError, match="not both"):
        pipeline.ask(RED, "what?", speech=noise(1))
    with pytest.raises(MMDiffError, match="there is no question"):
        pipeline.ask(RED)


@pytest.mark.parametrize("mode", ["low_confidence", "chunks"])
def test_refining_opens_what_it_should(pipeline: Pipeline, mode: Any) -> None:
    draft = "what color is the circle? a small red star"
    answer = pipeline.refine(noise(2), draft, sample_rate=16_000, mode=mode)
    assert not any(token.text.startswith("<|") for token in answer.tokens)
    assert pipeline.refine(noise(2), draft, sample_rate=16_000, share=0).text == draft
    ids = pipeline.processor.tokenizer(draft)["input_ids"]
    few = pipeline.refine(noise(2), draft, sample_rate=16_000, share=0.3, slack=0)
    assert sum(token.step < 0 for token in few.tokens) == len(ids) - round(0.3 * len(ids))


def test_runs_get_slack_behind_them() -> None:
    assert with_open_slots([5, 6, 7, 8, 9], {1, 2, 4}, 2, 0) == [5, 0, 0, 0, 0, 8, 0, 0, 0]
    assert with_open_slots([5, 6], set(), 2, 0) == [5, 6]


def test_likelihoods_hide_every_place_once(pipeline: Pipeline) -> None:
    """The obvious version: for each place, the row with every other place of its parity hidden."""
    prompted = pipeline.prefill([[audio_message(noise(1), "x")]], 8)
    ids, mask = [20, 30, 40, 50, 60], pipeline.model.model_config.tokens.mask
    likely = token_likelihoods(prompted, ids, pipeline.model.model_config.tokens)
    row = torch.tensor([*ids, pipeline.model.model_config.tokens.eot])
    for place, token in enumerate(ids):
        hidden = torch.arange(6) % 2 == place % 2
        here = torch.arange(6) == place
        logits = prompted(
            row.masked_fill(hidden, mask)[None].numpy(), prompted.prompts, here[None].numpy()
        )
        assert likely[place] == pytest.approx(logits.softmax(-1)[0, token].item(), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft": " "}, "the draft is empty"),
        ({"share": 1.5}, "share=1.5"),
        ({"mode": "all"}, "mode='all'"),
        ({"chunks": 0}, "chunks=0"),
        ({"slack": -1}, "slack=-1"),
    ],
)
def test_refining_refuses_what_does_not_fit(
    pipeline: Pipeline, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(MMDiffError, match=message):
        pipeline.refine(noise(1), **{"draft": "a star", "sample_rate": 16_000, **change})


def test_a_model_without_ears_says_so(random_tiny: Path) -> None:
    deaf = load(random_tiny, device="cpu")
    deaf.model.model_config = dataclasses.replace(deaf.model.model_config, audio=None)
    for call in (lambda sound: deaf.listen(sound, "?"), lambda sound: deaf.refine(sound, "a")):
        with pytest.raises(MMDiffError, match="this model takes no audio"):
            call(noise(1))


def test_the_likelier_of_two_framings_is_read(pipeline: Pipeline) -> None:
    config = pipeline.model.model_config
    size, blank = config.backbone.vocab_size, config.tokens.eos
    one, other = pipeline.processor.text_ids("a")[0], pipeline.processor.text_ids("b")[0]
    blanks = torch.full((6, size), -20.0)
    blanks[:, blank] = 0.0
    unsure, sure = blanks.clone(), blanks.clone()
    unsure[2, [one, other]] = torch.tensor([0.1, 0.0])
    sure[2, other] = 9.0
    span = Span(16_000, 32_000)
    read = pipeline._spelled(span, (unsure, sure))
    assert read.token_ids == (other,)
    by_both = [text_probability(logits, [other], blank) for logits in (unsure, sure)]
    assert read.confidence == pytest.approx((sum(by_both) / 2) ** 0.5)
    alone = pipeline._spelled(span, (sure,))
    half = config.audio.frames_per_token / 50 / 2  # type: ignore[union-attr]
    assert read.words[0].start == pytest.approx(alone.words[0].start - half)
    early = pipeline._spelled(Span(0, 16_000), (unsure, sure)).words[0]
    assert early.start >= 0
