"""Messages with text, images and audio -> one ragged batch of tensors, as Hugging Face
processors do it.

Prompts are padded on the left, so that every answer starts in the same column. Images may be
anything `open_image` takes and audio what `load_audio` takes; nothing is fetched from the network.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mmdiff.audio.audio_io import SAMPLE_RATE, load_audio
from mmdiff.audio.connector import count_tokens as count_audio_tokens
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
from mmdiff.modeling.media_inputs import MEDIA_NAMES, MediaInputs
from mmdiff.tokens import AUDIO, CHAT_TEMPLATE, IMAGE, control_tokens, neutralize, well_formed
from mmdiff.vision.image_io import open_image
from mmdiff.vision.preprocess import Views, count_tokens, make_views

MARKS = re.compile(f"({re.escape(IMAGE)}|{re.escape(AUDIO)})")
Messages = Sequence[Mapping[str, Any]]
ROLES, PARTS = ("system", "user", "assistant"), ("text", "image", "audio")
SOURCE_KEYS = ("audio", "image", "url", "path")  # where a part has its media


class MMDiffProcessor(ProcessorMixin):
    """Tokenizer, and preparation of images and audio, of one model."""

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
            media_first: whether the images and audio of a message are put before its text, in
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
        parts = dataclasses.asdict(config)
        return cls(
            tokenizer,
            parts["tokens"],
            parts["vision"],
            parts["audio"],
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
        conversations = [conversation]
        if _is_batch(conversation):
            conversations = conversation
        for messages in conversations:
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
            images: those of the prompt, or one list of images per prompt.
            text: prompts in the chat format, with one `<|image|>` per image and one `<|audio|>`
                per audio.
            audio: that of all prompts in reading order, in one list or one list per prompt.
            sampling_rate: of audio that is given as arrays, in Hz; files know their own.
            options: what callers of any processor pass, with values that say what is done here in
                any case, such as `padding=True`; also inside `text_kwargs`, `images_kwargs`,
                `audio_kwargs` or `common_kwargs`.

        Returns:
            input_ids and attention_mask (B, T), padded on the left, and of `MediaInputs` what there
            is, as `MMDiffModel` takes them.

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
        prompts = _prompts(text)
        images_of = _images_by_prompt(images, len(prompts), single=isinstance(text, str))
        audio_of = _audio_by_prompt(audio, prompts)
        rows = []
        for prompt, seen, heard in zip(prompts, images_of, audio_of, strict=True):
            views, mels = self._views(prompt, seen), self._mels(heard, sampling_rate)
            rows.append(self._encode(prompt, views, mels))
        media = _media_inputs(rows)
        return BatchFeature({**_padded(rows, self.tokens.pad), **media.present()})

    def _encode(self, prompt: str, views: list[Views], mels: list[list[Tensor]]) -> _Row:
        """The prompt's ids, with as many placeholders for each mark as its image or audio has
        embeddings."""
        counts = {
            IMAGE: map(self._count_view, views),
            AUDIO: map(self._count_windows, mels),
        }
        placeholders = {IMAGE: self.tokens.image or 0, AUDIO: self.tokens.audio or 0}
        ids: list[int] = []
        for part in MARKS.split(prompt):
            if part in counts:
                ids += [placeholders[part]] * next(counts[part])
            else:
                ids += self._ids(part)
        return _Row(ids, views, list(itertools.chain.from_iterable(mels)))

    def _views(self, prompt: str, images: Sequence[Any]) -> list[Views]:
        _check_marks([prompt], IMAGE, len(images), "images")
        if not images:
            return []
        if self.vision is None or self.tokens.image is None:
            raise MMDiffError(
                "this model takes no images; ask it in words alone or load another model"
            )
        layout = self._layout(len(images))
        return [make_views(open_image(image), self._vision, layout) for image in images]

    def _mels(self, sources: Sequence[Any], rate: int) -> list[list[Tensor]]:
        """The spectrograms of each audio's windows."""
        if sources and (self.audio is None or self.tokens.audio is None):
            raise MMDiffError("this model takes no audio; ask it in words or load another model")
        mels = []
        for source in map(as_array, sources):
            own_rate = rate if isinstance(source, np.ndarray) else None
            # At one loudness, without which the same words, spoken softly, would be others to the
            # encoder.
            windows = split_windows(level(load_audio(source, own_rate)))
            mels.append([log_mel_spectrogram(each, self._audio.num_mels) for each in windows])
        return mels

    def _count_view(self, view: Views) -> int:
        return count_tokens(view.size, self._vision, view.layout)

    def _count_windows(self, mels: Sequence[Tensor]) -> int:
        return sum(count_audio_tokens(mel.shape[1], self._audio) for mel in mels)

    def _layout(self, num_images: int) -> ViewLayout:
        if num_images == 1:
            return self._vision.layout
        return self._vision.layout_of_several

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
        return ["input_ids", "attention_mask", *MEDIA_NAMES]


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
            "dictionary with a role and a content"
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
                "text, or a list of parts"
            )
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") not in PARTS:
                raise MMDiffError(
                    f"{shown(part)} is not a part of a message; give a dictionary whose type is "
                    f"one of {', '.join(PARTS)}"
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
    if source.is_floating_point():
        source = source.float()  # NumPy has no bfloat16
    return source.numpy(force=True)


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
    mels: list[Tensor]


def _padded(rows: Sequence[_Row], pad_id: int) -> dict[str, Tensor]:
    """Ids and attention mask (B, T), padded on the left."""
    width = max((len(row.ids) for row in rows), default=0)
    ids, mask = [], []
    for row in rows:
        pad = width - len(row.ids)
        ids.append([pad_id] * pad + row.ids)
        mask.append([0] * pad + [1] * len(row.ids))
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def _media_inputs(rows: Sequence[_Row]) -> MediaInputs:
    views, mels, found = [], [], {}
    for row in rows:
        views += row.views
        mels += row.mels
    if views:
        found["pixel_values"] = torch.cat([view.pixels_V3HW for view in views])
        found["image_sizes"] = torch.tensor([view.size for view in views])
        found["image_grids"] = torch.tensor([view.grid for view in views])
    if mels:
        found["input_features"], found["feature_lengths"] = pad_mels(mels)
    return MediaInputs(**found)


def _prompts(text: Any) -> Sequence[str]:
    if isinstance(text, str):
        return [text]
    prompts = text or ()
    if not isinstance(prompts, list | tuple) or not all(isinstance(each, str) for each in prompts):
        raise MMDiffError(
            f"text={shown(text)} does not fit; give a prompt in the chat format, or a list of them"
        )
    return prompts


def _check_marks(prompts: Sequence[str], mark: str, given: int, what: str) -> None:
    if (marks := sum(prompt.count(mark) for prompt in prompts)) != given:
        raise MMDiffError(f"the prompt has {marks} {mark} marks for {given} {what}")


def _images_by_prompt(images: Any, num_prompts: int, single: bool) -> list[list[Any]]:
    if images is None:
        return [[]] * num_prompts
    groups = list(map(_listed, _listed(images)))
    if single:
        return [_flat(groups)]
    if len(groups) != num_prompts:
        raise MMDiffError(
            f"{len(groups)} lists of images for {num_prompts} prompts; give one list per prompt"
        )
    return groups


def _audio_by_prompt(audio: Any, prompts: Sequence[str]) -> list[list[Any]]:
    """As many for each prompt as it has marks: `transformers` hands the audio of a batch on in one
    list."""
    given: list[Any] = []
    if audio is not None:
        given = _flat(map(_listed, _listed(audio)))
    _check_marks(prompts, AUDIO, len(given), "audio parts")
    left = iter(given)
    return [list(itertools.islice(left, prompt.count(AUDIO))) for prompt in prompts]


def _listed(media: Any) -> list[Any]:
    if isinstance(media, list):
        return media
    return [media]


def _flat(groups: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(groups))


def _opened(value: Any) -> Any:
    """The conversation with its audio decoded and its image files opened, by the rules of `ask` and
    `transcribe`."""
    if isinstance(value, list | tuple):
        return list(map(_opened, value))
    if not isinstance(value, Mapping):
        return value
    kind, given = value.get("type"), [value[key] for key in SOURCE_KEYS if key in value]
    if kind == "audio" and given:
        source = as_array(given[0])
        if not isinstance(source, np.ndarray):
            source = load_audio(source)
        return {"type": "audio", "audio": source}
    if kind == "image" and given and _is_file(given[0]):
        return {"type": "image", "image": open_image(given[0])}
    return {name: _opened(item) for name, item in value.items()}


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
    if isinstance(value, str) and key in ("role", "content", "text", "name"):
        return neutralize(value, controls)
    return value


def _media_first(value: Any) -> Any:
    """The conversation, or several, with each message's images and audio before its text, which
    becomes one part."""
    if isinstance(value, list | tuple):
        return list(map(_media_first, value))
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), list | tuple):
        return value
    texts: list[Any] = []
    media: list[Any] = []
    for part in value["content"]:
        is_text = isinstance(part, Mapping) and part.get("type") == "text"
        (texts if is_text else media).append(part)
    if len(texts) > 1 and all(isinstance(part.get("text"), str) for part in texts):
        texts = [{**texts[0], "text": "\n".join(part["text"].strip() for part in texts)}]
    return {**value, "content": [*media, *texts]}


def _in_parts(value: Any) -> Any:
    """The conversation with plain texts as parts of their messages: transformers before 5.6 takes
    nothing else."""
    if isinstance(value, list | tuple):
        return list(map(_in_parts, value))
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return {**value, "content": [{"type": "text", "text": value["content"]}]}
    return value


AutoProcessor.register(MMDiffConfig, MMDiffProcessor)
