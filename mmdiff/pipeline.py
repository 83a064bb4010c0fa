"""The verbs people use: ask, caption, chat, stream. The only place where model, processor and sampler meet.

`load("tiny")` gives the shipped default; a folder or a hub name gives a published checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch

from mmdiff.canvas import Canvas
from mmdiff.checkpoint import load_folder
from mmdiff.config import PRESETS, DecodingConfig
from mmdiff.errors import CheckpointError, MMDiffError
from mmdiff.model import MMDiffModel, Prompted
from mmdiff.processor import Messages, MMDiffProcessor
from mmdiff.sampler import Predict, denoise, guided
from mmdiff.vision.image import open_image

SHIPPED = Path(__file__).parent / "models"
CaptionLength = Literal["word", "short", "long"]
CAPTION_PROMPTS: dict[CaptionLength, str] = {
    "word": "Describe the picture in one word.",
    "short": "Describe the picture briefly.",
    "long": "Describe the picture in detail.",
}
CAPTION_ROOM: dict[CaptionLength, int] = {"word": 8, "short": 32, "long": 64}  # positions of the canvas


@dataclass(frozen=True)
class Token:
    """One decided position: its text, its confidence when decided (0 to 1) and the step (from 0)."""

    text: str
    confidence: float
    step: int


@dataclass(frozen=True)
class Answer:
    """A finished answer; `steps` is how many forward passes its row took."""

    text: str
    tokens: tuple[Token, ...]
    steps: int

    @property
    def confidence(self) -> float:
        """The least confidence of any of its tokens."""
        return min((token.confidence for token in self.tokens), default=1.0)


@dataclass(frozen=True)
class Draft:
    """An answer on its way: a token for every position up to the answer's end, None where it is still open."""

    step: int
    tokens: tuple[Token | None, ...]


class Pipeline:
    """A model ready to be asked. Every verb takes decoding settings by name (`steps=16`, `temperature=0.7`)."""

    def __init__(self, model: MMDiffModel, processor: MMDiffProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @overload
    def ask(self, image: Any, question: str, *, seed: int = 0, **decoding: Any) -> Answer: ...
    @overload
    def ask(self, image: Any, question: list[str], *, seed: int = 0, **decoding: Any) -> list[Answer]: ...
    def ask(self, image: Any, question: str | list[str], *, seed: int = 0, **decoding: Any) -> Answer | list[Answer]:
        """Answer a question about a picture, or about several pictures given as a list.

        With a list of questions, `image` is a list of the same length (each entry a picture or a list of pictures), and
        the answers come as a list; an answer does not depend on the others of its batch.

        Args:
            image: whatever `vision.image.open_image` takes: path, bytes, file, array or PIL image; None for no picture.
            seed: for temperature and random order; the n-th question of a list uses `seed + n`.

        Raises:
            MMDiffError: a picture cannot be read, a question is empty, or a setting does not fit.
        """
        if isinstance(question, str):
            return self.chat([_user(image, question)], seed=seed, **decoding)
        if not isinstance(image, list) or len(image) != len(question):
            count = len(question)
            raise MMDiffError(f"{count} questions need a list of {count} pictures, not {_describe(image)}")
        rows = [[_user(picture, text)] for picture, text in zip(image, question, strict=True)]
        return self.chat_batch(rows, seeds=[seed + row for row in range(len(rows))], **decoding)

    def caption(self, image: Any, length: CaptionLength = "short", **options: Any) -> Any:
        """Describe a picture in a word, briefly, or in detail; a list of pictures gives a list of answers."""
        if length not in CAPTION_PROMPTS:
            raise MMDiffError(f"length={length!r} is not known; use one of {', '.join(CAPTION_PROMPTS)}")
        prompt = CAPTION_PROMPTS[length]
        options.setdefault("gen_length", CAPTION_ROOM[length])
        return self.ask(image, [prompt] * len(image) if isinstance(image, list) else prompt, **options)

    def chat(self, messages: Messages, *, seed: int = 0, **decoding: Any) -> Answer:
        """Answer a conversation in the chat format: roles, and contents with text and image parts."""
        return self.chat_batch([messages], seeds=[seed], **decoding)[0]

    def chat_batch(
        self, conversations: Sequence[Messages], *, seeds: Sequence[int] | None = None, **decoding: Any
    ) -> list[Answer]:
        """Answer several conversations at once, of any lengths and numbers of pictures."""
        if not conversations:
            return []
        (last,) = deque(self._denoise(conversations, seeds, self.decoding(**decoding)), maxlen=1)
        return self._answers(last)

    def stream(self, image: Any, question: str, *, seed: int = 0, **decoding: Any) -> Iterator[Draft]:
        """The answer being denoised: one draft after each step, the last one complete."""
        for canvas in self._denoise([[_user(image, question)]], [seed], self.decoding(**decoding)):
            yield self._draft(canvas)

    def decoding(self, **changes: Any) -> DecodingConfig:
        """The model's decoding settings with changes; an unknown name or a misfit is an MMDiffError."""
        known = {field.name for field in dataclasses.fields(DecodingConfig)}
        if unknown := sorted(changes.keys() - known):
            raise MMDiffError(f"unknown decoding setting {unknown[0]!r}; known are {', '.join(sorted(known))}")
        try:
            return dataclasses.replace(self.model.model_config.decoding, **changes)
        except (ValueError, TypeError) as error:
            raise MMDiffError(str(error)) from None

    def _denoise(
        self, conversations: Sequence[Messages], seeds: Sequence[int] | None, decoding: DecodingConfig
    ) -> Iterator[Canvas]:
        config = self.model.model_config
        for messages in conversations:
            _check(messages)
        if config.system_prompt:
            conversations = [_with_system(messages, config.system_prompt) for messages in conversations]
        inputs = self.processor.apply_chat_template(
            [list(messages) for messages in conversations], tokenize=True, return_dict=True, add_generation_prompt=True
        ).to(self.model.device)
        length, room = inputs["input_ids"].shape[1], config.backbone.max_position_embeddings
        if length + decoding.gen_length > room:
            raise MMDiffError(
                f"gen_length={decoding.gen_length} and a prompt of {length} tokens exceed the model's {room} "
                "positions; ask for a shorter answer or give fewer pictures"
            )
        with torch.inference_mode():  # left before the first yield, or the caller would run in it between steps
            prompted = Prompted(self.model, **inputs)
            predict: Predict = prompted
            if decoding.cfg_scale > 0:
                predict = guided(prompted, prompted.unconditional(), decoding.cfg_scale)
        canvas = Canvas.blank(len(conversations), decoding.gen_length, config.tokens.mask, self.model.device)
        yield from denoise(predict, canvas, decoding, config.tokens, seeds)

    def _answers(self, canvas: Canvas) -> list[Answer]:
        tokens = self.model.model_config.tokens
        lengths = [len(ids) for ids in canvas.answers((tokens.eos, tokens.eot))]
        return [
            Answer(
                text=self.processor.tokenizer.decode(canvas.ids_BG[row, :length], skip_special_tokens=True).strip(),
                tokens=tuple(self._token(canvas, row, position) for position in range(length)),
                steps=int(canvas.step_BG[row].max()) + 1,
            )
            for row, length in enumerate(lengths)
        ]

    def _draft(self, canvas: Canvas) -> Draft:
        tokens = self.model.model_config.tokens
        length = len(canvas.answers((tokens.eos, tokens.eot))[0])
        open_G = canvas.open_BG[0].tolist()
        drafted = (None if open_G[position] else self._token(canvas, 0, position) for position in range(length))
        return Draft(int(canvas.step_BG[0].max()), tuple(drafted))

    def _token(self, canvas: Canvas, row: int, position: int) -> Token:
        text = self.processor.tokenizer.decode(canvas.ids_BG[row, position : position + 1])
        return Token(text, float(canvas.confidence_BG[row, position]), int(canvas.step_BG[row, position]))


def load(
    name: str | Path = "tiny",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: str | None = None,
) -> Pipeline:
    """A pipeline from a shipped model's name, a checkpoint folder, or a hub name such as "GSAI-ML/LLaDA-V".

    Args:
        device: "cpu", "cuda", ...; the GPU where there is one.
        dtype: of the weights; "auto" is float32 on CPU (bfloat16 is slow on most) and bfloat16 elsewhere.
        device_map: "auto" spreads a large model over the devices there are (Accelerate).

    Raises:
        CheckpointError: nothing is known by that name, or the checkpoint is damaged, incomplete or of another kind.
    """
    place = _device(device)
    if dtype == "auto":
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    number_type = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(number_type, torch.dtype):
        raise MMDiffError(f"dtype={dtype!r} is not known; use float32 or bfloat16")
    return Pipeline(*load_folder(find(name), place, number_type, device_map))


def _device(name: str | torch.device | None) -> torch.device:
    place = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros((), device=place)
        return torch.device(place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise MMDiffError(f"device {str(place)!r} cannot be used here ({reason}); try cpu") from None


def find(name: str | Path) -> Path:
    """The folder of a model: shipped, on disk, or fetched from the hub (names with one slash)."""
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
        return _fetch(str(name))
    shipped = ", ".join(preset for preset in PRESETS if (SHIPPED / preset / "config.json").is_file())
    raise CheckpointError(f"unknown model {str(name)!r}; give a shipped name ({shipped}), a folder or a hub name")


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]))
    except Exception as error:  # the hub client raises many kinds; to the caller they all mean "not to be had"
        raise CheckpointError(
            f"{name!r} is neither a folder here nor could it be fetched from the hub ({error.__class__.__name__}); "
            "check the name, or give the path of a downloaded folder"
        ) from None


def _user(image: Any, question: str) -> dict[str, Any]:
    pictures = [] if image is None else image if isinstance(image, list) else [image]
    opened = [{"type": "image", "image": open_image(picture)} for picture in pictures]
    return {"role": "user", "content": [*opened, {"type": "text", "text": question}]}


def _check(messages: Messages) -> None:
    content = messages[-1]["content"] if messages else ""
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    if not any(text.strip() for text in texts):
        raise MMDiffError("the question is empty; say what you want to know")


def _with_system(messages: Messages, prompt: str) -> Messages:
    if messages and messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": prompt}, *messages]


def _describe(value: object) -> str:
    return f"a list of {len(value)}" if isinstance(value, list) else f"one {type(value).__name__}"
