"""Deliberation: reopen what the model doubts of a draft transcript, and denoise it again.

Source: Whisper-LLaDA (arXiv 2509.16622); slack, with which words can be put in or dropped, is ours.
Shapes: G canvas positions, N masked positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import denoise

T = TypeVar("T", int, float)


def token_likelihoods(prompted: ModelRunner, ids: list[int], tokens: TokenIds) -> list[float]:
    """How likely each token is with its neighbours on both sides in view: two passes, every
    other one hidden."""
    device = prompted.device
    row_G = torch.tensor([*ids, tokens.eot], device=device)
    likely = torch.zeros(len(row_G), device=device)
    for turn in (0, 1):
        hidden_G = torch.arange(len(row_G), device=device) % 2 == turn
        seen_1G = row_G.masked_fill(hidden_G, tokens.mask)[None].numpy(force=True)
        hidden_1G = hidden_G[None].numpy(force=True)
        logits_NV = prompted(seen_1G, prompted.prompts, hidden_1G).float()
        likely[hidden_G] = logits_NV.softmax(-1).gather(1, row_G[hidden_G, None])[:, 0]
    return likely[:-1].tolist()


def denoise_reopened(
    prompted: ModelRunner,
    rows: Sequence[list[int]],
    doubted: Sequence[set[int]],
    slack: int,
    decoding: DecodingConfig,
    tokens: TokenIds,
) -> Canvas:
    """Denoise the doubted places of drafts, each run of them with `slack` more; nothing may
    stand in a place."""
    opened = [
        [*with_open_slots(ids, places, slack, tokens.mask), tokens.eot]
        for ids, places in zip(rows, doubted, strict=True)
    ]
    canvas = Canvas.of(_padded(opened, tokens.eos).to(prompted.device), tokens.mask)
    length = canvas.ids_BG.shape[1]
    settings = dataclasses.replace(decoding, gen_length=length, block_length=length)
    inside = dataclasses.replace(tokens, eos=tokens.eot, never=(*tokens.never, tokens.eot))
    return deque(
        [canvas, *denoise(make_runner(prompted, settings), canvas, settings, inside)], maxlen=1
    )[0]


def kept_ids(canvas: Canvas, tokens: TokenIds) -> list[list[int]]:
    """The ids of each row before its end, without the places where nothing stands."""
    return [
        [token for token in row if token != tokens.eos] for row in canvas.token_ids((tokens.eot,))
    ]


def with_open_slots(values: Sequence[T], places: set[int], slack: int, mask: T) -> list[T]:
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
