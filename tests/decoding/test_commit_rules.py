"""Rules, orders and schedules: what each commits, against the slow obvious version; Dream's sampler
token for token."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmdiff import config
from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.commit_rules import (
    ORDERS,
    RULES,
    EntropyBounded,
    Factor,
    LocalDeterminism,
    Proposal,
    Quota,
    RemaskingRule,
    RunningConfidence,
    Saber,
    Threshold,
    WideInNarrowOut,
    make_rule,
)
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.decoding.sampler import denoise
from mmdiff.decoding.schedule import SCHEDULES, cosine_shares, even_shares, shifted_shares
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel

LENGTH, VOCAB = 12, 7


def votes_of(
    logits_GV: Tensor,
    eligible: list[bool] | None = None,
    quota: int = 3,
    block_length: int = LENGTH,
) -> Proposal:
    """One row."""
    length = len(logits_GV)
    open_G = torch.tensor(eligible if eligible is not None else [True] * length)
    canvas = Canvas.of(torch.where(open_G, 9, 1)[None], 9)
    logits_NV = logits_GV[open_G]
    draws = [(torch.Generator().manual_seed(0), len(logits_NV))]
    nothing = torch.zeros_like(open_G)[None]
    return Proposal(
        canvas,
        open_G[None],
        logits_NV,
        logits_NV.argmax(-1),
        torch.tensor([quota]),
        torch.tensor([0]),
        block_length,
        draws,
        [0],
        nothing,
        torch.zeros(0, dtype=torch.long),
        logits_NV[:0],
    )


def sure(*confidences: float) -> Proposal:
    """Two tokens, the first with these probabilities."""
    first = torch.tensor(confidences)
    return votes_of(torch.stack((first, 1 - first), dim=1).clamp(min=1e-9).log())


def chosen(rule: Any, votes: Proposal, order: str = "low_confidence") -> list[int]:
    return rule(votes, ORDERS[order](votes))[0].nonzero()[:, 0].tolist()  # type: ignore[no-any-return]


def test_the_names_are_those_of_the_settings() -> None:
    assert set(RULES) == set(get_args(config.Rule)) and set(ORDERS) == set(get_args(config.Order))
    assert set(SCHEDULES) == set(get_args(config.Schedule))


def test_quota_takes_the_best_with_ties_to_the_lowest_index() -> None:
    votes = votes_of(
        torch.tensor([[2.0, 0], [3, 0], [2, 0], [3, 0], [3, 0]]), [True, True, True, False, True]
    )
    assert chosen(Quota(), votes) == [0, 1, 4]


def test_threshold_is_inclusive_and_always_takes_one() -> None:
    assert chosen(Threshold(0.75), sure(0.75, 0.95, 0.6)) == [0, 1]
    assert chosen(Threshold(0.99), sure(0.6, 0.7, 0.65)) == [1]


def test_a_named_threshold_rule_has_its_usual_threshold() -> None:
    for threshold, wanted in ((None, 0.9), (0.0, 0.0), (0.4, 0.4)):
        assert make_rule(DecodingConfig(rule="threshold", threshold=threshold)) == Threshold(wanted)
    assert (
        make_rule(DecodingConfig(threshold=0.4)) == Threshold(0.4)
        and make_rule(DecodingConfig()) == Quota()
    )


def test_factor_follows_the_theorem() -> None:
    """n tokens are safe while (n + 1)(1 - c) <= factor; the last one is not let through for being
    last."""
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
    entropy = {
        place: float(votes.entropy_AG[0, place]) for place in range(LENGTH) if eligible[place]
    }
    taken: list[int] = []
    for place in sorted(entropy, key=lambda place: (entropy[place], place)):
        if taken and math.fsum(entropy[other] for other in taken) > gamma:
            break
        taken.append(place)
    assert chosen(EntropyBounded(gamma), votes) == sorted(taken)


def test_dilated_rounds_are_far_apart() -> None:
    open_now, rounds = [True] * 8, []
    while any(open_now):
        taken = chosen(
            RULES["dilated"](DecodingConfig()),
            votes_of(torch.zeros(8, VOCAB), open_now, block_length=8),
        )
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
    votes = votes_of(
        torch.randn(LENGTH, VOCAB, generator=generator) * 4, eligible, quota=2, block_length=5
    )
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
    load_weights(model, CheckpointTensors(reference / "dream"))
    return model


def test_dream_gives_the_published_logits(dream: MMDiffModel, reference: Path) -> None:
    stored = CheckpointTensors.__new__(CheckpointTensors)
    stored._files = dict.fromkeys(
        ("input_ids", "logits"), reference / "dream" / "forward.safetensors"
    )
    with torch.no_grad():
        logits = dream(stored["input_ids"]).logits
    published = stored["logits"]
    shifted = torch.cat((published[:, :1], published[:, :-1]), dim=1)
    torch.testing.assert_close(logits, shifted, rtol=1e-4, atol=1e-4)


DREAM = json.loads(
    (Path(__file__).parents[1] / "reference" / "dream" / "generate.json").read_text()
)
DREAM_ORDERS = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("case", DREAM, ids=[case["params"]["alg"] for case in DREAM])
def test_dream_ids_equal_the_published_sampler(dream: MMDiffModel, case: dict[str, Any]) -> None:
    """With the 50 likeliest ids, which is what its generation settings inherit from
    transformers."""
    params, prompt = case["params"], torch.tensor(case["prompt"])
    length = params["max_new_tokens"]
    decoding = DecodingConfig(
        length,
        length,
        params["steps"],
        schedule="dream",
        stop=False,
        top_k=50,
        order=DREAM_ORDERS[params["alg"]],
    )  # type: ignore[arg-type]
    tokens = dream.model_config.tokens
    canvas = Canvas.blank(1, length, tokens.mask)
    *_, last = denoise(ModelRunner(dream, prompt), canvas, decoding, tokens)
    assert torch.cat((prompt, last.ids_BG), dim=1).tolist() == case["output"]


def revised(
    rule: RemaskingRule,
    now: Sequence[float],
    decided: Mapping[int, float] | None = None,
    quota: int = 1,
    block_length: int = 64,
) -> tuple[list[int], list[int]]:
    """What a rule commits in a row, and what it takes back after that.

    Args:
        now: of each position, the probability that the model now gives token 0, of two.
        decided: the positions that hold token 0 since an earlier step, and the confidence of that
            commit.
    """
    decided = decided or {}
    open_1G = torch.tensor([[place not in decided for place in range(len(now))]])
    confidence_1G = torch.tensor([[decided.get(place, 0.0) for place in range(len(now))]])
    canvas = Canvas(torch.where(open_1G, 9, 0), open_1G, confidence_1G, torch.where(open_1G, -1, 0))
    probs_GV = torch.tensor([[chance, 1 - chance] for chance in now])
    blocks_G = torch.arange(len(now)) // block_length
    eligible_1G = open_1G & (blocks_G == blocks_G[open_1G[0]][0])
    decided_1G = torch.zeros_like(open_1G)
    if rule.needs is not None:
        decided_1G = ~open_1G & (blocks_G == blocks_G[eligible_1G[0]][0])
    logits_NV = probs_GV[eligible_1G[0]].log()
    votes = Proposal(
        canvas,
        eligible_1G,
        logits_NV,
        logits_NV.argmax(-1),
        torch.tensor([quota]),
        torch.tensor([0]),
        block_length,
        [(torch.Generator(), len(logits_NV))],
        [0],
        decided_1G,
        canvas.ids_BG[decided_1G],
        probs_GV[decided_1G[0]].log(),
    )
    here_1G = rule(votes, votes.confidence_AG)
    ids_1G = canvas.ids_BG.masked_scatter(eligible_1G, votes.ids_N)
    after = canvas.commit(here_1G, ids_1G, votes.confidence_AG, torch.tensor([1]))
    back_1G = rule.remask(votes, after)
    return here_1G[0].nonzero()[:, 0].tolist(), back_1G[0].nonzero()[:, 0].tolist()


def test_running_confidence_keeps_as_many_as_the_schedule_says() -> None:
    """The rest of what is committed at once goes back, the least confident first."""
    assert revised(RunningConfidence(), [0.9, 0.6, 0.8, 0.7], quota=2) == ([0, 1, 2, 3], [1, 3])
    assert revised(RunningConfidence(), [0.9, 0.9, 0.6, 0.95], {0: 0.55}) == (
        [1, 2, 3],
        [0, 2],
    )  # by its own commit
    assert revised(RunningConfidence(), [0.9, 0.6, 0.8], quota=5) == ([0, 1, 2], [])


def test_running_confidence_leaves_finished_blocks_alone() -> None:
    made = revised(
        RunningConfidence(), [0.6, 0.6, 0.9, 0.8, 0.6, 0.6], {0: 0.51, 1: 0.52}, block_length=2
    )
    assert made == ([2, 3], [3])


def test_saber_takes_back_what_lost_most_since_the_step_before() -> None:
    """Of two commits one goes back: 0 fell from 0.7 to 0.65, and 1 from 0.8 to 0.6."""
    rule = Saber()
    assert revised(rule, [0.7, 0.8, 0.6, 0.55]) == (
        [0, 1],
        [],
    )  # the two best, and nothing was there to fall
    assert revised(rule, [0.65, 0.6, 0.75, 0.7], {0: 0.7, 1: 0.8}) == ([2, 3], [1])
    rule = Saber()
    assert revised(rule, [0.9, 0.8, 0.6, 0.55]) == ([0, 1], [])
    assert revised(rule, [0.65, 0.6, 0.75, 0.7], {0: 0.9, 1: 0.8}) == (
        [2, 3],
        [0],
    )  # the surer one, for it fell more


def test_saber_takes_back_one_of_eight_commits() -> None:
    rule, falls = Saber(), [0.6, 0.8, 0.7]
    revised(rule, [0.9] * 3 + [0.6] * 9)
    made = revised(
        rule, falls + [0.95] * 9, dict.fromkeys(range(3), 0.9)
    )  # all nine are above the mean of 0.9
    assert made == (list(range(3, 12)), [0, 2])
    rule = Saber()
    revised(rule, [0.9] * 3 + [0.6] * 8)
    assert revised(rule, falls + [0.95] * 8, dict.fromkeys(range(3), 0.9)) == (
        list(range(3, 11)),
        [0],
    )
    assert revised(rule, [0.5] * 3 + [0.9], dict.fromkeys(range(3), 0.9)) == (
        [3],
        [],
    )  # one is committed, none goes
    assert revised(Saber(least=4), falls + [0.7] * 5, dict.fromkeys(range(3), 0.9)) == (
        [3, 4, 5, 6],
        [0, 2],
    )


def test_saber_takes_more_only_above_the_mean_so_far() -> None:
    assert revised(Saber(), [0.9, 0.8, 0.7, 0.6])[0] == [0, 1]
    assert revised(Saber(), [0.6, 0.9, 0.8, 0.7, 0.65], {0: 0.68})[0] == [1, 2, 3]
    assert revised(Saber(), [0.6, 0.9, 0.8, 0.5, 0.5], {0: 0.5})[0] == [
        1,
        2,
    ]  # the mean itself is not above it


def test_wino_takes_back_what_the_others_do_not_bear_out() -> None:
    """Fewer than it commits, the least likely first, and only what is below 0.9."""
    decided = dict.fromkeys(range(3), 0.7)
    assert revised(WideInNarrowOut(), [0.95, 0.5, 0.3, 0.8, 0.8, 0.8, 0.8], decided) == (
        [3, 4, 5, 6],
        [1, 2],
    )
    assert revised(WideInNarrowOut(), [0.8, 0.5, 0.3, 0.8, 0.8, 0.8], decided) == (
        [3, 4, 5],
        [1, 2],
    )
    assert revised(WideInNarrowOut(), [0.8, 0.3, 0.5, 0.8, 0.8], decided) == ([3, 4], [1])
    assert revised(WideInNarrowOut(), [0.8, 0.3, 0.5, 0.8], decided) == ([3], [])


def test_wino_takes_a_share_of_what_it_is_sure_of() -> None:
    assert revised(WideInNarrowOut(), [0.7] * 4) == ([0, 1, 2, 3], [])  # five are always allowed
    assert revised(WideInNarrowOut(), [0.7] * 8) == ([0, 1, 2, 3, 4], [])
    assert revised(WideInNarrowOut(), [0.7] * 10) == ([0, 1, 2, 3, 4, 5, 6], [])
    assert revised(WideInNarrowOut(), [0.7] * 40) == (list(range(20)), [])
    assert revised(WideInNarrowOut(), [0.55, 0.7, 0.59, 0.61]) == ([1, 3], [])
    assert revised(WideInNarrowOut(take=0.5), [0.5, 0.5]) == (
        [0],
        [],
    )  # the best one, and none at the bound itself


def test_bounds_are_inclusive_to_the_last_digit() -> None:
    votes = sure(0.95, 0.8, 0.7)
    bounds = votes.confidence_AG[0].tolist()
    assert chosen(Threshold(bounds[1]), votes) == [0, 1]
    assert chosen(LocalDeterminism(bounds[0], bounds[1]), votes) == [0, 1]
    assert chosen(Factor(0.5), sure(0.6, 0.7)) == [
        1
    ]  # neither has the 0.75 that one alone should have
    certain = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf], [0.0, 0.0], [0.0, 0.0]])
    assert chosen(EntropyBounded(0.0), votes_of(certain)) == [
        0,
        1,
        2,
    ]  # those before the third have no entropy


def test_rules_have_their_published_numbers() -> None:
    assert chosen(
        make_rule(DecodingConfig(rule="local")), sure(0.91, 0.74, 0.76, 0.8, 0.76, 0.76)
    ) == [0, 2, 3, 4]
    assert chosen(make_rule(DecodingConfig(rule="local")), sure(0.89, 0.8)) == [0]
    assert len(chosen(make_rule(DecodingConfig(rule="first_hitting")), sure(0.9, 0.9, 0.9))) == 1
    for name, wanted in (
        ("running_confidence", RunningConfidence()),
        ("wino", WideInNarrowOut(0.6, 0.9, 0.7, 5, 20)),
    ):
        assert make_rule(DecodingConfig(rule=name)) == wanted  # type: ignore[arg-type]


def test_dilated_counts_from_the_start_of_its_block() -> None:
    eligible = [False] * 5 + [True] * 5
    assert chosen(
        RULES["dilated"](DecodingConfig()),
        votes_of(torch.zeros(10, VOCAB), eligible, block_length=5),
    ) == [5, 7, 9]


def test_confidence_is_that_of_what_would_be_committed() -> None:
    votes = dataclasses.replace(sure(0.9, 0.2), ids_N=torch.tensor([1, 1]))
    torch.testing.assert_close(votes.confidence_AG, torch.tensor([[0.1, 0.8]]))


def test_schedules_have_the_published_numbers() -> None:
    """LaViDa's own, up to where its rule that no step is empty sets in; MaskGIT's by hand."""
    assert shifted_shares(128, 64)[:32] == [
        6,
        6,
        5,
        5,
        4,
        5,
        4,
        4,
        4,
        3,
        4,
        3,
        3,
        3,
        3,
        2,
        3,
        3,
        2,
        2,
        3,
        2,
        2,
        2,
        2,
        2,
        1,
        2,
        2,
        1,
        2,
        1,
    ]
    assert shifted_shares(64, 32, 0.33)[:15] == [6, 5, 5, 4, 4, 3, 3, 3, 2, 3, 2, 2, 2, 1, 2]
    assert shifted_shares(32, 16, 3) == [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4, 4, 5]
    assert shifted_shares(50, 20, 2) == [2, 1, 2, 1, 2, 1, 2, 2, 2, 2, 2, 3, 3, 2, 3, 4, 3, 4, 5, 4]
    assert cosine_shares(100, 4) == [8, 22, 32, 38]  # 92.4, 70.7 and 38.3 per cent are left
