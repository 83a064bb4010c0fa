"""Best paths against the obvious version: join repeats, drop blanks."""

import itertools
from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.audio.ctc import text_probability, timed_path


def best_path(logits: torch.Tensor, blank: int) -> tuple[list[int], list[float]]:
    found = timed_path(logits, blank)
    return [token.id for token in found], [token.probability for token in found]


@given(st.lists(st.integers(0, 4), max_size=30))
def test_repeats_are_joined_and_blanks_dropped(path: list[int]) -> None:
    logits = 10 * torch.eye(5)[torch.tensor(path, dtype=torch.long)] if path else torch.zeros(0, 5)
    ids, confidences = best_path(logits, blank=1)
    assert ids == [token for token, _ in groupby(path) if token != 1]
    assert len(ids) == len(confidences) and all(
        0.99 < confidence <= 1 for confidence in confidences
    )


@given(st.integers(0, 5), st.lists(st.integers(1, 2), max_size=3), st.integers(0, 99))
def test_the_probability_of_a_text_is_that_of_all_its_paths(
    length: int, ids: list[int], seed: int
) -> None:
    """The obvious version: every path of the length is read, and those that spell the ids are added
    up."""
    logits = torch.randn(length, 3, generator=torch.Generator().manual_seed(seed))
    chances = logits.double().softmax(-1)
    total = 0.0
    for path in itertools.product(range(3), repeat=length):
        if [token for token, _ in groupby(path) if token != 0] == ids and length:
            total += float(
                torch.stack([chances[place, token] for place, token in enumerate(path)]).prod()
            )
    assert text_probability(logits, ids, blank=0) == pytest.approx(total, abs=1e-9)


def test_a_word_that_is_left_out_costs_confidence() -> None:
    """Half of the paths spell a second word: the first alone is not sure, however sure its own
    token is."""
    logits = torch.tensor([[0.0, 20, 0], [20, 0, 0], [20, 0, 20.0]])
    ids, confidences = best_path(logits, blank=0)
    assert ids == [1] and confidences[0] > 0.99
    assert text_probability(logits, ids, blank=0) == pytest.approx(0.5, abs=1e-3)


def test_a_token_has_the_highest_confidence_of_its_run() -> None:
    chances = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.55, 0.45]])
    ids, confidences = best_path(chances.log(), blank=1)
    assert ids == [0, 0]
    torch.testing.assert_close(torch.tensor(confidences), torch.tensor([0.9, 0.55]))
