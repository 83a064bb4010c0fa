"""Joint decisions about a slot's tokens, beside trying every one of them."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch

from mmdiff.scaffold.automaton import byte_automaton
from mmdiff.scaffold.deadline import Deadline
from mmdiff.scaffold.pattern import pattern
from mmdiff.scaffold.slots import ChoiceSlot, SlotsConstraint, WordSlot
from mmdiff.scaffold.vocabulary import Vocabulary

WORDS = [b"a", b"b", b"ab", b"ba", b"1", b"12", b"-", None, None]  # 7 fills what is left over, 8 is a mask
PAD, MASK = 7, 8
VOCABULARY = Vocabulary(WORDS, PAD, False, lambda text: [])
PATTERNS = ["^[ab]*$", "^(ab)+$", "^-?[1-9][12]*$", "^(a|ba|12)$", "^a.*b$", "^(aa|bb|ab1)?$", "^[^a]{2,3}$"]
ROOM = 4


def word_slot(source: str, room: int = ROOM, solid: int = 0) -> WordSlot:
    machine = byte_automaton(pattern(source), "plain", Deadline())
    return WordSlot("", 0, room, VOCABULARY.automaton(machine.next_SB, machine.accepts_S), solid)


def every_word(slot: WordSlot, fixed: dict[int, int]) -> list[tuple[int, ...]]:
    """All fillings of a slot that its automaton accepts, by trying them."""
    found = []
    for ids in itertools.product(range(len(WORDS)), repeat=slot.room):
        state = slot.automaton.start
        for token in ids:
            chosen = slot.automaton.class_V[token]
            state = slot.automaton.next_CS[chosen, state] if state >= 0 and chosen >= 0 else -1
        if state >= 0 and slot.automaton.accepts_S[state] and all(ids[p] == t for p, t in fixed.items()):
            if PAD not in ids[: slot.solid]:
                found.append(ids)
    return found


def decide(slot: WordSlot, ids: list[int], logits: np.ndarray, temperature: float, seed: int) -> np.ndarray:
    row = np.array(ids)
    open_L = row == MASK
    asked = np.flatnonzero(open_L)
    return slot.decide(row, open_L, asked, logits[asked].copy(), temperature, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source", PATTERNS)
@pytest.mark.parametrize("fixed", [{}, {0: 0}, {1: 1}, {3: PAD}], ids=str)
def test_the_likeliest_word_is_the_best_of_all_words(source: str, fixed: dict[int, int]) -> None:
    slot = word_slot(source)
    words = every_word(slot, fixed)
    ids = [fixed.get(place, MASK) for place in range(ROOM)]
    if not words:
        with pytest.raises(AssertionError, match="cannot be completed"):
            slot.allowed(np.array(ids), np.array(ids) == MASK)
        return
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(0, 2, (ROOM, len(WORDS))).astype(np.float32)
        got = list(ids)
        for place, token in zip(np.flatnonzero(np.array(ids) == MASK), decide(slot, ids, logits, 0.0, 0), strict=True):
            got[place] = int(token)
        best = max(words, key=lambda word: sum(logits[place, token] for place, token in enumerate(word)))
        assert sum(logits[range(ROOM), got]) == pytest.approx(sum(logits[range(ROOM), list(best)]), abs=1e-4)
        assert tuple(got) in words


@pytest.mark.parametrize("source", PATTERNS)
def test_what_is_allowed_at_a_position_is_what_some_word_has_there(source: str) -> None:
    slot = word_slot(source, solid=1)
    words = every_word(slot, {})
    allowed_LC = slot.allowed(np.full(ROOM, MASK), np.ones(ROOM, dtype=bool))
    for place in range(ROOM):
        told = {token for token in range(len(WORDS))
                if slot.automaton.class_V[token] >= 0 and allowed_LC[place, slot.automaton.class_V[token]]}
        assert told == {word[place] for word in words}


@pytest.mark.parametrize("source", ["^[ab]*$", "^(a|ba|12)$", "^-?[1-9][12]*$"])
def test_drawn_words_have_the_positions_own_distribution_given_that_they_are_accepted(source: str) -> None:
    slot, temperature, draws = word_slot(source, 3), 1.5, 4000
    words = every_word(slot, {})
    logits = np.random.default_rng(3).normal(0, 1.5, (3, len(WORDS))).astype(np.float32)
    weights = np.array([np.exp(sum(logits[place, token] for place, token in enumerate(word)) / temperature)
                        for word in words])
    expected = weights / weights.sum() * draws
    counts = Counter(tuple(decide(slot, [MASK] * 3, logits, temperature, seed).tolist()) for seed in range(draws))
    assert set(counts) <= set(words)
    for word, count in zip(words, expected, strict=True):
        assert abs(counts[word] - count) <= 4 * np.sqrt(count) + 3  # four standard deviations, and more for rare words


def test_any_part_of_what_is_decided_may_be_committed_in_any_order() -> None:
    rng = random.Random(1)
    for source in PATTERNS:
        slot = word_slot(source)
        words = set(every_word(slot, {}))
        for seed in range(30):
            ids = [MASK] * ROOM
            while MASK in ids:
                logits = np.random.default_rng(rng.getrandbits(30)).normal(0, 3, (ROOM, len(WORDS))).astype(np.float32)
                places = [place for place in range(ROOM) if ids[place] == MASK]
                decided = decide(slot, ids, logits, rng.choice((0.0, 1.0)), seed)
                for place, token in rng.sample(list(zip(places, decided, strict=True)), rng.randint(1, len(places))):
                    ids[place] = int(token)
                if MASK not in ids and rng.random() < 0.5:
                    ids[rng.randrange(ROOM)] = MASK  # taken back
            assert tuple(ids) in words


def test_a_choice_is_drawn_by_the_likelihood_of_its_tokens_and_tells_all_chances() -> None:
    table = np.array([[0, 1], [0, PAD], [2, PAD]])
    slot = ChoiceSlot("", 0, 2, ("x", "y", "z"), ("x", "y", "z"), table)
    logits = np.random.default_rng(0).normal(0, 1, (2, len(WORDS))).astype(np.float32)
    sums = logits[0, table[:, 0]] + logits[1, table[:, 1]]
    free = np.ones(2, dtype=bool)
    got = slot.decide(np.full(2, MASK), free, np.arange(2), logits.copy(), 0.0, torch.Generator())
    assert got.tolist() == table[sums.argmax()].tolist()
    assert slot.chances == pytest.approx(np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum(), abs=1e-5)


def test_a_choice_is_committed_as_a_whole() -> None:
    slot = ChoiceSlot("", 1, 2, ("x", "y"), ("x", "y"), np.array([[0, 1], [2, 3]]))
    here_G = torch.tensor([True, False, True, False])
    assert SlotsConstraint([slot], MASK).widen(here_G).tolist() == [True, True, True, False]


def test_forced_positions_are_those_where_one_token_is_left() -> None:
    slot = word_slot("^(ab1|b12)$", 3)
    ids = torch.tensor([0, MASK, MASK])  # "a", then "b1" has one spelling in two tokens
    assert SlotsConstraint([slot], MASK).forced(ids) == {1: 1, 2: 4}
