"""Deliberation: reopen what the model doubts of a draft transcript, and denoise it again.

Source: Whisper-LLaDA (arXiv 2509.16622); slack, with which words can be put in or dropped, is ours.
Shapes: G canvas positions, N masked positions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
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


def least_likely(likelihoods: Sequence[float], count: int) -> set[int]:
    """The positions of the tokens that are doubted most."""
    positions = sorted(range(len(likelihoods)), key=likelihoods.__getitem__)
    return set(positions[:count])


def equal_parts(length: int, parts: int) -> list[set[int]]:
    """All positions of a sequence, part by part."""
    ends = [length * part // parts for part in range(parts + 1)]
    return [set(range(first, end)) for first, end in itertools.pairwise(ends)]


def denoise_reopened(
    prompted: ModelRunner,
    rows: Sequence[list[int]],
    doubted: Sequence[set[int]],
    slack: int,
    decoding: DecodingConfig,
    tokens: TokenIds,
) -> Canvas:
    """Denoise the doubted positions of drafts, each run of them with `slack` more; a position may
    end up with nothing in it."""
    opened = []
    for ids, positions in zip(rows, doubted, strict=True):
        opened.append([*with_open_slots(ids, positions, slack, tokens.mask), tokens.eot])
    canvas = Canvas.of(_padded(opened, tokens.eos).to(prompted.device), tokens.mask)
    length = canvas.ids_BG.shape[1]
    settings = dataclasses.replace(decoding, gen_length=length, block_length=length)
    inside = dataclasses.replace(tokens, eos=tokens.eot, never=(*tokens.never, tokens.eot))
    return deque(
        [canvas, *denoise(make_runner(prompted, settings), canvas, settings, inside)], maxlen=1
    )[0]


def kept_ids(canvas: Canvas, tokens: TokenIds) -> list[list[int]]:
    """The ids of each row before its end, without the positions where nothing stands."""
    kept = []
    for row in canvas.token_ids((tokens.eot,)):
        kept.append([token for token in row if token != tokens.eos])
    return kept


def with_open_slots(values: Sequence[T], opened: set[int], slack: int, mask: T) -> list[T]:
    """The values with the mask at the opened positions, and `slack` more behind each run of
    them."""
    made: list[T] = []
    for position, value in enumerate(values):
        if position not in opened:
            made.append(value)
            continue
        made.append(mask)
        if position + 1 not in opened:
            made += [mask] * slack
    return made


def _padded(rows: Sequence[Sequence[T]], filler: T) -> Tensor:
    """Rows of several lengths as one tensor, (rows, longest)."""
    longest = max(map(len, rows))
    return torch.tensor([list(row) + [filler] * (longest - len(row)) for row in rows])
