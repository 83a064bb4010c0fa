"""Messages with text and pictures -> one ragged batch of tensors, by the conventions of Hugging Face processors.

Prompts are padded on the left, so that every row's answer starts in the same column. Pictures may be anything
`vision.image.open_image` takes; addresses on the network are not fetched. Sound is not handled yet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoProcessor, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from mmdiff.config import ModelConfig, TokenIds, VisionConfig, from_dict
from mmdiff.errors import MMDiffError
from mmdiff.model import MMDiffConfig
from mmdiff.tokens import CHAT_TEMPLATE, IMAGE
from mmdiff.vision.image import open_image
from mmdiff.vision.views import Views, count_tokens, make_views

Messages = Sequence[Mapping[str, Any]]


class MMDiffProcessor(ProcessorMixin):
    """Tokenizer and picture preparation of one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        token_ids: Mapping[str, Any],
        vision: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.token_ids = dict(token_ids)
        self.vision = dict(vision) if vision else None
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> MMDiffProcessor:
        vision = dataclasses.asdict(config.vision) if config.vision else None
        return cls(tokenizer, dataclasses.asdict(config.tokens), vision)

    @property
    def tokens(self) -> TokenIds:
        return from_dict(TokenIds, self.token_ids)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`, with control tokens in what people wrote made harmless."""
        return super().apply_chat_template(_harmless(conversation), *args, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        return_tensors: str = "pt",
        **unused: Any,
    ) -> BatchFeature:
        """Tokens and pixels of one prompt or several.

        Args:
            images: the pictures of the prompt, or one list of pictures per prompt.
            text: prompts in the chat format, with one `<|image|>` per picture.

        Returns:
            input_ids and attention_mask (B, T), padded on the left; with pictures also pixel_values (views of all of
            them, N, 3, H, W), image_sizes and image_grids (pictures, 2), as `MMDiffModel` takes them.

        Raises:
            MMDiffError: pictures and `<|image|>` marks differ in number, or the model takes no pictures.
        """
        if return_tensors != "pt":
            raise MMDiffError(f"return_tensors={return_tensors!r} is not supported; use 'pt'")
        texts = [text] if isinstance(text, str) else list(text or [])
        rows = _rows_of_images(images, len(texts), single=isinstance(text, str))
        encoded = [self._encode(prompt, pictures) for prompt, pictures in zip(texts, rows, strict=True)]
        width = max((len(ids) for ids, _ in encoded), default=0)
        pads = [width - len(ids) for ids, _ in encoded]
        rows_of_ids = [[self.tokens.pad] * pad + ids for pad, (ids, _) in zip(pads, encoded, strict=True)]
        batch: dict[str, Any] = {
            "input_ids": torch.tensor(rows_of_ids),
            "attention_mask": torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads]),
        }
        if views := [view for _, own in encoded for view in own]:
            batch["pixel_values"] = torch.cat([view.pixels_V3HW for view in views])
            batch["image_sizes"] = torch.tensor([view.size for view in views])
            batch["image_grids"] = torch.tensor([view.grid for view in views])
        return BatchFeature(batch)

    def _encode(self, prompt: str, pictures: Sequence[Any]) -> tuple[list[int], list[Views]]:
        parts = prompt.split(IMAGE)
        if len(parts) - 1 != len(pictures):
            raise MMDiffError(f"the prompt has {len(parts) - 1} {IMAGE} marks for {len(pictures)} pictures")
        ids = self._ids(parts[0])
        if not pictures:
            return ids, []
        placeholder = self.tokens.image
        if self.vision is None or placeholder is None:
            raise MMDiffError("this model takes no pictures; ask it in words alone or load another model")
        vision = from_dict(VisionConfig, self.vision)
        layout = vision.layout if len(pictures) == 1 else vision.layout_of_several
        views = [make_views(open_image(picture), vision, layout) for picture in pictures]
        for view, part in zip(views, parts[1:], strict=True):
            ids += [placeholder] * count_tokens(view.size, vision, layout) + self._ids(part)
        return ids, views

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_sizes", "image_grids"]


def _rows_of_images(images: Any, num_texts: int, single: bool) -> list[list[Any]]:
    if images is None:
        return [[] for _ in range(num_texts)]
    rows = images if isinstance(images, list) else [images]
    if single:
        return [[picture for item in rows for picture in (item if isinstance(item, list) else [item])]]
    if len(rows) != num_texts:
        raise MMDiffError(f"{len(rows)} lists of pictures for {num_texts} prompts; give one list per prompt")
    return [row if isinstance(row, list) else [row] for row in rows]


def _harmless(value: Any, key: str = "") -> Any:
    """The conversation with `<|` broken up inside texts, so that words cannot end a turn or claim a picture."""
    if isinstance(value, Mapping):
        return {name: _harmless(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_harmless(item, key) for item in value]
    return value.replace("<|", "< |") if isinstance(value, str) and key in ("text", "content") else value


AutoProcessor.register(MMDiffConfig, MMDiffProcessor)
