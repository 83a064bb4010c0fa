"""Rules, orders and schedules: what each commits, against the slow obvious version; Dream's sampler token for token."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmdiff import config
from mmdiff.canvas import Canvas
from mmdiff.checkpoint import Weights, config_of, load_weights
from mmdiff.config import DecodingConfig
from mmdiff.model import MMDiffConfig, MMDiffModel
from mmdiff.prompted import Prompted
from mmdiff.rules import ORDERS, RULES, EntropyBounded, Factor, LocalDeterminism, Quota, Threshold, Votes, make_rule
from mmdiff.sampler import denoise
from mmdiff.schedule import SCHEDULES, even_shares

LENGTH, VOCAB = 12, 7


def votes_of(
    logits_GV: Tensor, eligible: list[bool] | None = None, quota: int = 3, block_length: int = LENGTH
) -> Votes:
    """One row."""
    length = len(logits_GV)
    open_G = torch.tensor(eligible if eligible is not None else [True] * length)
    canvas = Canvas.of(torch.where(open_G, 9, 1)[None], 9)
    logits_NV = logits_GV[open_G]
    draws = [(torch.Generator().manual_seed(0), len(logits_NV))]
    nothing = torch.zeros_like(open_G)[None]
    return Votes(canvas, open_G[None], logits_NV, logits_NV.argmax(-1), torch.tensor([quota]), block_length, draws,
                 [0], nothing, logits_NV[:0])


def sure(*confidences: float) -> Votes:
    """Two tokens, the first with these probabilities."""
    first = torch.tensor(confidences)
    return votes_of(torch.stack((first, 1 - first), dim=1).clamp(min=1e-9).log())


def chosen(rule: Any, votes: Votes, order: str = "low_confidence") -> list[int]:
    return rule(votes, ORDERS[order](votes))[0].nonzero()[:, 0].tolist()  # type: ignore[no-any-return]


def test_the_names_are_those_of_the_settings() -> None:
    assert set(RULES) == set(get_args(config.Rule)) and set(ORDERS) == set(get_args(config.Order))
    assert set(SCHEDULES) == set(get_args(config.Schedule))


def test_quota_takes_the_best_with_ties_to_the_lowest_index() -> None:
    votes = votes_of(torch.tensor([[2.0, 0], [3, 0], [2, 0], [3, 0], [3, 0]]), [True, True, True, False, True])
    assert chosen(Quota(), votes) == [0, 1, 4]


def test_threshold_is_inclusive_and_always_takes_one() -> None:
    assert chosen(Threshold(0.75), sure(0.75, 0.95, 0.6)) == [0, 1]
    assert chosen(Threshold(0.99), sure(0.6, 0.7, 0.65)) == [1]


def test_a_named_threshold_rule_has_its_usual_threshold() -> None:
    for threshold, wanted in ((None, 0.9), (0.0, 0.0), (0.4, 0.4)):
        assert make_rule(DecodingConfig(rule="threshold", threshold=threshold)) == Threshold(wanted)
    assert make_rule(DecodingConfig(threshold=0.4)) == Threshold(0.4) and make_rule(DecodingConfig()) == Quota()


def test_factor_follows_the_theorem() -> None:
    """n tokens are safe while (n + 1)(1 - c) <= factor; the last one is not let through for being last."""
    assert chosen(Factor(1.0), sure(0.99, 0.95, 0.6)) == [0, 1]
    assert chosen(Factor(1.0), sure(0.55, 0.6)) == [1]
    assert chosen(Factor(1.0), sure(0.99, 0.98, 0.97, 0.96, 0.51)) == [0, 1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 4.0))
def test_bounded_entropy_is_the_obvious_loop(seed: int, gamma: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    eligible = (torch.rand(LENGTH, generator=generator) < 0.7).tolist()
    eligible[seed % LENGTH] = True
    votes = votes_of(torch.randn(LENGTH, VOCAB, generator=generator) * 3, eligible)
    entropy = {place: float(votes.entropy_AG[0, place]) for place in range(LENGTH) if eligible[place]}
    taken: list[int] = []
    for place in sorted(entropy, key=lambda place: (entropy[place], place)):
        if taken and math.fsum(entropy[other] for other in taken) > gamma:
            break
        taken.append(place)
    assert chosen(EntropyBounded(gamma), votes) == sorted(taken)


def test_dilated_rounds_are_far_apart() -> None:
    open_now, rounds = [True] * 8, []
    while any(open_now):
        taken = chosen(RULES["dilated"](DecodingConfig()), votes_of(torch.zeros(8, VOCAB), open_now, block_length=8))
        rounds.append(taken)
        open_now = [still and place not in taken for place, still in enumerate(open_now)]
    assert rounds == [[0, 4], [2, 6], [1, 3, 5, 7]]


def test_neighbours_of_an_anchor_need_less() -> None:
    votes = sure(0.8, 0.8, 0.95, 0.7, 0.8, 0.6, 0.6, 0.8)
    assert chosen(LocalDeterminism(0.9, 0.75, radius=2), votes) == [0, 1, 2, 4]
    assert chosen(LocalDeterminism(), sure(0.6, 0.8, 0.7)) == [1]


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_every_rule_takes_eligible_positions_and_at_least_one(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    eligible = (torch.rand(LENGTH, generator=generator) < 0.4).tolist()
    eligible[seed % LENGTH] = True
    votes = votes_of(torch.randn(LENGTH, VOCAB, generator=generator) * 4, eligible, quota=2, block_length=5)
    rule = make_rule(DecodingConfig(rule=name, threshold=0.9))  # type: ignore[arg-type]
    for order in ORDERS:
        taken = chosen(rule, votes, order)
        assert taken and all(eligible[place] for place in taken)


def test_orders() -> None:
    logits = torch.tensor([[0.5, 0.45, 0.05], [0.4, 0.3, 0.3], [0.45, 0.275, 0.275]]).log()
    best = {name: chosen(Quota(), votes_of(logits, quota=1), name) for name in ORDERS}
    assert best["low_confidence"] == [0] and best["margin"] == [2] and best["entropy"] == [0]
    assert best["left_to_right"] == [0]


@pytest.mark.parametrize("shares", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("total", "parts"), [(16, 16), (30, 7), (5, 8), (1, 1), (64, 3), (0, 4)])
def test_shares_add_up(shares: Callable[[int, int], list[int]], total: int, parts: int) -> None:
    made = shares(total, parts)
    assert sum(made) == total and len(made) == parts and min(made) >= 0


def test_schedules_lean_as_they_should() -> None:
    assert even_shares(10, 4) == [3, 3, 2, 2]
    half = {name: sum(shares(64, 8)[:4]) for name, shares in SCHEDULES.items()}
    assert half["cosine"] < half["uniform"] < half["shifted"]


@pytest.fixture(scope="module")
def dream(reference: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "dream"))).eval()
    load_weights(model, Weights(reference / "dream"))
    return model


def test_dream_gives_the_published_logits(dream: MMDiffModel, reference: Path) -> None:
    stored = Weights.__new__(Weights)
    stored._files = {name: reference / "dream" / "forward.safetensors" for name in ("input_ids", "logits")}
    with torch.no_grad():
        logits = dream(stored["input_ids"]).logits
    published = stored["logits"]
    shifted = torch.cat((published[:, :1], published[:, :-1]), dim=1)
    torch.testing.assert_close(logits, shifted, rtol=1e-4, atol=1e-4)


DREAM = json.loads((Path(__file__).parent / "reference" / "dream" / "generate.json").read_text())
DREAM_ORDERS = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("case", DREAM, ids=[case["params"]["alg"] for case in DREAM])
def test_dream_ids_equal_the_published_sampler(dream: MMDiffModel, case: dict[str, Any]) -> None:
    """With the 50 likeliest ids, which is what its generation settings inherit from transformers."""
    params, prompt = case["params"], torch.tensor(case["prompt"])
    length = params["max_new_tokens"]
    decoding = DecodingConfig(length, length, params["steps"], schedule="dream", stop=False, top_k=50,
                              order=DREAM_ORDERS[params["alg"]])  # type: ignore[arg-type]
    tokens = dream.model_config.tokens
    canvas = Canvas.blank(1, length, tokens.mask)
    *_, last = denoise(Prompted(dream, prompt), canvas, decoding, tokens)
    assert torch.cat((prompt, last.ids_BG), dim=1).tolist() == case["output"]
