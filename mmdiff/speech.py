"""The verbs on audio: transcribe, listen, refine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from mmdiff.answers import Answer
from mmdiff.audio.audio_io import SAMPLE_RATE, AudioSource, Samples
from mmdiff.audio.confidence import spelled_confidence
from mmdiff.audio.ctc import text_probability, timed_path, timed_words
from mmdiff.audio.vad import Span
from mmdiff.audio.whisper_decoder import BEAM_SIZE, SpeechRecognizer, Window, load_recognizer
from mmdiff.config import is_number, shown
from mmdiff.errors import MMDiffError, NoSpeechError
from mmdiff.generation import TextGenerator, audio_message, audio_samples, check_count, check_text
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.processor import Messages, MMDiffProcessor
from mmdiff.prompts import REFINE_PROMPT
from mmdiff.refinement import (
    denoise_reopened,
    equal_parts,
    kept_ids,
    least_likely,
    token_likelihoods,
)
from mmdiff.transcript import Segment, Transcript
from mmdiff.transcription import Reader, RecognitionOptions, transcribe_audio

FRAMES_PER_SECOND = 50  # of Whisper's encoder
RefineMode = Literal["low_confidence", "chunks"]
Channels = Literal["mix", "separate"]
NO_SPEECH = "no speech was found in the audio; say it again, nearer to the microphone"


class SpeechPipeline(TextGenerator):
    """A text generator beside a speech recogniser."""

    def __init__(
        self,
        model: MMDiffModel,
        processor: MMDiffProcessor,
        store_bytes: int,
        speech_model: str | Path | None,
    ) -> None:
        super().__init__(model, processor, store_bytes)
        self.speech_model = speech_model

    def transcribe(  # noqa: PLR0913 - keywords of a verb
        self,
        audio: AudioSource,
        *,
        sample_rate: int | None = None,
        gate: bool = True,
        max_seconds: float | None = None,
        language: str | None = None,
        prompt: str | None = None,
        temperature: float = 0.0,
        beam_size: int = BEAM_SIZE,
        channels: Channels = "mix",
        progress: Callable[[float], None] | None = None,
    ) -> Transcript:
        """Write down what is said in audio of any length, segment by segment, with the times of
        segments and words.

        Whisper writes it (`speech_model`). Where this model's audio embeddings spell words, as
        those of `tiny` do, and are likelier right, its reading stays. `refine` lets the model
        correct a draft.

        Args:
            audio: a path, bytes, a stream, or an array with its `sample_rate` in Hz.
            gate: leave out what silero-vad takes for no speech, and cut at pauses; without it all
                is transcribed, and silence may be given words.
            max_seconds: of a window that is recognised on its own; 30 by default.
            language: a code such as "en"; by default it is detected.
            prompt: words that may occur, such as names; they steer the spelling.
            temperature: of the first attempt, from 0 to 1.
            beam_size: hypotheses that are kept; 1 is greedy.
            channels: "mix" hears all channels as one; "separate" transcribes each on its own
                (`Segment.channel`), as for calls with one speaker a channel.
            progress: is told the share that is done, from 0 to 1.

        Raises:
            MMDiffError: the audio cannot be read, the speech model is missing or does not know the
                language, or a setting does not fit.
        """
        if channels not in ("mix", "separate"):
            raise MMDiffError(f"channels={str(channels)[:80]!r} is not known; use mix or separate")
        options = RecognitionOptions(language, prompt, temperature, beam_size, gate, max_seconds)
        return transcribe_audio(
            self.recognizer,
            audio,
            options,
            sample_rate=sample_rate,
            separate=channels == "separate",
            read=self.reader,
            progress=progress,
        )

    @property
    def speech_facts(self) -> dict[str, str]:
        """The name of the speech model, and a hash of its weights."""
        return {"name": self.recognizer.name, "weights": self.recognizer.digest}

    @cached_property
    def recognizer(self) -> SpeechRecognizer:
        """What hears: Whisper tiny.en, or the `speech_model`; loaded when it is first needed.

        Raises:
            CheckpointError: it is not installed, damaged or not a Whisper model.
        """
        return load_recognizer(self.speech_model, self.model.device)

    def heard(self, speech: AudioSource, sample_rate: int | None = None) -> Transcript:
        """What is said, a spoken question for one, in words; a NoSpeechError where there is no
        speech."""
        transcript = self.transcribe(speech, sample_rate=sample_rate)
        if not transcript.text:
            raise NoSpeechError(NO_SPEECH)
        return transcript

    def listen(
        self,
        audio: AudioSource,
        question: str,
        *,
        sample_rate: int | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> Answer:
        """Answer a question about audio, all of which is heard at once."""
        self._audio_config()
        settings = self.decoding(**decoding)
        message = audio_message(audio_samples(audio, sample_rate), question)
        return self._chat_batch([[message]], settings, [seed])[0]

    def refine(
        self,
        audio: AudioSource,
        draft: str,
        *,
        sample_rate: int | None = None,
        share: float = 0.3,
        mode: RefineMode = "low_confidence",
        chunks: int = 4,
        slack: int = 2,
        **decoding: Any,
    ) -> Answer:
        """Put a draft transcript right: open what the model doubts most, and denoise it with the
        audio in view.

        Sources: Whisper-LLaDA's deliberation (arXiv 2509.16622), and slack, with which words can be
        put in or dropped.

        Args:
            draft: words from elsewhere, or of an earlier `transcribe`.
            share: of the draft's tokens that are opened, from 0 to 1; for "low_confidence".
            mode: "low_confidence" opens the least likely tokens, all at once; "chunks" opens each
                of `chunks` equal parts in turn with the others in view.
            slack: open positions that each run of open tokens gets beyond its own.

        Returns:
            the transcript; tokens that were kept have step -1.
        """
        self._audio_config()
        ids = self.processor.text_ids(check_text("draft", draft).strip())
        if not ids:
            raise MMDiffError(
                "the draft is empty; give the words to put right, or transcribe the audio"
            )
        if mode not in ("low_confidence", "chunks"):
            raise MMDiffError(f"mode={shown(mode)} is not known; use low_confidence or chunks")
        chunks, slack = check_count("chunks", chunks), check_count("slack", slack, least=0)
        if not (is_number(share) and 0 <= share <= 1):
            raise MMDiffError(
                f"share={shown(share)} does not fit: it must be a number between 0 and 1"
            )
        settings, tokens = self.decoding(**decoding), self.model.model_config.tokens
        message = audio_message(audio_samples(audio, sample_rate), REFINE_PROMPT)
        prompted = self.prefill([[message]], len(ids))
        reopened = equal_parts(len(ids), chunks)[::-1]  # from behind, so that positions stay
        if mode == "low_confidence":
            likely = token_likelihoods(prompted, ids, tokens)
            reopened = [least_likely(likely, round(share * len(ids)))]
        for positions in reopened:
            canvas = denoise_reopened(prompted, [ids], [positions], slack, settings, tokens)
            ids = kept_ids(canvas, tokens)[0]
        return self._answers(canvas, [each.passes for each in prompted.prompts], revised=True)[0]

    @property
    def reader(self) -> Reader | None:
        """Reads speech by CTC, where the model's audio embeddings spell words; it is of use beside
        tiny.en alone."""
        config = self.model.model_config.audio
        if config is None or not config.ctc_drafts or self.speech_model is not None:
            return None
        return self._read

    def _read(self, samples: Samples, window: Window) -> list[Segment | None]:
        """What each stretch of speech in a window spells; None for those that are too long for the
        model.

        Each is read twice, as it is and half an embedding later, where the same words fall onto
        other frames: what both readings make likely is right more often.
        """
        most = self._audio_config().segment_seconds * SAMPLE_RATE
        short = [span for span in window if span.end - span.start <= most]
        if not short:
            return [None] * len(window)
        late = np.zeros(round(self._seconds_per_embedding / 2 * SAMPLE_RATE), np.float32)
        messages: list[Messages] = []
        for span in short:
            clip = samples[span.start : span.end]
            for framed in (clip, np.concatenate([late, clip])):
                messages.append([audio_message(framed, REFINE_PROMPT)])
        logits = self.prefill(messages, 1).audio_logits()
        read = {}
        for number, span in enumerate(short):
            read[span] = self._spelled(span, logits[2 * number : 2 * number + 2])
        return list(map(read.get, window))

    @property
    def _seconds_per_embedding(self) -> float:
        return self._audio_config().frames_per_token / FRAMES_PER_SECOND

    def _spelled(self, span: Span, framings: Sequence[Tensor]) -> Segment:
        """The likelier of the texts that the outputs at the embeddings spell, as the audio is and
        half an embedding later; its probability is the mean of both."""
        decode, blank = self.processor.tokenizer.decode, self.model.model_config.tokens.eos
        seconds = self._seconds_per_embedding
        readings = []
        for number, logits_TV in enumerate(framings):
            tokens = timed_path(logits_TV, blank)
            ids = [token.id for token in tokens]
            likely = sum(text_probability(each, ids, blank) for each in framings) / len(framings)
            confidence = spelled_confidence(likely)
            start = max(0.0, span.seconds[0] - number * seconds / 2)
            words = timed_words(tokens, decode, start, seconds)
            text = decode(ids).strip()
            readings.append(Segment(*span.seconds, text, confidence, tuple(ids), words))
        return max(readings, key=lambda reading: reading.confidence)
