"""Words of CTC's outputs: times that do not overlap, and nothing where nothing is spelled."""

import torch

from mmdiff.audio.ctc import timed_path, timed_words

TEXTS = {1: "tu", 2: "rn", 3: " on", 4: " light"}


def decode(ids: list[int]) -> str:
    return "".join(TEXTS[id] for id in ids)


def logits(*path: int) -> torch.Tensor:
    return 9.0 * torch.nn.functional.one_hot(torch.tensor(path), 5)


def test_words_have_the_times_of_their_tokens() -> None:
    tokens = timed_path(logits(0, 1, 1, 2, 3, 0, 4, 4), blank=0)
    assert [(token.id, token.start, token.end) for token in tokens] == [
        (1, 1, 3),
        (2, 3, 4),
        (3, 4, 5),
        (4, 6, 8),
    ]
    words = timed_words(tokens, decode, start=10.0, seconds=0.5)
    assert [(word.text, word.start, word.end) for word in words] == [
        ("turn", 10.5, 12.0),
        ("on", 12.0, 13.0),
        ("light", 13.0, 14.0),
    ]
    assert all(0.9 < word.probability <= 1 for word in words)


def test_repeats_around_a_blank_are_two_tokens() -> None:
    assert [token.start for token in timed_path(logits(3, 0, 3, 3), blank=0)] == [0, 2]


def test_nothing_is_spelled() -> None:
    assert timed_words(timed_path(logits(0, 0, 0), blank=0), decode, 0.0, 0.08) == ()
