"""Prefill, start, step, collect: what pipeline, transcription and server share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from mmdiff.answers import Answer, Draft, Token
from mmdiff.audio.audio_io import AudioSource, Samples, load_audio
from mmdiff.config import AudioConfig, DecodingConfig, is_number, shown, whole
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.guidance import Guided
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.prefix_cache import PrefixCache
from mmdiff.decoding.sampler import FinishedSequences, Runner, Sampler
from mmdiff.errors import ContextError, MMDiffError
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.processor import Messages, MMDiffProcessor, as_array, check_messages
from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary
from mmdiff.structured.extraction import StructuredSequence, settings_for, start_scaffold
from mmdiff.structured.schema.inputs import compile_source
from mmdiff.vision.image_io import open_image

MAX_TOKENS = 256  # of a structured answer
Item = TypeVar("Item")


class TextGenerator:
    """A model with its processor and prefix cache: conversations in, answers out."""

    def __init__(self, model: MMDiffModel, processor: MMDiffProcessor, store_bytes: int) -> None:
        self.model = model.eval()
        self.processor = processor
        self.store = PrefixCache(check_count("store_bytes", store_bytes, least=0, most=1 << 62))
        self._laid_out: tuple[Any, TemplateBuilder] | None = None

    def clear(self) -> None:
        """Forget what was kept for later questions. Changed weights and switched adapters are
        noticed without it."""
        self.store.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is made again when it is needed, so that a pipeline can be
        pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "recognizer"} | {
            "_laid_out": None
        }

    def chat(self, messages: Messages, *, seed: int = 0, **decoding: Any) -> Answer:
        """Answer a conversation in the chat format: roles, and contents with text and image
        parts."""
        return self.chat_batch([messages], seeds=[seed], **decoding)[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        **decoding: Any,
    ) -> list[Answer]:
        """Answer several conversations at once, of any lengths and numbers of pictures."""
        conversations = _listed("conversations", conversations)
        if not conversations:
            return []
        return self.answers(collect(self.start(conversations, seeds=seeds, **decoding)))

    def decoding(self, **changes: Any) -> DecodingConfig:
        """The model's decoding settings with changes; an unknown name or a misfit is an
        MMDiffError."""
        known = {field.name for field in dataclasses.fields(DecodingConfig)}
        if unknown := sorted(changes.keys() - known):
            raise MMDiffError(
                f"unknown decoding setting {unknown[0]!r}; known are {', '.join(sorted(known))}"
            )
        if "steps" in changes and not {"threshold", "rule"} & changes.keys():
            changes["threshold"] = (
                None  # a number of steps has no meaning to the model's usual threshold
            )
        try:
            return dataclasses.replace(self.model.model_config.decoding, **changes)
        except (ValueError, TypeError) as error:
            raise MMDiffError(str(error)) from None

    def prefill(self, conversations: Sequence[Messages], gen_length: int) -> ModelRunner:
        """The model with the conversations before it, if there is room for an answer behind the
        longest."""
        config = self.model.model_config
        for messages in conversations:
            check_messages(messages)
            check_question(messages)
        if config.system_prompt:
            conversations = [
                with_system(messages, config.system_prompt) for messages in conversations
            ]
        inputs = self.processor.apply_chat_template(
            [list(messages) for messages in conversations],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
        ).to(self.model.device)
        length, room = inputs["input_ids"].shape[1], config.backbone.max_position_embeddings
        if length + gen_length > room:
            raise ContextError(
                f"gen_length={gen_length} and a prompt of {length} tokens exceed the model's "
                f"{room} "
                "positions; ask for a shorter answer or give fewer pictures and shorter sounds"
            )
        with (
            torch.inference_mode()
        ):  # left before the first yield, or the caller would run in it between steps
            return ModelRunner(self.model, prefix_cache=self.store, **inputs)

    def start(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
        scaffolds: Sequence[CompiledSchema] | None = None,
        **decoding: Any,
    ) -> Sampler:
        """The answers to several conversations before their first step, for whoever steps them: a
        server, say.

        Batches that were started with the same settings may `add` each other; those with scaffolds
        add each other where the scaffolds have the same budget.

        Args:
            limits: positions that each answer may have at most; `gen_length` by default, and never
                more.
            scaffolds: what each answer must be (see `compile`); its structure is decided here,
                which takes passes.
        """
        settings = self.decoding(**decoding)
        conversations = _listed("conversations", conversations)
        seeds = None if seeds is None else _listed("seeds", seeds)
        limits = None if limits is None else _listed("limits", limits)
        if scaffolds is not None:
            return self._start_scaffolds(conversations, scaffolds, settings, seeds)
        prompted = self.prefill(conversations, settings.gen_length)
        runner: Runner = make_runner(prompted, settings)
        if settings.cfg_scale > 0:
            runner = Guided(
                runner, make_runner(prompted.unconditional(), settings), settings.cfg_scale
            )
        tokens, most = self.model.model_config.tokens, settings.gen_length
        if limits is None:
            limits = [most] * len(conversations)
        limits = [min(check_count("limits", each), most) for each in limits]
        if len(limits) != len(conversations):
            raise MMDiffError(
                f"limits={limits} do not fit {len(conversations)} conversations; give a number "
                "for each"
            )
        lengths = [min(limit, settings.start_length or most) for limit in limits]
        canvas = Canvas.ragged(lengths, most, tokens.mask, self.model.device)
        return Sampler(runner, canvas, settings, tokens, seeds, limits)

    def _start_scaffolds(
        self,
        conversations: Sequence[Messages],
        scaffolds: Sequence[CompiledSchema],
        decoding: DecodingConfig,
        seeds: Sequence[int] | None,
    ) -> Sampler:
        if not conversations or len(scaffolds) != len(conversations):
            raise MMDiffError(
                f"{len(scaffolds)} scaffolds for {len(conversations)} conversations; give one "
                "for each"
            )
        settings, batch = settings_for(scaffolds, decoding), None
        for messages, scaffold, seed in zip(
            conversations, scaffolds, seeds or range(len(scaffolds)), strict=True
        ):
            prompted = self.prefill([messages], settings.gen_length)
            one = start_scaffold(prompted, scaffold, settings, self.model.model_config.tokens, seed)
            if batch is None:
                batch = one
            else:
                batch.add(one)
        assert batch is not None
        return batch

    def answers(self, finished: FinishedSequences) -> list[Answer]:
        """What the rows say that have left a batch; where they had scaffolds, a text that fits."""
        answers = self._answers(finished.canvas, finished.passes)
        for row, constraint in enumerate(finished.constraints):
            if isinstance(constraint, StructuredSequence):
                answers[row] = self._structured(finished, row, constraint)
        return answers

    def draft(
        self, canvas: Canvas, row: int = 0, filling: StructuredSequence | None = None
    ) -> Draft:
        """A row of a batch as it stands after a step.

        Args:
            filling: the row's constraint, where it has a scaffold; padding stands inside it, and no
                draft ends there.
        """
        tokens = self.model.model_config.tokens
        taken = canvas.select(torch.tensor([row], device=canvas.ids_BG.device))
        places = (
            filling.positions(taken.ids_BG[0].tolist())
            if filling is not None
            else range(len(taken.token_ids((tokens.eos, tokens.eot))[0]))
        )
        open_G = canvas.open_BG[row].tolist()
        drafted = (None if open_G[place] else self._token(canvas, row, place) for place in places)
        return Draft(int(canvas.step_BG[row].max()), tuple(drafted))

    def _answers(
        self, canvas: Canvas, passes: Sequence[int], revised: bool = False
    ) -> list[Answer]:
        """The answers of a finished canvas; in a revised draft, end-of-text tokens are places with
        nothing in them."""
        tokens = self.model.model_config.tokens
        rows = canvas.token_ids((tokens.eot,) if revised else (tokens.eos, tokens.eot))
        kept = [[place for place, token in enumerate(row) if token != tokens.eos] for row in rows]
        return [
            Answer(
                text=self.processor.tokenizer.decode(
                    canvas.ids_BG[row, places], skip_special_tokens=True
                ).strip(),
                tokens=tuple(self._token(canvas, row, place) for place in places),
                steps=int(canvas.step_BG[row].max()) + 1,
                passes=passes[row],
            )
            for row, places in enumerate(kept)
        ]

    def _structured(
        self, finished: FinishedSequences, row: int, filling: StructuredSequence
    ) -> Answer:
        """The answer of a row with a scaffold: tokens for all positions but padding, which stands
        inside it too."""
        canvas = finished.canvas.select(torch.tensor([row], device=finished.canvas.ids_BG.device))
        made = filling.extraction(canvas, finished.passes[row])
        places = filling.positions(canvas.ids_BG[0].tolist())
        tokens = tuple(self._token(canvas, 0, place) for place in places)
        return Answer(made.text, tokens, made.steps, made.passes, structured=made)

    def _token(self, canvas: Canvas, row: int, position: int) -> Token:
        text = self.processor.tokenizer.decode(canvas.ids_BG[row, position : position + 1])
        return Token(
            text, float(canvas.confidence_BG[row, position]), int(canvas.step_BG[row, position])
        )

    def compile(self, schema: Any, max_tokens: int = MAX_TOKENS) -> CompiledSchema:
        """What `start` takes as a scaffold, of a JSON Schema or a type that pydantic knows.

        Raises:
            ScaffoldError: the schema cannot be honoured, or its shortest value takes more than
                `max_tokens`.
        """
        return compile_source(schema, self.layouts, check_count("max_tokens", max_tokens))

    @property
    def layouts(self) -> TemplateBuilder:
        """Of the tokenizer and the ids as they are now."""
        tokenizer, config = self.processor.tokenizer, self.model.model_config
        made_from = (tokenizer, len(tokenizer), config.tokens, config.backbone.vocab_size)
        if self._laid_out is None or self._laid_out[0] != made_from:
            vocabulary = Vocabulary.of(tokenizer, config.tokens, config.backbone.vocab_size)
            self._laid_out = (
                made_from,
                TemplateBuilder(vocabulary, config.tokens.mask, config.tokens.eot),
            )
        return self._laid_out[1]

    def _audio_config(self) -> AudioConfig:
        if self.model.model_config.audio is None:
            raise MMDiffError("this model takes no sounds; load another one")
        return self.model.model_config.audio


def collect(batch: Sampler) -> FinishedSequences:
    while batch.working:
        batch.step()
    return batch.pop_finished()


def audio_message(samples: Samples, text: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "audio", "audio": samples}, {"type": "text", "text": text}],
    }


def user_message(image: Any, question: str) -> dict[str, Any]:
    pictures = [] if image is None else image if isinstance(image, list) else [image]
    # The processor opens Pillow's images, so that not each of them is held twice.
    opened = [
        {
            "type": "image",
            "image": picture if isinstance(picture, Image.Image) else open_image(picture),
        }
        for picture in pictures
    ]
    return {"role": "user", "content": [*opened, {"type": "text", "text": question}]}


def check_question(messages: Messages) -> None:
    content = messages[-1]["content"]
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    if not any(text.strip() for text in texts):
        raise MMDiffError("the question is empty; say what you want to know")


def audio_samples(audio: AudioSource, sample_rate: int | None) -> Samples:
    """`load_audio`, also of tensors."""
    if sample_rate is not None and not is_number(sample_rate):
        raise MMDiffError(f"sample_rate={shown(sample_rate)} does not fit: give a number, in Hz")
    return load_audio(as_array(audio), sample_rate)


def _listed(name: str, value: Iterable[Item]) -> list[Item]:
    """Of a list, or whatever else gives one for each conversation."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise MMDiffError(
            f"{name}={shown(value)} does not fit; give a list, with one for each conversation"
        )
    return list(value)


def check_count(name: str, value: object, least: int = 1, most: int = 1 << 31) -> int:
    try:
        return whole(name, value, least, most)
    except ValueError as error:
        raise MMDiffError(str(error)) from None


def check_text(name: str, value: object, exact: bool = False) -> str:
    """A text; where it is to come out again exactly, one that Unicode can spell."""
    if not isinstance(value, str):
        raise MMDiffError(f"{name}={shown(value)} is not a text")
    if exact and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise MMDiffError(
            f"{name}={shown(value)} holds half of a surrogate pair, which is no character"
        )
    return value


def with_system(messages: Messages, prompt: str) -> Messages:
    if messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": prompt}, *messages]
