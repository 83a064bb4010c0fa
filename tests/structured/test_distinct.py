"""Choices that must differ, beside trying every assignment."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch

from mmdiff.structured.constraint.slots import (
    ChoiceSlot,
    Distinct,
    SlotsConstraint,
    _gumbel,
    assignment,
)

PAD, MASK, VOCAB = 7, 8, 9
TABLE = {"x": [0, 1], "y": [0, 2], "z": [3, PAD], "w": [4, PAD]}


def group(*values: str) -> SlotsConstraint:
    """A ranking: slots of two positions behind each other, each with its own values."""
    slots = [
        ChoiceSlot(
            f"/{number}",
            2 * number,
            2,
            tuple(each),
            tuple(each),
            np.array([TABLE[name] for name in each]),
        )
        for number, each in enumerate(values)
    ]
    return SlotsConstraint(slots, MASK, [Distinct(slots)])


def decided(
    row: SlotsConstraint,
    ids: list[int],
    logits: np.ndarray,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """The values that stand in the slots once all that is decided is committed."""
    ids_G = torch.tensor(ids)
    places = [place for place, token in enumerate(ids) if token == MASK]
    given = torch.from_numpy(logits[places].copy())
    made = row.decide(
        ids_G, places, given, temperature, torch.Generator().manual_seed(seed)
    ).tolist()
    whole = list(ids)
    for place, token in zip(places, made, strict=True):
        whole[place] = token
    names = {tuple(tokens): name for name, tokens in TABLE.items()}
    return [names[tuple(whole[start : start + 2])] for start in range(0, len(whole), 2)]


def likelihood(row: SlotsConstraint, logits: np.ndarray, values: tuple[str, ...]) -> float:
    """Each position has a softmax over the tokens that any value of its slot has there."""
    total = 0.0
    for slot, value in zip(row.slots, values, strict=True):
        assert isinstance(slot, ChoiceSlot)
        for place, token in enumerate(TABLE[value]):
            fits = np.unique(slot.ids_KL[:, place])
            here = logits[slot.first + place].astype(np.float64)
            total += here[token] - np.log(np.exp(here[fits]).sum())
    return total


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (2, 2), (3, 3), (4, 4), (2, 4), (4, 5), (3, 6)]
)
def test_an_assignment_is_the_best_of_all(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows * 10 + columns)
    for turn in range(60):
        gain = rng.normal(0, 3, (rows, columns))
        gain[rng.random(gain.shape) < 0.35 * (turn % 2)] = -np.inf
        sums = {
            way: sum(gain[row, column] for row, column in enumerate(way))
            for way in itertools.permutations(range(columns), rows)
        }
        best = max(sums.values())
        found = assignment(gain)
        assert (found is None) == bool(np.isneginf(best))
        if found is not None:
            assert sums[tuple(found.tolist())] == pytest.approx(best)


def test_more_rows_than_columns_have_no_assignment() -> None:
    assert assignment(np.zeros((3, 2))) is None


def test_a_ranking_is_the_likeliest_of_all_orders() -> None:
    row = group("xyzw", "xyz", "yzw")
    for seed in range(40):
        logits = np.random.default_rng(seed).normal(0, 2, (6, VOCAB)).astype(np.float32)
        orders = [
            order for order in itertools.product("xyzw", "xyz", "yzw") if len(set(order)) == 3
        ]
        best = max(orders, key=lambda order: likelihood(row, logits, order))
        assert tuple(decided(row, [MASK] * 6, logits)) == best


def test_what_one_holds_is_left_to_none_of_the_others() -> None:
    row = group("xyz", "xyz", "xyz")
    for seed, (place, held) in enumerate(itertools.product(range(3), "xyz")):
        ids = [MASK] * 6
        ids[2 * place : 2 * place + 2] = TABLE[held]
        logits = np.random.default_rng(seed).normal(0, 2, (6, VOCAB)).astype(np.float32)
        logits[:, TABLE[held][0]] += 9.0  # all would like to be it
        for temperature in (0.0, 1.0):
            made = decided(row, ids, logits, temperature, seed)
            assert made[place] == held and sorted(made) == ["x", "y", "z"]


def test_one_that_is_only_begun_holds_nothing_yet() -> None:
    """The first is "x" or "y", so the second may still be either."""
    row = group("xyz", "xyz")
    logits = np.zeros((4, VOCAB), dtype=np.float32)
    for wanted in (["x", "y"], ["y", "x"]):
        given = logits.copy()
        given[1, TABLE[wanted[0]][1]] = given[3, TABLE[wanted[1]][1]] = 5.0
        given[2, 0] = 5.0
        assert decided(row, [0, MASK, MASK, MASK], given) == wanted


def test_values_that_cannot_all_differ_are_chosen_all_the_same() -> None:
    row, logits = group("xy", "xy", "xy"), np.zeros((6, VOCAB), dtype=np.float32)
    logits[[1, 3, 5], 2] = 1.0
    assert decided(row, [MASK] * 6, logits) == ["y", "y", "y"]
    assert (
        decided(row, [*TABLE["x"], *TABLE["y"], MASK, MASK], logits)[2] == "y"
    )  # both are held: as if none were


def test_the_last_of_a_ranking_is_forced_and_one_that_is_free_is_not() -> None:
    row = group("xyz", "xyz", "xyz")
    assert (
        row.forced(torch.tensor([*TABLE["z"], MASK, MASK, MASK, MASK])) == {}
    )  # the others both begin alike, and wait
    assert row.forced(torch.tensor([*TABLE["z"], *TABLE["x"], MASK, MASK])) == {4: 0, 5: 2}
    assert row.forced(torch.tensor([*TABLE["z"], 0, MASK, MASK, MASK])) == {}
    assert row.forced(torch.tensor([3, MASK, MASK, MASK, MASK, MASK])) == {1: PAD}


@pytest.mark.parametrize(("temperature", "share"), [(0.2, 0.99), (1.0, 0.88), (20.0, 0.525)])
def test_draws_follow_the_temperature(temperature: float, share: float) -> None:
    """A gain of 2 against one of 0 is drawn with the odds of exp(2 / temperature)."""
    row = group("xz")
    logits = np.zeros((2, VOCAB), dtype=np.float32)
    logits[0, 0] = 2.0
    counts = Counter(
        decided(row, [MASK, MASK], logits, temperature, seed)[0] for seed in range(1500)
    )
    assert counts["x"] / 1500 == pytest.approx(share, abs=0.045)


def test_the_noise_is_gumbel_s() -> None:
    """Of mean 0.5772 (Euler's constant) and variance pi^2 / 6, and leaning to the right."""
    noise = _gumbel(40_000, torch.Generator().manual_seed(0))
    assert noise.mean() == pytest.approx(0.5772, abs=0.03)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.06)
