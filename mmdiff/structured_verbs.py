"""The verbs whose answers have a given structure: extract, choose, fill."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from mmdiff.answers import Extraction
from mmdiff.audio.audio_io import AudioSource
from mmdiff.config import DecodingConfig, shown
from mmdiff.errors import MMDiffError
from mmdiff.generation import (
    MAX_TOKENS,
    audio_message,
    audio_samples,
    check_text,
    collect,
    user_message,
)
from mmdiff.modeling.processor import Messages
from mmdiff.prompts import EXTRACT_PROMPT, FILL_PROMPT
from mmdiff.speech import SpeechPipeline
from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.schema.inputs import blanks, compile_choices, compile_template, schema_of
from mmdiff.structured.schema.serialize import outline

AudioAs = Literal["transcript", "embeddings"]
AUDIO_AS: tuple[AudioAs, ...] = ("transcript", "embeddings")


class StructuredPipeline(SpeechPipeline):
    """A pipeline whose answers may be filled into a JSON Schema, choices, or a text with holes."""

    def extract(  # noqa: PLR0913 - keywords of a verb
        self,
        image: Any,
        schema: Any,
        *,
        audio: AudioSource | None = None,
        audio_as: AudioAs = "transcript",
        text: str | None = None,
        question: str | None = None,
        sample_rate: int | None = None,
        max_tokens: int = MAX_TOKENS,
        seed: int = 0,
        **decoding: Any,
    ) -> Extraction:
        """A value that fits a schema, from an image (or several in a list), audio, or a text.

        Args:
            image: as for `ask`; None for none.
            schema: a JSON Schema, or a type that pydantic knows (a model, a dataclass, list[int],
                ...), of which the value then is.
            audio: in any form that `audio.audio_io.load_audio` takes; an array with its
                `sample_rate`.
            audio_as: "transcript" puts what is said in the audio into the prompt as text
                (`Extraction.heard`), "embeddings" the audio itself, which is then given without an
                image.
            text: words to take the values from, besides or instead.
            question: what is wanted, in words; the schema's names are shown in any case.
            max_tokens: that the value may take.

        Raises:
            ScaffoldError: the schema cannot be honoured; nothing was asked of the model then.
            NoSpeechError: nothing is said in the audio, whose transcript is wanted.
            MMDiffError: a source cannot be read, or a setting does not fit.
        """
        for name, given in {"text": text, "question": question}.items():
            if given is not None:
                check_text(name, given)
        if audio is None and not text and not question and (image is None or image == []):
            raise MMDiffError(
                "there is nothing to extract from; give an image, audio, a text or a question"
            )
        settings = self.decoding(**decoding)
        scaffold = self.compile(schema, max_tokens)
        wanted = EXTRACT_PROMPT.format(outline(schema_of(schema)[0]))
        texts = [text, question and question.strip(), wanted]
        message, heard = self._message(image, audio, audio_as, sample_rate, texts)
        made = self._filled([message], scaffold, seed, settings)
        return dataclasses.replace(made, **heard)

    def choose(
        self,
        image: Any,
        question: str,
        choices: Sequence[str],
        *,
        audio: AudioSource | None = None,
        audio_as: AudioAs = "transcript",
        sample_rate: int | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> Extraction:
        """One of some answers to a question about an image, or about audio as in `extract`.

        It takes one pass, and has the probability of each choice: `fields[""].probabilities`.
        """
        if not isinstance(choices, str):
            choices = [check_text("choice", choice, exact=True) for choice in choices or ()]
        if audio is not None and not check_text("question", question).strip():
            raise MMDiffError("the question is empty; say what you want to know")
        settings = self.decoding(**decoding)
        scaffold = compile_choices(choices, self.layouts, MAX_TOKENS)
        message, heard = self._message(image, audio, audio_as, sample_rate, [question])
        made = self._filled([message], scaffold, seed, settings)
        return dataclasses.replace(made, **heard)

    def fill(
        self,
        text: str,
        *,
        image: Any = None,
        question: str | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> Extraction:
        """A text with its holes filled, in any order: `[[ ]]`, `[[red|green]]` or
        `[[/[0-9]+/]]`."""
        scaffold = compile_template(check_text("text", text, exact=True), self.layouts, MAX_TOKENS)
        prompt = question or FILL_PROMPT.format(blanks(text))
        settings = self.decoding(**decoding)
        return self._filled([user_message(image, prompt)], scaffold, seed, settings)

    def _message(
        self,
        image: Any,
        audio: AudioSource | None,
        audio_as: AudioAs,
        sample_rate: int | None,
        texts: Sequence[str | None],
    ) -> tuple[Any, dict[str, Any]]:
        """A message with an image, audio or what is said in it, and the texts, a line each; and
        what was heard."""
        if not isinstance(audio_as, str) or audio_as not in AUDIO_AS:
            known = " or ".join(AUDIO_AS)
            raise MMDiffError(f"audio_as={shown(audio_as)} is not known; use {known}")
        if audio is None:
            return user_message(image, _lines(texts)), {}
        if audio_as == "embeddings":
            self._audio_config()
            if not (image is None or image == []):
                raise MMDiffError(
                    "an image and audio as embeddings do not go together; use "
                    "audio_as='transcript', or leave one of them out"
                )
            return audio_message(audio_samples(audio, sample_rate), _lines(texts)), {}
        transcript = self.heard(audio, sample_rate)
        heard = {"heard": transcript.text, "heard_confidence": transcript.confidence}
        return user_message(image, _lines([transcript.text, *texts])), heard

    def _filled(
        self, messages: Messages, scaffold: CompiledSchema, seed: int, settings: DecodingConfig
    ) -> Extraction:
        batch = self.start_batch([messages], settings, seeds=[seed], scaffolds=[scaffold])
        made = self.answers(collect(batch))[0].structured
        assert made is not None
        return made


def _lines(texts: Sequence[str | None]) -> str:
    """Those that are there, a line each."""
    return "\n".join(text for text in texts if text)
