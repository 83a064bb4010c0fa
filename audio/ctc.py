"""CTC (Graves et al., 2006): greedy decoding with times, words, and the probability of a text.

Shapes: T embeddings of one stretch of audio, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmdiff.transcript import Word


class TimedToken(NamedTuple):
    """A token of the best path: the embeddings that it was read from, `end` not included, and its
    probability."""

    id: int
    start: int
    end: int
    probability: float


def timed_path(logits_TV: Tensor, blank: int) -> list[TimedToken]:
    """The tokens of the best path, repeats joined and blanks left out."""
    best = logits_TV.float().softmax(-1).max(-1)
    found: list[TimedToken] = []
    last = blank
    for position, (token, probability) in enumerate(
        zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ):
        if token == last and token != blank:
            before = found[-1]
            found[-1] = before._replace(
                end=position + 1, probability=max(before.probability, probability)
            )
        elif token != blank:
            found.append(TimedToken(token, position, position + 1, probability))
        last = token
    return found


def timed_words(
    tokens: Sequence[TimedToken], decode: Callable[[list[int]], str], start: float, seconds: float
) -> tuple[Word, ...]:
    """The words that the tokens spell; one begins where a token begins with a space.

    Args:
        decode: the text of token ids.
        start: of the audio, in seconds.
        seconds: that one embedding stands for.
    """
    groups: list[list[TimedToken]] = []
    for token in tokens:
        if not groups or decode([token.id]).startswith(" "):
            groups.append([])
        groups[-1].append(token)
    words = []
    for number, group in enumerate(groups):
        # CTC's peaks are short and early: a word lasts an embedding longer, up to the next one.
        end = group[-1].end
        if number + 1 < len(groups):
            end = min(end + 1, groups[number + 1][0].start)
        end = max(end, group[0].start + 1)
        text = decode([token.id for token in group]).strip()
        least = min(token.probability for token in group)
        words.append(Word(start + seconds * group[0].start, start + seconds * end, text, least))
    return tuple(words)


def text_probability(logits_TV: Tensor, ids: Sequence[int], blank: int) -> float:
    """The probability (0 to 1) that the embeddings spell exactly these ids: the sum over all paths
    that do.

    It knows of words that were left out, which the confidences of the words that are there do not.
    """
    if not len(logits_TV) or blank in ids:
        return 0.0
    log_probs_T1V = logits_TV.double().log_softmax(-1)[:, None].cpu()
    loss = torch.nn.functional.ctc_loss(
        log_probs_T1V,
        torch.tensor([list(ids)], dtype=torch.long),
        torch.tensor([len(logits_TV)]),
        torch.tensor([len(ids)]),
        blank=blank,
        reduction="sum",
    )
    return float((-loss).exp())
