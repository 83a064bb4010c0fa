"""The verbs people use: ask, caption, transcribe, listen, refine, chat, stream, extract, choose,
fill.

The only place where model, processor and sampler meet.

`load("tiny")` gives the shipped default; a folder or a hub name gives a published checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from PIL import Image
from torch import Tensor

from mmdiff.audio.audio_io import SAMPLE_RATE, AudioSource, Samples, load_audio
from mmdiff.audio.ctc import text_probability, timed_path, timed_words
from mmdiff.audio.vad import Span
from mmdiff.audio.whisper_decoder import BEAM_SIZE, SpeechRecognizer, Window, load_recognizer
from mmdiff.config import PRESETS, AudioConfig, DecodingConfig, is_number, shown, whole
from mmdiff.decoding.cached_runner import make_runner
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.guidance import Guided
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.decoding.prefix_cache import PrefixCache
from mmdiff.decoding.sampler import FinishedSequences, Runner, Sampler, denoise, seed_of
from mmdiff.errors import CheckpointError, ContextError, MMDiffError, NoSpeechError
from mmdiff.modeling.checkpoint import WEIGHT_TYPES, config_of, load_folder
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.modeling.processor import Messages, MMDiffProcessor, as_array, check_messages
from mmdiff.modeling.quantize import QUANTIZED, Bits
from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.constraint.template import TemplateBuilder
from mmdiff.structured.constraint.token_dfa import Vocabulary
from mmdiff.structured.extraction import (
    Extraction,
    StructuredSequence,
    settings_for,
    start_scaffold,
)
from mmdiff.structured.schema.inputs import (
    blanks,
    compile_choices,
    compile_source,
    compile_template,
    schema_of,
)
from mmdiff.structured.schema.serialize import EXTRACT_PROMPT, outline
from mmdiff.transcript import Segment, Transcript
from mmdiff.transcription import Reader, RecognitionOptions, transcribe_audio
from mmdiff.vision.image_io import open_image

SHIPPED = Path(__file__).parent / "models"
FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]  # of a checkpoint on the hub
SETTINGS = ["config.json", "*/config.json", "adapter_config.json"]
T = TypeVar("T", int, float)
Item = TypeVar("Item")
CaptionLength = Literal["word", "short", "long"]
CAPTION_PROMPTS: dict[CaptionLength, str] = {
    "word": "Describe the picture in one word.",
    "short": "Describe the picture briefly.",
    "long": "Describe the picture in detail.",
}
CAPTION_ROOM: dict[CaptionLength, int] = {
    "word": 8,
    "short": 32,
    "long": 64,
}  # positions of the canvas
REFINE_PROMPT = "Correct the transcript of the audio."
FILL_PROMPT = "Fill in the blanks: {}"  # with the text
MAX_TOKENS = 256  # of a structured answer
FRAMES_PER_SECOND = 50  # of Whisper's encoder
RefineMode = Literal["low_confidence", "chunks"]
Channels = Literal["mix", "separate"]


@dataclass(frozen=True)
class Token:
    """One decided position: its text, its confidence when decided (0 to 1) and the step (from
    0)."""

    text: str
    confidence: float
    step: int


@dataclass(frozen=True)
class Answer:
    """A finished answer; `steps` is how often its row was denoised, `passes` how many forward
    passes had it in them."""

    text: str
    tokens: tuple[Token, ...]
    steps: int
    passes: int = 0
    heard: str = ""  # the question, where it was spoken
    heard_confidence: float = (
        1.0  # probability (0 to 1) that all words of a spoken question were transcribed right
    )
    structured: Extraction | None = None  # where it had a scaffold

    @property
    def confidence(self) -> float:
        """The least confidence of any of its tokens; of a structured answer that of its value."""
        if self.structured is not None:
            return self.structured.confidence
        return min((token.confidence for token in self.tokens), default=1.0)


@dataclass(frozen=True)
class Draft:
    """An answer on its way: a token for every position up to the answer's end, None where it is
    still open."""

    step: int
    tokens: tuple[Token | None, ...]


class Pipeline:
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
            store_bytes: room for what later questions may share, such as an encoded picture; 0 for
                nothing.
            speech_model: a folder or hub name of the Whisper that writes speech down; tiny.en by
                default.
        """
        self.speech_model = speech_model
        self.model = model.eval()
        self.processor = processor
        self.store = PrefixCache(_whole("store_bytes", store_bytes, least=0, most=1 << 62))
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
        """Answer a question about a picture, or about several pictures given as a list.

        With a list of questions, `image` is a list of the same length (each entry a picture or a
        list of pictures), and the answers come as a list; an answer does not depend on the others
        of its batch.

        Args:
            image: whatever `vision.image.open_image` takes: path, bytes, file, array or PIL image;
                None for no picture.
            speech: the question as a sound instead of words, in any form that
                `audio.decode.load_audio` takes, or a list of them. It is written down first
                (`Answer.heard`, `Answer.heard_confidence`) and then asked.
            sample_rate: of speech that is given as arrays, in Hz.
            seed: for temperature and random order; the n-th question of a list uses `seed + n`.

        Raises:
            MMDiffError: a picture cannot be read, a question is empty, or a setting does not fit.
        """
        if speech is not None:
            if question is not None:
                raise MMDiffError("give the question in words or as speech, not both")
            if isinstance(speech, list):
                heard = [self.heard(sound, sample_rate) for sound in speech]
                answers = self.ask(
                    image, [transcript.text for transcript in heard], seed=seed, **decoding
                )
                return list(map(_with_heard, answers, heard))
            heard_once = self.heard(speech, sample_rate)
            return _with_heard(self.ask(image, heard_once.text, seed=seed, **decoding), heard_once)
        if question is None:
            raise MMDiffError("there is no question; give it in words, or as a sound with speech=")
        if isinstance(question, str):
            return self.chat([_user(image, question)], seed=seed, **decoding)
        if not isinstance(question, list):
            raise MMDiffError(
                f"question={shown(question)} does not fit; give a text, or a list of texts"
            )
        if not isinstance(image, list) or len(image) != len(question):
            count = len(question)
            raise MMDiffError(
                f"{count} questions need a list of {count} pictures, not {_describe(image)}"
            )
        rows = [[_user(picture, text)] for picture, text in zip(image, question, strict=True)]
        return self.chat_batch(
            rows, seeds=[seed_of(seed, row) for row in range(len(rows))], **decoding
        )

    def caption(self, image: Any, length: CaptionLength = "short", **options: Any) -> Any:
        """Describe a picture in a word, briefly, or in detail; a list of pictures gives a list of
        answers."""
        if not isinstance(length, str) or length not in CAPTION_PROMPTS:
            raise MMDiffError(
                f"length={shown(length)} is not known; use one of {', '.join(CAPTION_PROMPTS)}"
            )
        prompt = CAPTION_PROMPTS[length]
        options.setdefault("gen_length", CAPTION_ROOM[length])
        return self.ask(
            image, [prompt] * len(image) if isinstance(image, list) else prompt, **options
        )

    def transcribe(
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
        options = RecognitionOptions(language, prompt, temperature, beam_size)
        return transcribe_audio(
            self.recognizer,
            audio,
            options,
            sample_rate=sample_rate,
            gate=gate,
            max_seconds=max_seconds,
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

    def listen(
        self,
        audio: AudioSource,
        question: str,
        *,
        sample_rate: int | None = None,
        seed: int = 0,
        **decoding: Any,
    ) -> Answer:
        """Answer a question about a sound, all of which is heard at once."""
        self._audio_config()
        return self.chat([_listener(_samples(audio, sample_rate), question)], seed=seed, **decoding)

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
        sound in view.

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
        ids = self.processor.text_ids(_text("draft", draft).strip())
        if not ids:
            raise MMDiffError(
                "the draft is empty; give the words to put right, or transcribe the sound"
            )
        if mode not in ("low_confidence", "chunks"):
            raise MMDiffError(f"mode={shown(mode)} is not known; use low_confidence or chunks")
        chunks, slack = _whole("chunks", chunks), _whole("slack", slack, least=0)
        if not (is_number(share) and 0 <= share <= 1):
            raise MMDiffError(
                f"share={shown(share)} does not fit: it must be a number between 0 and 1"
            )
        prompted = self._prompt(
            [[_listener(_samples(audio, sample_rate), REFINE_PROMPT)]], len(ids)
        )
        settings = self.decoding(**decoding)
        if mode == "low_confidence":
            likely = self._likelihoods(prompted, ids)
            doubted = set(
                sorted(range(len(ids)), key=lambda place: likely[place])[: round(share * len(ids))]
            )
            canvas = self._reopen(prompted, [ids], [doubted], slack, settings)
            return self._answers(canvas, [each.passes for each in prompted.prompts], revised=True)[
                0
            ]
        ends = [len(ids) * part // chunks for part in range(chunks + 1)]
        for first, end in reversed(
            list(zip(ends, ends[1:], strict=False))
        ):  # from behind, so that places stay
            canvas = self._reopen(prompted, [ids], [set(range(first, end))], slack, settings)
            ids = self._kept(canvas)[0]
        return self._answers(canvas, [each.passes for each in prompted.prompts], revised=True)[0]

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
        return self.answers(_finish(self.start(conversations, seeds=seeds, **decoding)))

    def stream(
        self, image: Any, question: str, *, seed: int = 0, **decoding: Any
    ) -> Iterator[Draft]:
        """The answer being denoised: one draft after each step, the last one complete."""
        batch = self.start([[_user(image, question)]], seeds=[seed], **decoding)
        while batch.working:
            yield self.draft(batch.step())

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

        Batches that were started with the same settings may `add` each other; those with scaffolds join each
        other where the scaffolds have the same budget.

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
        prompted = self._prompt(conversations, settings.gen_length)
        runner: Runner = make_runner(prompted, settings)
        if settings.cfg_scale > 0:
            runner = Guided(
                runner, make_runner(prompted.unconditional(), settings), settings.cfg_scale
            )
        tokens, most = self.model.model_config.tokens, settings.gen_length
        if limits is None:
            limits = [most] * len(conversations)
        limits = [min(_whole("limits", each), most) for each in limits]
        if len(limits) != len(conversations):
            raise MMDiffError(
                f"limits={limits} do not fit {len(conversations)} conversations; give a number for each"
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
                f"{len(scaffolds)} scaffolds for {len(conversations)} conversations; give one for each"
            )
        settings, batch = settings_for(scaffolds, decoding), None
        for messages, scaffold, seed in zip(
            conversations, scaffolds, seeds or range(len(scaffolds)), strict=True
        ):
            prompted = self._prompt([messages], settings.gen_length)
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

    def compile(self, schema: Any, max_tokens: int = MAX_TOKENS) -> CompiledSchema:
        """What `start` takes as a scaffold, of a JSON Schema or a type that pydantic knows.

        Raises:
            ScaffoldError: the schema cannot be honoured, or its shortest value takes more than
                `max_tokens`.
        """
        return compile_source(schema, self._layouts, _whole("max_tokens", max_tokens))

    def extract(
        self,
        image: Any,
        schema: Any,
        *,
        audio: AudioSource | None = None,
        text: str | None = None,
        question: str | None = None,
        sample_rate: int | None = None,
        max_tokens: int = MAX_TOKENS,
        seed: int = 0,
        **decoding: Any,
    ) -> Extraction:
        """A value that fits a schema, from a picture (or several in a list), a sound, or a text.

        Args:
            image: as for `ask`; None for none.
            schema: a JSON Schema, or a type that pydantic knows (a model, a dataclass, list[int],
                ...), of which the value then is.
            audio: a sound instead, in any form that `audio.decode.load_audio` takes; an array with
                its `sample_rate`.
            text: words to take the values from, besides or instead.
            question: what is wanted, in words; the schema's names are shown in any case.
            max_tokens: that the value may take.

        Raises:
            ScaffoldError: the schema cannot be honoured; nothing was asked of the model then.
            MMDiffError: a source cannot be read, or a setting does not fit.
        """
        for name, given in {"text": text, "question": question}.items():
            if given is not None:
                _text(name, given)
        if audio is None and not text and not question and (image is None or image == []):
            raise MMDiffError(
                "there is nothing to extract from; give an image, audio, a text or a question"
            )
        scaffold = self.compile(schema, max_tokens)
        wanted = EXTRACT_PROMPT.format(outline(schema_of(schema)[0]))
        prompt = "\n".join(part for part in (text, question and question.strip(), wanted) if part)
        if audio is not None:
            self._audio_config()
            return self._filled(
                [_listener(_samples(audio, sample_rate), prompt)], scaffold, seed, decoding
            )
        return self._filled([_user(image, prompt)], scaffold, seed, decoding)

    def choose(
        self, image: Any, question: str, choices: Sequence[str], *, seed: int = 0, **decoding: Any
    ) -> Extraction:
        """One of some answers to a question, with the chance of each: `fields[""].chances`. It
        takes one pass."""
        if not isinstance(choices, str):
            choices = [_text("choice", choice, exact=True) for choice in choices or ()]
        scaffold = compile_choices(choices, self._layouts, MAX_TOKENS)
        return self._filled([_user(image, question)], scaffold, seed, decoding)

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
        scaffold = compile_template(_text("text", text, exact=True), self._layouts, MAX_TOKENS)
        prompt = question or FILL_PROMPT.format(blanks(text))
        return self._filled([_user(image, prompt)], scaffold, seed, decoding)

    def _filled(
        self, messages: Messages, scaffold: CompiledSchema, seed: int, decoding: dict[str, Any]
    ) -> Extraction:
        finished = _finish(self.start([messages], seeds=[seed], scaffolds=[scaffold], **decoding))
        made = self.answers(finished)[0].structured
        assert made is not None
        return made

    @property
    def _layouts(self) -> TemplateBuilder:
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

    def _prompt(self, conversations: Sequence[Messages], gen_length: int) -> ModelRunner:
        """The model with the conversations before it, if there is room for an answer behind the
        longest."""
        config = self.model.model_config
        for messages in conversations:
            check_messages(messages)
            _check_question(messages)
        if config.system_prompt:
            conversations = [
                _with_system(messages, config.system_prompt) for messages in conversations
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
                f"gen_length={gen_length} and a prompt of {length} tokens exceed the model's {room} "
                "positions; ask for a shorter answer or give fewer pictures and shorter sounds"
            )
        with (
            torch.inference_mode()
        ):  # left before the first yield, or the caller would run in it between steps
            return ModelRunner(self.model, prefix_cache=self.store, **inputs)

    def _audio_config(self) -> AudioConfig:
        if self.model.model_config.audio is None:
            raise MMDiffError("this model takes no sounds; load another one")
        return self.model.model_config.audio

    def heard(self, speech: AudioSource, sample_rate: int | None = None) -> Transcript:
        """A spoken question in words; a NoSpeechError where there is no speech."""
        transcript = self.transcribe(speech, sample_rate=sample_rate)
        if not transcript.text:
            raise NoSpeechError(
                "no speech was found in the spoken question; say it again, nearer to the microphone"
            )
        return transcript

    @property
    def reader(self) -> Reader | None:
        """Reads speech by CTC, where the model's audio embeddings spell words; it is of use beside
        tiny.en alone."""
        config = self.model.model_config.audio
        return (
            self._read
            if config is not None and config.ctc_drafts and self.speech_model is None
            else None
        )

    def _read(self, samples: Samples, window: Window) -> list[Segment | None]:
        """What each stretch of speech in a window spells; None for those that are too long for the
        model."""
        most = self._audio_config().segment_seconds * SAMPLE_RATE
        short = [span for span in window if span.end - span.start <= most]
        if not short:
            return [None] * len(window)
        sounds = [samples[span.start : span.end] for span in short]
        prompted = self._prompt([[_listener(sound, REFINE_PROMPT)] for sound in sounds], 1)
        rows = prompted.audio_logits()
        read = {
            span: self._spelled(span, logits_TV)
            for span, logits_TV in zip(short, rows, strict=True)
        }
        return [read.get(span) for span in window]

    def _spelled(self, span: Span, logits_TV: Tensor) -> Segment:
        """The words that the outputs at the audio's embeddings spell."""
        decode, blank = self.processor.tokenizer.decode, self.model.model_config.tokens.eos
        tokens = timed_path(logits_TV, blank)
        ids = [token.id for token in tokens]
        words = timed_words(
            tokens,
            decode,
            span.seconds[0],
            self._audio_config().frames_per_token / FRAMES_PER_SECOND,
        )
        return Segment(
            *span.seconds,
            decode(ids).strip(),
            text_probability(logits_TV, ids, blank),
            tuple(ids),
            words,
        )

    def _likelihoods(self, prompted: ModelRunner, ids: list[int]) -> list[float]:
        """How likely each token is with its neighbours on both sides in view: two passes, every
        other one hidden."""
        device, mask = self.model.device, self.model.model_config.tokens.mask
        row_G = torch.tensor([*ids, self.model.model_config.tokens.eot], device=device)
        likely = torch.zeros(len(row_G), device=device)
        for turn in (0, 1):
            hidden_G = torch.arange(len(row_G), device=device) % 2 == turn
            seen_1G = row_G.masked_fill(hidden_G, mask)[None].numpy(force=True)
            logits_NV = prompted(
                seen_1G, prompted.prompts, hidden_G[None].numpy(force=True)
            ).float()
            likely[hidden_G] = logits_NV.softmax(-1).gather(1, row_G[hidden_G, None])[:, 0]
        return likely[:-1].tolist()

    def _reopen(
        self,
        prompted: ModelRunner,
        rows: Sequence[list[int]],
        doubted: Sequence[set[int]],
        slack: int,
        decoding: DecodingConfig,
    ) -> Canvas:
        """Denoise the doubted places of drafts, each run of them with `slack` more; nothing may
        stand in a place."""
        tokens = self.model.model_config.tokens
        opened = [
            [*_opened(ids, places, slack, tokens.mask), tokens.eot]
            for ids, places in zip(rows, doubted, strict=True)
        ]
        canvas = Canvas.of(_padded(opened, tokens.eos).to(self.model.device), tokens.mask)
        length = canvas.ids_BG.shape[1]
        settings = dataclasses.replace(decoding, gen_length=length, block_length=length)
        inside = dataclasses.replace(tokens, eos=tokens.eot, never=(*tokens.never, tokens.eot))
        return deque(
            [canvas, *denoise(make_runner(prompted, settings), canvas, settings, inside)], maxlen=1
        )[0]

    def _kept(self, canvas: Canvas) -> list[list[int]]:
        """The ids of each row before its end, without the places where nothing stands."""
        tokens = self.model.model_config.tokens
        return [
            [token for token in row if token != tokens.eos]
            for row in canvas.token_ids((tokens.eot,))
        ]

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

    def _token(self, canvas: Canvas, row: int, position: int) -> Token:
        text = self.processor.tokenizer.decode(canvas.ids_BG[row, position : position + 1])
        return Token(
            text, float(canvas.confidence_BG[row, position]), int(canvas.step_BG[row, position])
        )


def _finish(batch: Sampler) -> FinishedSequences:
    while batch.working:
        batch.step()
    return batch.pop_finished()


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

    Args:
        device: "cpu", "cuda", "mps", ...; CUDA where there is it, else the CPU.
        dtype: of the weights; "auto" is float32 on CPU and MPS (bfloat16 is slow on most) and
            bfloat16 elsewhere.
        device_map: "auto" spreads a large model over the GPUs there are, and what they cannot hold
            over the processor's memory (Accelerate).
        quantize: "8bit" or "4bit" keeps the layers' weights smaller (bitsandbytes), at some loss of
            quality.
        store_bytes: room for what later questions may share, such as an encoded picture; 0 for
            nothing.
        speech_model: a folder or hub name of the Whisper that writes speech down; tiny.en by
            default.

    Raises:
        CheckpointError: nothing is known by that name, or the checkpoint is damaged, incomplete or
            of another kind.
    """
    place = choose_device(device)
    if dtype == "auto":
        dtype = torch.float32 if place.type in ("cpu", "mps") else torch.bfloat16
    number_type = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if number_type not in WEIGHT_TYPES:
        raise MMDiffError(f"dtype={shown(dtype)} does not fit; use float32 or bfloat16, or auto")
    if device_map not in (None, "auto"):
        raise MMDiffError(
            f"device_map={shown(device_map)} is not known; use 'auto', or leave it out"
        )
    if quantize not in (None, *QUANTIZED):
        raise MMDiffError(f"quantize={shown(quantize)} is not known; use {' or '.join(QUANTIZED)}")
    if quantize is not None and device_map is not None:
        raise MMDiffError(
            f"quantize={quantize!r} and device_map={device_map!r} do not go together; choose one of them"
        )
    return Pipeline(
        *load_folder(find(name), place, number_type, device_map, quantize),
        store_bytes,
        speech_model,
    )


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; without one CUDA where there is it, else the CPU. MPS is used when
    it is asked for.

    Raises:
        MMDiffError: it is not a device, or not one that this machine and this PyTorch have.
    """
    place = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(place)
        torch.zeros((), device=device).item()  # "meta" has tensors without values
        return device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
    if str(place).startswith("mps"):
        reason = "it takes a Mac with Apple silicon and a PyTorch that is built for it"
    raise MMDiffError(f"device {str(place)[:80]!r} cannot be used here ({reason}); try cpu")


def find(name: str | Path, weights: bool = True) -> Path:
    """The folder of a model: shipped, on disk, or fetched from the hub (names with one slash).

    Args:
        weights: whether all of it is fetched; without, its settings alone.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise CheckpointError(
            f"model={shown(name)} does not fit; give a shipped name, a folder or a hub name"
        )
    folder = SHIPPED / str(name)
    if str(name) in PRESETS and (folder / "config.json").is_file():
        return folder
    if Path(name).is_dir():
        return Path(name)
    if str(name) in PRESETS:
        raise CheckpointError(
            f"mmdiff ships no weights for {str(name)!r}; give the path of a checkpoint folder, trained or downloaded"
        )
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        folder = _fetch(str(name), SETTINGS)
        if not weights:
            return folder
        config_of(folder)  # what is not loaded is refused before its weights are fetched
        return _fetch(str(name), FETCHED)
    shipped = ", ".join(
        preset for preset in PRESETS if (SHIPPED / preset / "config.json").is_file()
    )
    raise CheckpointError(
        f"unknown model {shown(str(name))}; give a shipped name ({shipped}), a folder or a hub name"
    )


def _fetch(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (
        Exception
    ) as error:  # the hub client raises many kinds; to the caller they all mean "not to be had"
        raise CheckpointError(
            f"{shown(name)} is neither a folder here nor could it be fetched from the hub "
            f"({error.__class__.__name__}); check the name, or give the path of a downloaded folder"
        ) from None


def _opened(values: Sequence[T], places: set[int], slack: int, mask: T) -> list[T]:
    """The values with the mask at these places, and `slack` more behind each run of them."""
    made: list[T] = []
    for place, value in enumerate(values):
        made.append(mask if place in places else value)
        if place in places and place + 1 not in places:
            made += [mask] * slack
    return made


def _padded(rows: Sequence[Sequence[T]], filler: T) -> Tensor:
    """Rows of several lengths as one tensor, (rows, longest)."""
    longest = max(map(len, rows))
    return torch.tensor([list(row) + [filler] * (longest - len(row)) for row in rows])


def _with_heard(answer: Answer, question: Transcript) -> Answer:
    return dataclasses.replace(answer, heard=question.text, heard_confidence=question.confidence)


def _listener(samples: Samples, text: str) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "audio", "audio": samples}, {"type": "text", "text": text}],
    }


def _user(image: Any, question: str) -> dict[str, Any]:
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


def _check_question(messages: Messages) -> None:
    content = messages[-1]["content"]
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    if not any(text.strip() for text in texts):
        raise MMDiffError("the question is empty; say what you want to know")


def _samples(audio: AudioSource, sample_rate: int | None) -> Samples:
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


def _whole(name: str, value: object, least: int = 1, most: int = 1 << 31) -> int:
    try:
        return whole(name, value, least, most)
    except ValueError as error:
        raise MMDiffError(str(error)) from None


def _text(name: str, value: object, exact: bool = False) -> str:
    """A text; where it is to come out again exactly, one that Unicode can spell."""
    if not isinstance(value, str):
        raise MMDiffError(f"{name}={shown(value)} is not a text")
    if exact and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise MMDiffError(
            f"{name}={shown(value)} holds half of a surrogate pair, which is no character"
        )
    return value


def _with_system(messages: Messages, prompt: str) -> Messages:
    if messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": prompt}, *messages]


def _describe(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else f"one {type(value).__name__}"
