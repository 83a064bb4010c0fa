"""Messages with text, pictures and sounds -> one ragged batch of tensors, as Hugging Face
processors do it.

Prompts are padded on the left, so that every row's answer starts in the same column. Pictures may
be anything `vision.image.open_image` takes and sounds what `audio.decode.load_audio` takes; nothing
is fetched from the network.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mmdiff.audio.audio_io import SAMPLE_RATE, load_audio
from mmdiff.audio.connector import count_tokens as count_sound_tokens
from mmdiff.audio.level import level
from mmdiff.audio.log_mel import log_mel_spectrogram, pad_mels, split_windows
from mmdiff.config import (
    AudioConfig,
    ModelConfig,
    TokenIds,
    ViewLayout,
    VisionConfig,
    from_dict,
    is_number,
    shown,
)
from mmdiff.errors import MMDiffError
from mmdiff.modeling.auto_config import MMDiffConfig
from mmdiff.tokens import AUDIO, CHAT_TEMPLATE, IMAGE, control_tokens, neutralize, well_formed
from mmdiff.vision.image_io import open_image
from mmdiff.vision.preprocess import Views, count_tokens, make_views

MARKS = re.compile(f"({re.escape(IMAGE)}|{re.escape(AUDIO)})")
Messages = Sequence[Mapping[str, Any]]
ROLES, PARTS = ("system", "user", "assistant"), ("text", "image", "audio")


class MMDiffProcessor(ProcessorMixin):
    """Tokenizer, and preparation of pictures and sounds, of one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        token_ids: Mapping[str, Any],
        vision: Mapping[str, Any] | None = None,
        audio: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
        media_first: bool = True,
    ) -> None:
        """
        Args:
            media_first: whether the images and sounds of a message are put before its text, in
                whatever order its parts come; the model's `ModelConfig.media_first`.
        """
        self.media_first = media_first
        self.token_ids = dict(token_ids)
        self.vision = dict(vision) if vision else None
        self.audio = dict(audio) if audio else None
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        config: ModelConfig,
        chat_template: str | None = None,
    ) -> MMDiffProcessor:
        vision = dataclasses.asdict(config.vision) if config.vision else None
        audio = dataclasses.asdict(config.audio) if config.audio else None
        return cls(
            tokenizer,
            dataclasses.asdict(config.tokens),
            vision,
            audio,
            chat_template,
            config.media_first,
        )

    @property
    def tokens(self) -> TokenIds:
        return from_dict(TokenIds, self.token_ids)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, with control tokens in what users wrote made harmless, and media
        before text.

        Files are read by `load_audio` and `open_image`; audio that is an array has 16 kHz.
        """
        for messages in conversation if _is_batch(conversation) else [conversation]:
            check_messages(messages)
        conversation = _harmless(conversation, control_tokens(self.tokenizer, self.tokens))
        if self.media_first:
            conversation = _media_first(conversation)
        try:
            return super().apply_chat_template(_in_parts(_opened(conversation)), *args, **kwargs)
        except TemplateError as error:
            raise MMDiffError(
                f"the model's chat format does not take this conversation: {error}"
            ) from None

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        *,
        sampling_rate: int = SAMPLE_RATE,
        return_tensors: str = "pt",
        **options: Any,
    ) -> BatchFeature:
        """Tokens, pixels and spectrograms of one prompt or several.

        Args:
            images: the pictures of the prompt, or one list of pictures per prompt.
            text: prompts in the chat format, with one `<|image|>` per picture and one `<|audio|>`
                per sound.
            audio: the sounds of all prompts in reading order, in one list or one list per prompt.
            sampling_rate: of sounds that are given as arrays, in Hz; files know their own.
            options: what callers of any processor pass, with values that say what is done here in
                any case, such as `padding=True`; also inside `text_kwargs`, `images_kwargs`,
                `audio_kwargs` or `common_kwargs`.

        Returns:
            input_ids and attention_mask (B, T), padded on the left; with pictures also pixel_values
            (views of all of them, N, 3, H, W), image_sizes and image_grids (pictures, 2); with
            sounds also input_features (windows of at most 30 s of all of them, N, M, F) and
            feature_lengths (N), as `MMDiffModel` takes them.

        Raises:
            MMDiffError: media and their marks differ in number, the model takes none of the kind,
                or an option is not known or asks for something else.
        """
        options = _flat_options(
            {"return_tensors": return_tensors, "sampling_rate": sampling_rate, **options}
        )
        sampling_rate = options.pop("sampling_rate")
        _check_options(options)
        if not is_number(sampling_rate):
            raise MMDiffError(
                f"sampling_rate={shown(sampling_rate)} does not fit; give a number, in Hz"
            )
        texts, single = [text] if isinstance(text, str) else text or (), isinstance(text, str)
        if not isinstance(texts, list | tuple) or not all(
            isinstance(prompt, str) for prompt in texts
        ):
            raise MMDiffError(
                f"text={shown(text)} does not fit; give a prompt in the chat format, or a list "
                "of them"
            )
        pictures, sounds = (
            _rows_of_pictures(images, len(texts), single),
            _rows_of_sounds(audio, texts),
        )
        rows = [
            self._encode(prompt, self._views(prompt, seen), self._mels(heard, sampling_rate))
            for prompt, seen, heard in zip(texts, pictures, sounds, strict=True)
        ]
        width = max((len(row.ids) for row in rows), default=0)
        pads = [width - len(row.ids) for row in rows]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor(
                [[self.tokens.pad] * pad + row.ids for pad, row in zip(pads, rows, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads]),
        }
        if views := [view for row in rows for view in row.views]:
            batch["pixel_values"] = torch.cat([view.pixels_V3HW for view in views])
            batch["image_sizes"] = torch.tensor([view.size for view in views])
            batch["image_grids"] = torch.tensor([view.grid for view in views])
        if mels := [mel for row in rows for windows in row.mels for mel in windows]:
            batch["input_features"], batch["feature_lengths"] = pad_mels(mels)
        return BatchFeature(batch)

    def _encode(self, prompt: str, views: list[Views], mels: list[list[Tensor]]) -> _Row:
        """The prompt's ids, with as many placeholders for each mark as its picture or sound has
        embeddings."""
        counts = {
            IMAGE: iter([self._count_view(view, len(views)) for view in views]),
            AUDIO: iter([self._count_windows(windows) for windows in mels]),
        }
        placeholders = {IMAGE: self.tokens.image or 0, AUDIO: self.tokens.audio or 0}
        ids: list[int] = []
        for part in MARKS.split(prompt):
            ids += [placeholders[part]] * next(counts[part]) if part in counts else self._ids(part)
        return _Row(ids, views, mels)

    def _views(self, prompt: str, pictures: Sequence[Any]) -> list[Views]:
        _check_marks([prompt], IMAGE, len(pictures), "pictures")
        if pictures and (self.vision is None or self.tokens.image is None):
            raise MMDiffError(
                "this model takes no pictures; ask it in words alone or load another model"
            )
        return [
            make_views(open_image(picture), self._vision, self._layout(len(pictures)))
            for picture in pictures
        ]

    def _mels(self, sounds: Sequence[Any], rate: int) -> list[list[Tensor]]:
        """The spectrograms of each sound's windows."""
        if sounds and (self.audio is None or self.tokens.audio is None):
            raise MMDiffError("this model takes no sounds; ask it in words or load another model")
        arrays = [as_array(sound) for sound in sounds]
        # At one loudness, without which the same words, spoken softly, would be others to the
        # encoder.
        loaded = [
            level(load_audio(sound, rate if isinstance(sound, np.ndarray) else None))
            for sound in arrays
        ]
        return [
            [log_mel_spectrogram(window, self._audio.num_mels) for window in split_windows(samples)]
            for samples in loaded
        ]

    def _count_view(self, view: Views, num_pictures: int) -> int:
        return count_tokens(view.size, self._vision, self._layout(num_pictures))

    def _count_windows(self, mels: Sequence[Tensor]) -> int:
        return sum(count_sound_tokens(mel.shape[1], self._audio) for mel in mels)

    def _layout(self, num_pictures: int) -> ViewLayout:
        return self._vision.layout if num_pictures == 1 else self._vision.layout_of_several

    @property
    def _vision(self) -> VisionConfig:
        return from_dict(VisionConfig, self.vision or {})

    @property
    def _audio(self) -> AudioConfig:
        return from_dict(AudioConfig, self.audio or {})

    def text_ids(self, text: str) -> list[int]:
        """The ids of what a user wrote, none of them a control token's."""
        return self._ids(neutralize(text, control_tokens(self.tokenizer, self.tokens)))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(well_formed(text), add_special_tokens=False)["input_ids"])

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "image_sizes",
            "image_grids",
            "input_features",
            "feature_lengths",
        ]


# What this processor does in any case, as transformers' processors are asked for it.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "return_tensors": ("pt",),
    "padding": (True, False, "longest"),
    "padding_side": ("left",),
    "truncation": (False, "do_not_truncate"),
    "max_length": (),
    "add_special_tokens": (False,),
    "return_attention_mask": (True,),
    "return_token_type_ids": (False,),
    "return_mm_token_type_ids": (False,),
    "return_offsets_mapping": (False,),
    "sanitize_control_tokens": (False,),  # `apply_chat_template` has done so
    "videos": (),
}
NESTED = ("text_kwargs", "images_kwargs", "audio_kwargs", "videos_kwargs", "common_kwargs")


def _flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with those in transformers' groups beside the others; the more special one
    counts."""
    groups = [options[name] for name in NESTED if options.get(name)]
    flat = {name: value for name, value in options.items() if name not in NESTED}
    for group in groups:
        if not isinstance(group, Mapping):
            raise MMDiffError(
                f"{shown(group)} is not a group of options; give them by name in a dictionary"
            )
        flat |= group
    return flat


def _check_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if name not in OPTIONS:
            raise MMDiffError(
                f"the processor does not know {name}={shown(value)}; known are {', '.join(OPTIONS)}"
            )
        left_out = value is None and name != "return_tensors"  # there, None would ask for lists
        if not left_out and value not in OPTIONS[name]:
            takes = " or ".join(map(repr, OPTIONS[name])) or "leave it out"
            raise MMDiffError(f"{name}={shown(value)} is not supported; use {takes}")


def check_messages(messages: Any) -> None:
    """Whether a conversation is one: messages with a role, and a text or a list of parts.

    Raises:
        MMDiffError: it is not; the message says where.
    """
    if (
        not isinstance(messages, list | tuple)
        or not messages
        or not all(isinstance(m, Mapping) for m in messages)
    ):
        raise MMDiffError(
            f"{shown(messages)} is not a conversation; give a list of messages, each a "
            "dictionary with a "
            "role and a content"
        )
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise MMDiffError(f"role={shown(role)} is not known; use one of {', '.join(ROLES)}")
        if isinstance(content, str):
            continue
        if not isinstance(content, list | tuple):
            raise MMDiffError(
                f"content={shown(content)} of the message of role {role!r} does not fit; give a "
                "text, "
                "or a list of parts"
            )
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") not in PARTS:
                raise MMDiffError(
                    f"{shown(part)} is not a part of a message; give a dictionary whose type is "
                    "one of "
                    f"{', '.join(PARTS)}"
                )
            if part["type"] == "text" and not isinstance(part.get("text"), str):
                raise MMDiffError(
                    f"text={shown(part.get('text'))} of the message of role {role!r} is not a text"
                )


def as_array(source: Any) -> Any:
    """A tensor as an array of the same kind of numbers, gradients or not; everything else as it
    is."""
    if not isinstance(source, Tensor):
        return source
    return (source.detach().float() if source.is_floating_point() else source).cpu().numpy()


def _is_batch(conversation: Any) -> bool:
    return (
        isinstance(conversation, list | tuple)
        and bool(conversation)
        and isinstance(conversation[0], list | tuple)
    )


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    views: list[Views]
    mels: list[list[Tensor]]


def _check_marks(prompts: Sequence[str], mark: str, given: int, what: str) -> None:
    if (marks := sum(prompt.count(mark) for prompt in prompts)) != given:
        raise MMDiffError(f"the prompt has {marks} {mark} marks for {given} {what}")


def _rows_of_pictures(images: Any, num_texts: int, single: bool) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(num_texts)]
    rows = images if isinstance(images, list) else [images]
    if single:
        return [_flat(rows)]
    if len(rows) != num_texts:
        raise MMDiffError(
            f"{len(rows)} lists of pictures for {num_texts} prompts; give one list per prompt"
        )
    return [row if isinstance(row, list) else [row] for row in rows]


def _rows_of_sounds(audio: Any, prompts: Sequence[str]) -> list[list[Any]]:
    """As many for each prompt as it has marks: `transformers` hands the sounds of a batch on in one
    list."""
    sounds = [] if audio is None else _flat(audio if isinstance(audio, list) else [audio])
    _check_marks(prompts, AUDIO, len(sounds), "sounds")
    left = iter(sounds)
    return [[next(left) for _ in range(prompt.count(AUDIO))] for prompt in prompts]


def _flat(media: Sequence[Any]) -> list[Any]:
    return [medium for item in media for medium in (item if isinstance(item, list) else [item])]


def _opened(value: Any) -> Any:
    """The conversation with its audio decoded and its image files opened, by the rules of `ask` and
    `transcribe`."""
    if isinstance(value, Mapping):
        kind, keys = (
            value.get("type"),
            [key for key in ("audio", "image", "url", "path") if key in value],
        )
        if kind == "audio" and keys:
            source = as_array(value[keys[0]])
            return {
                "type": "audio",
                "audio": source if isinstance(source, np.ndarray) else load_audio(source),
            }
        if kind == "image" and keys and _is_file(value[keys[0]]):
            return {"type": "image", "image": open_image(value[keys[0]])}
        return {name: _opened(item) for name, item in value.items()}
    return [_opened(item) for item in value] if isinstance(value, list | tuple) else value


def _is_file(source: Any) -> bool:
    """A path, a data URL or bytes; addresses are left to `transformers`."""
    if isinstance(source, str):
        return not source.startswith(("http://", "https://"))
    return isinstance(source, os.PathLike | bytes)


def _harmless(value: Any, controls: frozenset[str], key: str = "") -> Any:
    """The conversation without control tokens in its texts, so that words cannot end a turn or
    claim an image."""
    if isinstance(value, Mapping):
        return {name: _harmless(item, controls, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(item, controls, key) for item in value]
    written = isinstance(value, str) and key in ("role", "content", "text", "name")
    return neutralize(value, controls) if written else value


def _media_first(value: Any) -> Any:
    """The conversation, or several, with each message's images and sounds before its text, which
    becomes one part."""
    if isinstance(value, list | tuple):
        return [_media_first(item) for item in value]
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), list | tuple):
        return value
    texts = [
        part
        for part in value["content"]
        if isinstance(part, Mapping) and part.get("type") == "text"
    ]
    media = [part for part in value["content"] if not any(part is text for text in texts)]
    if len(texts) > 1 and all(isinstance(part.get("text"), str) for part in texts):
        texts = [{**texts[0], "text": "\n".join(part["text"].strip() for part in texts)}]
    return {**value, "content": [*media, *texts]}


def _in_parts(value: Any) -> Any:
    """The conversation with plain texts as parts of their messages: transformers before 5.6 takes
    nothing else."""
    if isinstance(value, Mapping):
        content = value.get("content")
        return (
            {**value, "content": [{"type": "text", "text": content}]}
            if isinstance(content, str)
            else value
        )
    return [_in_parts(item) for item in value] if isinstance(value, list | tuple) else value


AutoProcessor.register(MMDiffConfig, MMDiffProcessor)
