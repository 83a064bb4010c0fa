"""The verbs of a model: ask, caption, stream, extract, choose, fill; and those of `speech`.

`load("tiny")` gives the shipped default; a folder or a hub name gives a published checkpoint.
"""

from __future__ import annotations

import dataclasses
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import torch

from mmdiff.answers import Answer, Draft
from mmdiff.config import DecodingConfig, shown
from mmdiff.decoding.sampler import seed_of
from mmdiff.errors import MMDiffError
from mmdiff.generation import user_message
from mmdiff.modeling.checkpoint import load_folder
from mmdiff.modeling.device import check_placement, choose_device, choose_dtype
from mmdiff.modeling.hub import find_base
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.modeling.quantize import Bits
from mmdiff.prompts import CAPTION_PROMPTS, CAPTION_ROOM, CaptionLength
from mmdiff.structured_verbs import StructuredPipeline
from mmdiff.transcript import Transcript

_MOVED = {  # names that were public here, and go with the next release
    "Channels": "mmdiff.speech",
    "REFINE_PROMPT": "mmdiff.prompts",
    "RefineMode": "mmdiff.speech",
    "Token": "mmdiff.answers",
    "SHIPPED": "mmdiff.modeling.hub",
}


class Pipeline(StructuredPipeline):
    """A model ready to be asked. Every verb takes decoding settings by name (`steps=16`,
    `temperature=0.7`)."""

    def __init__(
        self,
        model: MMDiffModel,
        processor: MMDiffProcessor,
        store_bytes: int = 2**28,
        speech_model: str | Path | None = None,
    ) -> None:
        """
        Args:
            store_bytes: bytes to keep for later questions, such as encoded images; 0 for none.
            speech_model: a folder or hub name of the Whisper that writes speech down; tiny.en by
                default.
        """
        super().__init__(model, processor, store_bytes, speech_model)

    @overload
    def ask(
        self,
        image: Any,
        question: str | None = None,
        *,
        speech: Any = None,
        sample_rate: int | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: Any,
        question: list[str] | None = None,
        *,
        speech: list[Any],
        sample_rate: int | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> list[Answer]: ...
    @overload
    def ask(
        self, image: Any, question: list[str], *, seed: int = 0, **decoding: Any
    ) -> list[Answer]: ...
    def ask(
        self,
        image: Any,
        question: str | list[str] | None = None,
        *,
        speech: Any = None,
        sample_rate: int | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> Answer | list[Answer]:
        """Answer a question about an image, or about several images given as a list.

        With a list of questions, `image` is a list of the same length (each entry an image or a
        list of images), and the answers come as a list; an answer does not depend on the others
        of its batch.

        Args:
            image: what `vision.image_io.open_image` takes: path, bytes, file, array or PIL image;
                None for no image.
            speech: the question as audio instead of words, in any form that
                `audio.audio_io.load_audio` takes, or a list of them. It is written down first
                (`Answer.heard`, `Answer.heard_confidence`) and then asked.
            sample_rate: of speech that is given as arrays, in Hz.
            seed: for temperature and random order; the n-th question of a list uses `seed + n`.

        Raises:
            MMDiffError: an image cannot be read, a question is empty, or a setting does not fit.
        """
        settings = self.decoding(**decoding)
        if speech is None:
            return self._ask(image, question, seed, settings)
        if question is not None:
            raise MMDiffError("give the question in words or as speech, not both")
        if not isinstance(speech, list):
            transcript = self.heard(speech, sample_rate)
            return _with_heard(self._ask_one(image, transcript.text, seed, settings), transcript)
        heard = [self.heard(each, sample_rate) for each in speech]
        questions = [transcript.text for transcript in heard]
        answers = self._ask_each(image, questions, seed, settings)
        return list(map(_with_heard, answers, heard))

    def _ask(
        self, image: Any, question: object, seed: int, settings: DecodingConfig
    ) -> Answer | list[Answer]:
        if question is None:
            raise MMDiffError("there is no question; give it in words, or as audio with speech=")
        if isinstance(question, str):
            return self._ask_one(image, question, seed, settings)
        if isinstance(question, list):
            return self._ask_each(image, question, seed, settings)
        asked = shown(question)
        raise MMDiffError(f"question={asked} does not fit; give a text, or a list of texts")

    def _ask_one(self, image: Any, question: str, seed: int, settings: DecodingConfig) -> Answer:
        return self._chat_batch([[user_message(image, question)]], settings, [seed])[0]

    def _ask_each(
        self, images: Any, questions: list[str], seed: int, settings: DecodingConfig
    ) -> list[Answer]:
        count = len(questions)
        if not isinstance(images, list) or len(images) != count:
            raise MMDiffError(
                f"{count} questions need a list of {count} images, not {_describe(images)}"
            )
        conversations = [[user_message(*pair)] for pair in zip(images, questions, strict=True)]
        seeds = [seed_of(seed, number) for number in range(count)]
        return self._chat_batch(conversations, settings, seeds)

    def caption(
        self, image: Any, length: CaptionLength = "short", *, seed: int = 0, **decoding: Any
    ) -> Any:
        """Describe an image in a word, briefly, or in detail; a list of images gives a list of
        answers."""
        if not isinstance(length, str) or length not in CAPTION_PROMPTS:
            known = ", ".join(CAPTION_PROMPTS)
            raise MMDiffError(f"length={shown(length)} is not known; use one of {known}")
        prompt = CAPTION_PROMPTS[length]
        settings = self.decoding(**{"gen_length": CAPTION_ROOM[length], **decoding})
        if isinstance(image, list):
            return self._ask_each(image, [prompt] * len(image), seed, settings)
        return self._ask_one(image, prompt, seed, settings)

    def stream(
        self, image: Any, question: str, *, seed: int = 0, **decoding: Any
    ) -> Iterator[Draft]:
        """The answer being denoised: one draft after each step, the last one complete."""
        settings = self.decoding(**decoding)
        batch = self.start_batch([[user_message(image, question)]], settings, seeds=[seed])
        while batch.working:
            yield self.draft(batch.step())


def load(
    name: str | Path = "tiny",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: str | None = None,
    quantize: Bits | None = None,
    store_bytes: int = 2**28,
    speech_model: str | Path | None = None,
) -> Pipeline:
    """A pipeline from a shipped model's name, a checkpoint folder, or a hub name such as
    "GSAI-ML/LLaDA-V".

    A folder with a LoRA adapter of PEFT is merged into the model that it names as its base.

    Args:
        device: "cpu", "cuda", "mps", ...; CUDA where there is it, else the CPU.
        dtype: of the weights; "auto" is float32 on CPU and MPS (bfloat16 is slow on most) and
            bfloat16 elsewhere.
        device_map: "auto" spreads a large model over all GPUs and the host's memory (Accelerate).
        quantize: "8bit" or "4bit" makes the layers' weights smaller (bitsandbytes), and less exact.
        store_bytes, speech_model: as for `Pipeline`.

    Raises:
        CheckpointError: nothing is known by that name, or the checkpoint is damaged, incomplete or
            of another kind.
    """
    target = choose_device(device)
    number_type = choose_dtype(dtype, target)
    check_placement(device_map, quantize)
    folder, adapter = find_base(name)
    loaded = load_folder(folder, target, number_type, device_map, quantize, adapter)
    return Pipeline(*loaded, store_bytes, speech_model)


def _with_heard(answer: Answer, question: Transcript) -> Answer:
    return dataclasses.replace(answer, heard=question.text, heard_confidence=question.confidence)


def _describe(value: object) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"one {type(value).__name__}"


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"mmdiff.pipeline.{name} is now {_MOVED[name]}.{name}", DeprecationWarning, stacklevel=2
    )
    return getattr(importlib.import_module(_MOVED[name]), name)
