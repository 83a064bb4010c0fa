"""Prefill, start, step, collect: what pipeline, transcription and server share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from PIL import Image

from mmdiff.answers import Answer, Draft, Token
from mmdiff.audio.audio_io import AudioSource, Samples, load_audio
from mmdiff.config import AudioConfig, DecodingConfig, changed, is_number, shown, whole
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


class CanvasReader:
    """Reads answers and drafts out of canvases."""

    def __init__(self, model: MMDiffModel, processor: MMDiffProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

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
        if filling is not None:
            positions: Iterable[int] = filling.positions(taken.ids_BG[0].tolist())
        else:
            positions = range(len(taken.token_ids((tokens.eos, tokens.eot))[0]))
        open_G = canvas.open_BG[row].tolist()
        drafted: list[Token | None] = []
        for position in positions:
            if open_G[position]:
                drafted.append(None)
            else:
                drafted.append(self._token(canvas, row, position))
        return Draft(int(canvas.step_BG[row].max()), tuple(drafted))

    def _answers(
        self, canvas: Canvas, passes: Sequence[int], revised: bool = False
    ) -> list[Answer]:
        """The answers of a finished canvas; in a revised draft, end-of-text tokens are positions
        with nothing in them."""
        tokens = self.model.model_config.tokens
        ends = [tokens.eot]
        if not revised:
            ends.append(tokens.eos)
        answers = []
        for row, ids in enumerate(canvas.token_ids(ends)):
            positions = [position for position, id in enumerate(ids) if id != tokens.eos]
            text = self.processor.tokenizer.decode(
                canvas.ids_BG[row, positions], skip_special_tokens=True
            )
            made = self._tokens(canvas, row, positions)
            steps = int(canvas.step_BG[row].max()) + 1
            answers.append(Answer(text.strip(), made, steps, passes[row]))
        return answers

    def _structured(
        self, finished: FinishedSequences, row: int, filling: StructuredSequence
    ) -> Answer:
        """The answer of a row with a scaffold: tokens for all positions but padding, which stands
        inside it too."""
        canvas = finished.canvas.select(torch.tensor([row], device=finished.canvas.ids_BG.device))
        made = filling.extraction(canvas, finished.passes[row])
        tokens = self._tokens(canvas, 0, filling.positions(canvas.ids_BG[0].tolist()))
        return Answer(made.text, tokens, made.steps, made.passes, structured=made)

    def _tokens(self, canvas: Canvas, row: int, positions: Iterable[int]) -> tuple[Token, ...]:
        return tuple(self._token(canvas, row, position) for position in positions)

    def _token(self, canvas: Canvas, row: int, position: int) -> Token:
        text = self.processor.tokenizer.decode(canvas.ids_BG[row, position : position + 1])
        return Token(
            text, float(canvas.confidence_BG[row, position]), int(canvas.step_BG[row, position])
        )


class TextGenerator(CanvasReader):
    """A model with its processor and prefix cache: conversations in, answers out."""

    def __init__(self, model: MMDiffModel, processor: MMDiffProcessor, store_bytes: int) -> None:
        super().__init__(model, processor)
        self.store = PrefixCache(check_count("store_bytes", store_bytes, least=0, most=1 << 62))
        self._laid_out: tuple[Any, TemplateBuilder] | None = None

    def clear(self) -> None:
        """Forget what was kept for later questions. Changed weights and switched adapters are
        noticed without it."""
        self.store.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but what is made again when it is needed, so that a pipeline can be
        pickled."""
        state = {**self.__dict__, "_laid_out": None}
        state.pop("recognizer", None)
        return state

    def chat(self, messages: Messages, *, seed: int = 0, **decoding: Any) -> Answer:
        """Answer a conversation in the chat format: roles, and contents with text and image
        parts."""
        return self._chat_batch([messages], self.decoding(**decoding), [seed])[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        *,
        seeds: Sequence[int] | None = None,
        **decoding: Any,
    ) -> list[Answer]:
        """Answer several conversations at once, of any lengths and numbers of images."""
        return self._chat_batch(conversations, self.decoding(**decoding), seeds)

    def _chat_batch(
        self,
        conversations: Sequence[Messages],
        settings: DecodingConfig,
        seeds: Sequence[int] | None = None,
    ) -> list[Answer]:
        conversations = _listed("conversations", conversations)
        if not conversations:
            return []
        return self.answers(collect(self.start_batch(conversations, settings, seeds=seeds)))

    def decoding(self, **changes: Any) -> DecodingConfig:
        """The model's decoding settings with changes; an unknown name or a misfit is an
        MMDiffError."""
        try:
            return changed(self.model.model_config.decoding, changes)
        except ValueError as error:
            raise MMDiffError(str(error)) from None

    def prefill(self, conversations: Sequence[Messages], gen_length: int) -> ModelRunner:
        """The model with the conversations before it, if an answer fits behind the longest."""
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
        length = inputs["input_ids"].shape[1]
        capacity = config.backbone.max_position_embeddings
        if length + gen_length > capacity:
            raise ContextError(
                f"gen_length={gen_length} and a prompt of {length} tokens exceed the model's "
                f"{capacity} positions; ask for a shorter answer or give fewer images and shorter "
                "audio"
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
        """The answers to several conversations before their first step, for a caller that steps
        them, such as a server.

        Batches that were started with the same settings may `add` each other; those with scaffolds
        add each other where the scaffolds have the same budget.

        Args:
            limits: positions that each answer may have at most; `gen_length` by default, and never
                more.
            scaffolds: what each answer must be (see `compile`); its structure is decided here,
                which takes passes.
        """
        settings = self.decoding(**decoding)
        return self.start_batch(
            conversations, settings, seeds=seeds, limits=limits, scaffolds=scaffolds
        )

    def start_batch(
        self,
        conversations: Sequence[Messages],
        settings: DecodingConfig,
        *,
        seeds: Sequence[int] | None = None,
        limits: Sequence[int] | None = None,
        scaffolds: Sequence[CompiledSchema] | None = None,
    ) -> Sampler:
        """`start` with settings that are parsed already."""
        conversations = _listed("conversations", conversations)
        if seeds is not None:
            seeds = _listed("seeds", seeds)
        if scaffolds is not None:
            return self._start_scaffolds(conversations, scaffolds, settings, seeds)
        prompted = self.prefill(conversations, settings.gen_length)
        runner: Runner = make_runner(prompted, settings)
        if settings.cfg_scale > 0:
            runner = Guided(
                runner, make_runner(prompted.unconditional(), settings), settings.cfg_scale
            )
        tokens, most = self.model.model_config.tokens, settings.gen_length
        limits = _checked_limits(limits, len(conversations), most)
        lengths = [min(limit, settings.start_length or most) for limit in limits]
        if settings.block_origin == "sequence" and settings.start_length is None:
            # To the end of its block, as in training; what is beyond the limit is cut off again.
            for row, each in enumerate(runner.prompts):
                lengths[row] += -(each.length + lengths[row]) % settings.block_length
        most = max(most, *lengths)
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
            raise MMDiffError("this model takes no audio; load another one")
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
    """A question about an image, or several in a list; None for none."""
    if image is None:
        image = []
    elif not isinstance(image, list):
        image = [image]
    content: list[dict[str, Any]] = []
    for each in image:
        # The processor opens Pillow's images, so that not each of them is held twice.
        if not isinstance(each, Image.Image):
            each = open_image(each)
        content.append({"type": "image", "image": each})
    return {"role": "user", "content": [*content, {"type": "text", "text": question}]}


def check_question(messages: Messages) -> None:
    content = messages[-1]["content"]
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not any(part.get("text", "").strip() for part in content):
        raise MMDiffError("the question is empty; say what you want to know")


def audio_samples(audio: AudioSource, sample_rate: int | None) -> Samples:
    """`load_audio`, also of tensors."""
    if sample_rate is not None and not is_number(sample_rate):
        raise MMDiffError(f"sample_rate={shown(sample_rate)} does not fit: give a number, in Hz")
    return load_audio(as_array(audio), sample_rate)


def _checked_limits(limits: Sequence[int] | None, count: int, most: int) -> list[int]:
    """Positions that each answer may have, `most` at most."""
    if limits is None:
        return [most] * count
    limits = [min(check_count("limits", each), most) for each in _listed("limits", limits)]
    if len(limits) != count:
        raise MMDiffError(
            f"limits={limits} do not fit {count} conversations; give a number for each"
        )
    return limits


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
            f"{name}={shown(value)} holds half of a surrogate pair, which is not a character"
        )
    return value


def with_system(messages: Messages, prompt: str) -> Messages:
    if messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": prompt}, *messages]
