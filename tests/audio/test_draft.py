"""Best paths against the obvious version: join repeats, drop blanks."""

from itertools import groupby

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdiff.audio.draft import best_path


@given(st.lists(st.integers(0, 4), max_size=30))
def test_repeats_are_joined_and_blanks_dropped(path: list[int]) -> None:
    logits = 10 * torch.eye(5)[torch.tensor(path, dtype=torch.long)] if path else torch.zeros(0, 5)
    ids, confidences = best_path(logits, blank=1)
    assert ids == [token for token, _ in groupby(path) if token != 1]
    assert len(ids) == len(confidences) and all(0.99 < confidence <= 1 for confidence in confidences)
