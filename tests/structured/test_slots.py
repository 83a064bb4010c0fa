"""Joint decisions about a slot's tokens, beside trying every one of them."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch

from mmdiff.structured.constraint import token_dfa
from mmdiff.structured.constraint.slots import (
    ChoiceSlot,
    Distinct,
    SlotsConstraint,
    WordSlot,
    assignment,
)
from mmdiff.structured.constraint.token_dfa import Vocabulary
from mmdiff.structured.regular.byte_dfa import byte_dfa_of
from mmdiff.structured.regular.compile_limits import CompileLimits
from mmdiff.structured.regular.regex import compile_regex

WORDS = [
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"1",
    b"12",
    b"-",
    None,
    None,
]  # 7 fills what is left over, 8 is a mask
PAD, MASK = 7, 8
VOCABULARY = Vocabulary(WORDS, PAD, False, lambda text: [])
PATTERNS = [
    "^[ab]*$",
    "^(ab)+$",
    "^-?[1-9][12]*$",
    "^(a|ba|12)$",
    "^a.*b$",
    "^(aa|bb|ab1)?$",
    "^[^a]{2,3}$",
]
ROOM = 4


def word_slot(source: str, room: int = ROOM, solid: int = 0) -> WordSlot:
    machine = byte_dfa_of(compile_regex(source), "plain", CompileLimits())
    return WordSlot("", 0, room, VOCABULARY.automaton(machine.next_SB, machine.accepts_S), solid)


def every_word(slot: WordSlot, fixed: dict[int, int]) -> list[tuple[int, ...]]:
    """All fillings of a slot that its automaton accepts, by trying them."""
    found = []
    for ids in itertools.product(range(len(WORDS)), repeat=slot.length):
        state = slot.automaton.start
        for token in ids:
            chosen = slot.automaton.class_V[token]
            state = slot.automaton.next_CS[chosen, state] if state >= 0 and chosen >= 0 else -1
        if (
            state >= 0
            and slot.automaton.accepts_S[state]
            and all(ids[p] == t for p, t in fixed.items())
            and PAD not in ids[: slot.solid]
        ):
            found.append(ids)
    return found


def decide(
    slot: WordSlot, ids: list[int], logits: np.ndarray, temperature: float, seed: int
) -> np.ndarray:
    row = np.array(ids)
    open_L = row == MASK
    asked = np.flatnonzero(open_L)
    return slot.decide(
        row, open_L, asked, logits[asked].copy(), temperature, torch.Generator().manual_seed(seed)
    )


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
        for place, token in zip(
            np.flatnonzero(np.array(ids) == MASK), decide(slot, ids, logits, 0.0, 0), strict=True
        ):
            got[place] = int(token)
        best = max(
            words, key=lambda word: sum(logits[place, token] for place, token in enumerate(word))
        )
        assert sum(logits[range(ROOM), got]) == pytest.approx(
            sum(logits[range(ROOM), list(best)]), abs=1e-4
        )
        assert tuple(got) in words


@pytest.mark.parametrize("source", PATTERNS)
def test_what_is_allowed_at_a_position_is_what_some_word_has_there(source: str) -> None:
    slot = word_slot(source, solid=1)
    words = every_word(slot, {})
    allowed_LC = slot.allowed(np.full(ROOM, MASK), np.ones(ROOM, dtype=bool))
    for place in range(ROOM):
        told = {
            token
            for token in range(len(WORDS))
            if slot.automaton.class_V[token] >= 0
            and allowed_LC[place, slot.automaton.class_V[token]]
        }
        assert told == {word[place] for word in words}


@pytest.mark.parametrize("source", ["^[ab]*$", "^(a|ba|12)$", "^-?[1-9][12]*$"])
def test_drawn_words_have_the_positions_own_distribution_given_that_they_are_accepted(
    source: str,
) -> None:
    slot, temperature, draws = word_slot(source, 3), 1.5, 4000
    words = every_word(slot, {})
    logits = np.random.default_rng(3).normal(0, 1.5, (3, len(WORDS))).astype(np.float32)
    weights = np.array(
        [
            np.exp(sum(logits[place, token] for place, token in enumerate(word)) / temperature)
            for word in words
        ]
    )
    expected = weights / weights.sum() * draws
    counts = Counter(
        tuple(decide(slot, [MASK] * 3, logits, temperature, seed).tolist()) for seed in range(draws)
    )
    assert set(counts) <= set(words)
    for word, count in zip(words, expected, strict=True):
        assert (
            abs(counts[word] - count) <= 4 * np.sqrt(count) + 3
        )  # four standard deviations, and more for rare words


def test_any_part_of_what_is_decided_may_be_committed_in_any_order() -> None:
    rng = random.Random(1)
    for source in PATTERNS:
        slot = word_slot(source)
        words = set(every_word(slot, {}))
        for seed in range(30):
            ids = [MASK] * ROOM
            while MASK in ids:
                logits = (
                    np.random.default_rng(rng.getrandbits(30))
                    .normal(0, 3, (ROOM, len(WORDS)))
                    .astype(np.float32)
                )
                places = [place for place in range(ROOM) if ids[place] == MASK]
                decided = decide(slot, ids, logits, rng.choice((0.0, 1.0)), seed)
                for place, token in rng.sample(
                    list(zip(places, decided, strict=True)), rng.randint(1, len(places))
                ):
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
    assert slot.probabilities == pytest.approx(
        np.exp(sums - sums.max()) / np.exp(sums - sums.max()).sum(), abs=1e-5
    )


def test_a_choice_is_committed_as_a_whole() -> None:
    slot = ChoiceSlot("", 1, 2, ("x", "y"), ("x", "y"), np.array([[0, 1], [2, 3]]))
    here_G = torch.tensor([True, False, True, False])
    assert SlotsConstraint([slot], MASK).expand(here_G).tolist() == [True, True, True, False]


def test_forced_positions_are_those_where_one_token_is_left() -> None:
    slot = word_slot("^(ab1|b12)$", 3)
    ids = torch.tensor([0, MASK, MASK])  # "a", then "b1" has one spelling in two tokens
    assert SlotsConstraint([slot], MASK).forced(ids) == {1: 1, 2: 4}


MIXED = (
    "^(aab|bba)*$"  # every position may hold what begins either, and not every mixture is a word
)


def score(logits: np.ndarray, places: np.ndarray, ids: list[int]) -> float:
    return float(sum(logits[place, ids[place]] for place in places))


@pytest.mark.parametrize("source", [MIXED, "^(ab|ba)$", "^[^a]{2,3}$"])
@pytest.mark.parametrize("holes", [False, True], ids=["finite", "infinite"])
def test_only_some_open_positions_may_be_asked_for(source: str, holes: bool) -> None:
    """What is decided is the best of what some word has there, whatever becomes of the other open
    positions."""
    slot = word_slot(source)
    words = every_word(slot, {})
    rng = np.random.default_rng(1)
    for turn in range(40):
        logits = rng.normal(0, 2, (ROOM, len(WORDS))).astype(np.float32)
        if holes:
            logits[rng.random(logits.shape) < 0.5] = -np.inf
        asked = np.flatnonzero(rng.random(ROOM) < 0.6) if turn % 4 else np.arange(ROOM)
        tame = np.where(np.isfinite(logits), logits, -1e4)
        for temperature in (0.0, 1.0):
            got = slot.decide(
                np.full(ROOM, MASK),
                np.ones(ROOM, dtype=bool),
                asked,
                logits[asked].copy(),
                temperature,
                torch.Generator().manual_seed(turn),
            )
            fitting = [word for word in words if [word[place] for place in asked] == got.tolist()]
            assert fitting or not len(asked)
            if temperature == 0.0 and len(asked):
                best = max(score(tame, asked, list(word)) for word in words)
                assert score(tame, asked, list(fitting[0])) == pytest.approx(
                    best, rel=1e-5, abs=1e-3
                )


def test_infinite_and_missing_logits_are_the_best_and_the_worst() -> None:
    slot = word_slot("^[ab12]{1,9}$")
    logits = np.zeros((ROOM, len(WORDS)), dtype=np.float32)
    logits[0, 1], logits[1, 4], logits[2, 0] = np.inf, -np.inf, np.nan
    logits[1, 5] = logits[2, 1] = 1.0
    assert decide(slot, [MASK] * ROOM, logits, 0.0, 0)[:3].tolist() == [1, 5, 1]
    logits[1, 5] = logits[2, 1] = 0.0
    logits[1, :], logits[2, :] = -np.inf, np.nan
    logits[1, 4] = -5.0
    got = decide(slot, [MASK] * ROOM, logits, 0.0, 0)
    assert got[:2].tolist() == [1, 4] and tuple(got.tolist()) in every_word(slot, {})


@pytest.mark.parametrize("source", ["^[ab]*$", "^[^a]{2,3}$", MIXED])
def test_classes_of_very_many_tokens_are_decided_as_others_are(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for big in (2048, 1):
        monkeypatch.setattr(token_dfa, "BIG", big)
        slot = word_slot(source)
        assert bool(slot.automaton.big) == (big == 1 and source != MIXED)
        rng = np.random.default_rng(5)
        made.append(
            [
                decide(
                    slot,
                    [MASK] * ROOM,
                    rng.normal(0, 2, (ROOM, len(WORDS))).astype(np.float32),
                    temperature,
                    seed,
                ).tolist()
                for seed in range(60)
                for temperature in (0.0, 0.5, 2.0)
            ]
        )
    assert made[0] == made[1]


def test_nothing_is_forced_where_all_tokens_but_one_fit() -> None:
    slot = word_slot("^[ab12-]*$")
    assert slot.forced(np.full(ROOM, MASK), np.ones(ROOM, dtype=bool)) == {}


def test_a_slot_reads_the_words_that_it_may_hold_and_no_others() -> None:
    slot = word_slot("^(aab|bba)?$", 3, solid=1)
    held = set(every_word(slot, {}))
    assert (
        held == {ids for ids in itertools.product(range(len(WORDS)), repeat=3) if slot.reads(ids)}
        and len(held) == 4
    )


TABLE = np.array([[0, 1, PAD], [0, 2, 1], [3, 2, PAD]])
CHOICES = "xyz"


def choice(values: str = CHOICES, first: int = 0) -> ChoiceSlot:
    return ChoiceSlot("", first, 3, tuple(values), tuple(values), TABLE[: len(values)])


def test_a_choice_that_is_begun_is_one_of_those_that_are_left() -> None:
    slot, logits = choice(), np.zeros((3, len(WORDS)), dtype=np.float32)
    logits[:, 1] = 9.0  # for the first
    ids, open_L = np.array([MASK, 2, MASK]), np.array([True, False, True])
    for best, wanted in ((0, [0, 1]), (3, [3, PAD])):
        row = logits.copy()
        row[0, best] += 20.0
        got = slot.decide(ids, open_L, np.array([0, 2]), row[[0, 2]], 0.0, torch.Generator())
        assert got.tolist() == wanted
    assert slot.probabilities == ()  # those are of whole choices
    open_now = np.ones(3, dtype=bool)
    slot.decide(
        np.full(3, MASK), open_now, np.array([0, 1]), logits[:2].copy(), 0.0, torch.Generator()
    )
    assert slot.probabilities == ()
    with pytest.raises(AssertionError, match="cannot be completed"):
        slot.decide(
            np.array([3, 1, MASK]),
            np.array([False, False, True]),
            np.array([2]),
            logits[2:],
            0.0,
            torch.Generator(),
        )


def test_a_choice_is_drawn_by_its_likelihood_at_the_temperature() -> None:
    slot, temperature, draws = choice(), 2.0, 3000
    logits = np.random.default_rng(2).normal(0, 2, (3, len(WORDS))).astype(np.float32)
    every = np.arange(3)
    sums = np.array([sum(logits[place, token] for place, token in enumerate(row)) for row in TABLE])
    for place in every:  # each position has a softmax over the tokens that fit there
        sums -= np.log(np.exp(logits[place, np.unique(TABLE[:, place])]).sum())
    weights = np.exp(sums / temperature)
    counts = Counter(
        tuple(
            slot.decide(
                np.full(3, MASK),
                np.ones(3, dtype=bool),
                every,
                logits.copy(),
                temperature,
                torch.Generator().manual_seed(seed),
            ).tolist()
        )
        for seed in range(draws)
    )
    for row, expected in zip(TABLE, weights / weights.sum() * draws, strict=True):
        assert abs(counts[tuple(row.tolist())] - expected) <= 4 * np.sqrt(expected) + 3


def test_a_choice_is_made_among_missing_logits_too() -> None:
    slot = choice()
    for worst in (np.nan, -np.inf):
        logits = np.full((3, len(WORDS)), worst, dtype=np.float32)
        logits[0, 3] = 0.0
        got = slot.decide(
            np.full(3, MASK), np.ones(3, dtype=bool), np.arange(3), logits, 0.0, torch.Generator()
        )
        assert got.tolist() == TABLE[2].tolist() and slot.probabilities == pytest.approx(
            (0.0, 0.0, 1.0)
        )


def test_a_choice_forces_what_all_that_are_left_have_and_nothing_before_it_is_begun() -> None:
    all_open = np.ones(3, dtype=bool)
    assert choice("xy").forced(np.full(3, MASK), all_open) == {}  # although both begin alike
    assert choice("x").forced(np.full(3, MASK), all_open) == {0: 0, 1: 1, 2: PAD}
    assert choice().forced(np.array([MASK, 2, MASK]), np.array([True, False, True])) == {}
    assert choice().forced(np.array([3, MASK, MASK]), np.array([False, True, True])) == {
        1: 2,
        2: PAD,
    }


def test_each_slot_of_a_row_decides_its_own_positions() -> None:
    """A choice at 1, a word at 4 of four positions, and another choice right behind it."""
    word = word_slot("^(aab|bba)$")
    word.first = 4
    row = SlotsConstraint([choice(first=1), word, choice(first=8)], MASK)
    ids = torch.tensor([0, MASK, MASK, MASK, MASK, MASK, MASK, MASK, MASK, MASK, MASK])
    logits = torch.zeros(10, len(WORDS))
    wanted = [3, 2, PAD, 0, 0, 1, PAD, 0, 2, 1]
    for place, token in enumerate(wanted):
        logits[place, token] = 3.0
    given = logits.clone()
    assert row.decide(ids, range(1, 11), given, 0.0, torch.Generator()).tolist() == wanted
    assert given[2].isinf().tolist() == [
        token not in (1, PAD) for token in range(len(WORDS))
    ]  # what may not stand
    some = [3, 4, 7, 8, 10]
    assert row.decide(
        ids, some, logits[[place - 1 for place in some]].clone(), 0.0, torch.Generator()
    ).tolist() == [wanted[place - 1] for place in some]
    here = torch.zeros(11, dtype=torch.bool)
    here[[3, 5]] = True
    assert row.expand(here).nonzero()[:, 0].tolist() == [1, 2, 3, 5]
    ids[[1, 4, 5]] = torch.tensor([3, 1, 1])
    assert row.forced(ids) == {2: 2, 3: PAD, 6: 0, 7: PAD}


def test_an_assignment_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = int(rng.integers(1, 5)), int(rng.integers(1, 6))
        gain_NM = rng.normal(0, 3, (rows, columns))
        gain_NM[rng.random((rows, columns)) < 0.3] = -np.inf
        ways = itertools.permutations(range(columns), rows)
        best = max((gain_NM[np.arange(rows), list(way)].sum() for way in ways), default=-np.inf)
        found = assignment(gain_NM)
        assert (found is None) == (not np.isfinite(best))
        if found is not None:
            assert len(set(found.tolist())) == rows
            assert gain_NM[np.arange(rows), found].sum() == pytest.approx(best)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_choices_of_a_group_never_meet(temperature: float) -> None:
    """As many slots as values, committed one by one in any order, with other logits at each
    step."""
    values = ("a", "b", "ab", "ba", "1")
    ids_KL = np.array([[0, PAD], [1, PAD], [2, PAD], [3, PAD], [4, PAD]])
    for seed in range(20):
        slots = [ChoiceSlot(f"/{n}", 2 * n, 2, values, values, ids_KL) for n in range(len(values))]
        constraint = SlotsConstraint(slots, MASK, [Distinct(slots)])
        ids_G, draws = torch.full((2 * len(values),), MASK), torch.Generator().manual_seed(seed)
        order = random.Random(seed).sample(range(len(values)), len(values))
        for number in order:
            places = [place for place in range(len(ids_G)) if ids_G[place] == MASK]
            logits_NV = torch.randn(len(places), 9, generator=draws)
            decided = dict(
                zip(
                    places,
                    constraint.decide(ids_G, places, logits_NV, temperature, draws).tolist(),
                    strict=True,
                )
            )
            assert len({decided[place] for place in places[::2]}) == len(places) // 2
            for place in (2 * number, 2 * number + 1):
                ids_G[place] = decided.get(place, ids_G[place])
            for place, token in constraint.forced(ids_G).items():
                ids_G[place] = token
        assert sorted(ids_G[::2].tolist()) == [0, 1, 2, 3, 4] and set(ids_G[1::2].tolist()) == {PAD}


def test_a_group_that_cannot_differ_is_decided_all_the_same() -> None:
    slots = [ChoiceSlot(f"/{n}", n, 1, ("a",), ("a",), np.array([[0]])) for n in range(2)]
    constraint = SlotsConstraint(slots, MASK, [Distinct(slots)])
    ids_G = torch.full((2,), MASK)
    assert constraint.decide(ids_G, [0, 1], torch.zeros(2, 9), 0.0, torch.Generator()).tolist() == [
        0,
        0,
    ]


def test_a_word_that_is_only_begun_is_never_the_best() -> None:
    """Every token of "aab" and "aa" may stand where it would stand, but the word would not be
    finished."""
    slot = word_slot(MIXED, 5)
    logits = np.random.default_rng(0).normal(0, 0.1, (5, len(WORDS))).astype(np.float32)
    allowed = slot.allowed(np.full(5, MASK), np.ones(5, dtype=bool))
    for place, token in enumerate([0, 0, 1, 0, 0]):
        assert allowed[place, slot.automaton.class_V[token]]
        logits[place, token] += 2.0
    words = every_word(slot, {})
    best = max(
        words, key=lambda word: sum(logits[place, token] for place, token in enumerate(word))
    )
    assert tuple(decide(slot, [MASK] * 5, logits, 0.0, 0).tolist()) == best
    for seed in range(20):
        assert tuple(decide(slot, [MASK] * 5, 3 * logits, 1.0, seed).tolist()) in words
