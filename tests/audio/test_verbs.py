"""Transcribe, listen, refine and spoken questions, on random weights: forms, times, bounds and bad input."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff import pipeline as verbs
from mmdiff.audio.segment import Span
from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Answer, Pipeline, _opened, load
from mmdiff.transcript import Transcript

RED = Image.new("RGB", (64, 64), "red")


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=int(16_000 * seconds)) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def pipeline(random_tiny: Path) -> Pipeline:
    """Random weights that go on to the end of their canvas, and spell no drafts."""
    loaded = load(random_tiny, device="cpu", store_bytes=0)  # answers to the last bit
    config = loaded.model.model_config
    decoding = dataclasses.replace(config.decoding, threshold=None, block_length=8, steps=24)
    ends = (config.tokens.eos, config.tokens.eot, *range(len(loaded.processor.tokenizer), config.backbone.vocab_size))
    tokens = dataclasses.replace(config.tokens, never=(*config.tokens.never, *ends))
    audio = dataclasses.replace(config.audio, drafts=False)  # type: ignore[type-var]
    loaded.model.model_config = dataclasses.replace(config, decoding=decoding, tokens=tokens, audio=audio)
    return loaded


@pytest.fixture
def spelling(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Pipeline]:
    """The same model where its drafts are read, each with two tokens it is sure of and one that it doubts."""
    monkeypatch.setattr(verbs, "best_path", lambda logits, blank: ([40, 41, 42], [0.9, 0.3, 0.8]))
    monkeypatch.setattr(verbs, "text_probability", lambda logits, ids, blank: 0.25 if ids == [40, 41, 42] else 0.125)
    config = pipeline.model.model_config

    def with_doubt(doubt: float) -> Pipeline:
        audio = dataclasses.replace(config.audio, drafts=True, doubt=doubt)  # type: ignore[type-var]
        monkeypatch.setattr(pipeline.model, "model_config", dataclasses.replace(config, audio=audio))
        return pipeline

    return with_doubt


def test_a_draft_is_kept_where_it_is_not_in_doubt(
    spelling: Callable[[float], Pipeline], two_spans: list[Span]
) -> None:
    kept = spelling(0.0).transcribe(noise(4.5), sample_rate=16_000).segments
    assert [segment.token_ids for segment in kept] == [(40, 41, 42)] * 2
    assert [segment.confidence for segment in kept] == [0.25] * 2
    for segment in spelling(0.5).transcribe(noise(4.5), sample_rate=16_000).segments:
        assert (segment.token_ids[0], segment.token_ids[-1]) == (40, 42) and segment.token_ids[1:-1] != (41,)
        assert segment.confidence == 0.125


@pytest.fixture
def two_spans(monkeypatch: pytest.MonkeyPatch) -> list[Span]:
    """A gate that finds speech in two places, whatever is played to it."""
    spans = [Span(8000, 24_000), Span(40_000, 64_000)]
    monkeypatch.setattr(verbs, "speech_segments", lambda samples, longest: spans)
    return spans


def test_segments_keep_their_times_and_do_not_touch_each_other(pipeline: Pipeline, two_spans: list[Span]) -> None:
    said = noise(4.5)
    together, alone = pipeline.transcribe(said, sample_rate=16_000), pipeline.transcribe(
        said, sample_rate=16_000, batch_size=1)
    assert together.duration == 4.5 and len(together.segments) == 2
    assert [(s.start, s.end) for s in together.segments] == [span.seconds for span in two_spans]
    for one, other in zip(together.segments, alone.segments, strict=True):
        assert one.text == other.text and one.confidence == pytest.approx(other.confidence, abs=1e-4)
    assert together.text == " ".join(segment.text for segment in together.segments)


SILENCE, TONE = np.zeros(32_000, np.float32), (np.sin(np.arange(48_000) * 0.4) / 3).astype(np.float32)


@pytest.mark.parametrize("sound", [SILENCE, TONE], ids=["silence", "a tone"])
def test_no_speech_is_an_empty_transcript(pipeline: Pipeline, sound: np.ndarray) -> None:
    assert pipeline.transcribe(sound, sample_rate=16_000) == Transcript((), len(sound) / 16_000)


def test_without_the_gate_a_long_sound_is_cut_and_nothing_is_left_out(pipeline: Pipeline) -> None:
    shares: list[float] = []
    made = pipeline.transcribe(noise(23), sample_rate=16_000, gate=False, batch_size=2, progress=shares.append,
                               steps=1, block_length=200)
    assert shares[-1] == 1.0 and shares == sorted(shares)
    config = pipeline.model.model_config.audio
    assert config is not None
    edges = [(s.start, s.end) for s in made.segments]
    assert all(end - start <= config.segment_seconds for start, end in edges) and len(edges) <= 4


def test_listen_hears_all_of_a_sound_or_refuses(pipeline: Pipeline) -> None:
    answer = pipeline.listen(noise(2), "who is it?", sample_rate=16_000, gen_length=8)
    assert isinstance(answer, Answer) and len(answer.tokens) <= 8
    with pytest.raises(MMDiffError, match="exceed the model's 1024 positions"):
        pipeline.listen(noise(100), "who is it?", sample_rate=16_000)


def test_a_spoken_question_is_written_down_and_asked(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "transcribe", lambda speech, **_: Transcript(
        (verbs.Segment(0, 1, "what is it", 0.6),) if speech is not None and speech.any() else (), 1.0))
    spoken, written = pipeline.ask(RED, speech=noise(1), gen_length=8), pipeline.ask(RED, "what is it", gen_length=8)
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
    assert _opened([5, 6, 7, 8, 9], {1, 2, 4}, 2, 0) == [5, 0, 0, 0, 0, 8, 0, 0, 0]
    assert _opened([5, 6], set(), 2, 0) == [5, 6]


def test_likelihoods_hide_every_place_once(pipeline: Pipeline) -> None:
    """The obvious version: for each place, the row with every other place of its parity hidden."""
    prompted = pipeline._prompt([[verbs._listener(noise(1), "x")]], 8)
    ids, mask = [20, 30, 40, 50, 60], pipeline.model.model_config.tokens.mask
    likely = pipeline._likelihoods(prompted, ids)
    row = torch.tensor([*ids, pipeline.model.model_config.tokens.eot])
    for place, token in enumerate(ids):
        hidden = torch.arange(6) % 2 == place % 2
        here = torch.arange(6) == place
        logits = prompted(row.masked_fill(hidden, mask)[None], torch.tensor([0]), here[None])
        assert likely[place] == pytest.approx(logits.softmax(-1)[0, token].item(), rel=1e-3)


@pytest.mark.parametrize(("change", "message"), [
    ({"draft": " "}, "the draft is empty"), ({"share": 1.5}, "share=1.5"), ({"mode": "all"}, "mode='all'"),
    ({"chunks": 0}, "chunks=0"), ({"slack": -1}, "slack=-1"),
])
def test_refining_refuses_what_does_not_fit(pipeline: Pipeline, change: dict[str, Any], message: str) -> None:
    with pytest.raises(MMDiffError, match=message):
        pipeline.refine(noise(1), **{"draft": "a star", "sample_rate": 16_000, **change})


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"max_seconds": 0.0}, {"max_seconds": -3.0}])
def test_segments_that_do_not_fit_are_refused(pipeline: Pipeline, change: dict[str, Any]) -> None:
    with pytest.raises(MMDiffError, match=str(next(iter(change.values())))):
        pipeline.transcribe(noise(1), sample_rate=16_000, **change)


def test_a_model_without_ears_says_so(random_tiny: Path) -> None:
    deaf = load(random_tiny, device="cpu")
    deaf.model.model_config = dataclasses.replace(deaf.model.model_config, audio=None)
    for call in (deaf.transcribe, lambda sound: deaf.listen(sound, "?"), lambda sound: deaf.refine(sound, "a")):
        with pytest.raises(MMDiffError, match="this model takes no sounds"):
            call(noise(1))
