"""LLaDA2's rules by small cases: quotas of whole blocks, replaced tokens, and when a block is
left."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.decoding.canvas import Array, Canvas
from mmdiff.decoding.commit_rules import EditingRule, RemaskingRule, make_rule
from mmdiff.decoding.sampler import Sampler
from mmdiff.structured.extraction import settings_for

TOKENS = TokenIds(mask=9, eos=8, eot=7, bos=6, pad=8)
VOCAB = 10


class Prompted:
    """A prompt of some positions."""

    def __init__(self, length: int) -> None:
        self.length, self.passes = length, 0


class Script:
    """Logits (G, V) for each step, the last ones for all further ones."""

    def __init__(self, steps: Sequence[Tensor], prompts: Sequence[int]) -> None:
        self.steps, self.prompts = steps, [Prompted(each) for each in prompts]
        self.asked = list[list[int]]()

    def __call__(
        self, ids_AG: Array, prompts: Sequence[Any], select_AG: Array, hidden: Any = None, /
    ) -> Tensor:
        logits_GV = self.steps[min(len(self.asked), len(self.steps) - 1)]
        self.asked.append(select_AG[0].nonzero()[0].tolist())
        return torch.cat([logits_GV[torch.from_numpy(select_G)] for select_G in select_AG])


def sure(tokens: Sequence[int], chances: Sequence[float]) -> Tensor:
    """One token of each position with its chance, the others share the rest."""
    probs = torch.stack([torch.full((VOCAB,), (1 - each) / (VOCAB - 1)) for each in chances])
    for place, (token, chance) in enumerate(zip(tokens, chances, strict=True)):
        probs[place, token] = chance
    return probs.log()


def sampler(script: Script, length: int, **settings: Any) -> Sampler:
    given = {"gen_length": length, "block_length": 4, "steps": length, "stop": False}
    decoding = DecodingConfig(**(given | {"block_origin": "sequence"} | settings))
    return Sampler(script, Canvas.blank(1, length, TOKENS.mask), decoding, TOKENS)


def run(one: Sampler) -> list[int]:
    while one.working:
        one.step()
    return one.canvas.ids_BG[0].tolist()


def test_the_rules_are_told_apart() -> None:
    editing = make_rule(DecodingConfig(rule="editing"))
    assert isinstance(editing, EditingRule) and not isinstance(editing, RemaskingRule)
    assert not isinstance(make_rule(DecodingConfig(rule="wino")), EditingRule)


def test_the_first_block_holds_what_the_prompt_left_of_it() -> None:
    script = Script([sure([1] * 6, [0.99] * 6)], [6])
    run(sampler(script, 6, rule="threshold_or_quota"))
    assert script.asked == [[0, 1], [2, 3, 4, 5]]


def test_quotas_are_those_of_a_whole_block() -> None:
    """Two steps for a block of four: two each, also where the prompt holds one position."""
    script = Script([sure([1] * 7, [0.3, 0.5, 0.4, 0.3, 0.6, 0.5, 0.4])], [1])
    run(sampler(script, 7, rule="threshold_or_quota", steps=4))
    assert script.asked == [[0, 1, 2], [0], [3, 4, 5, 6], [3, 6]]


def test_fewer_above_the_threshold_than_the_quota_are_not_enough() -> None:
    script = Script([sure([1] * 4, [0.96, 0.5, 0.4, 0.3])], [4])
    run(sampler(script, 4, rule="threshold_or_quota", steps=2))
    assert script.asked == [[0, 1, 2, 3], [2, 3]]


def test_more_above_the_threshold_than_the_quota_are_all_committed() -> None:
    script = Script([sure([1] * 4, [0.96, 0.97, 0.98, 0.3])], [4])
    run(sampler(script, 4, rule="threshold_or_quota", steps=4))
    assert script.asked == [[0, 1, 2, 3], [3]]


def test_a_decided_token_is_replaced_and_the_block_left_when_nothing_changes() -> None:
    first, second = sure([1] * 4, [0.99] * 4), sure([1, 2, 1, 1], [0.99] * 4)
    script = Script([first, second], [4])
    one = sampler(script, 4, rule="editing")
    assert run(one) == [1, 2, 1, 1]
    assert one.canvas.step_BG.tolist() == [[0, 1, 0, 0]]
    assert script.asked == [[0, 1, 2, 3]] * 3  # committed, replaced, and nothing to replace


def test_what_is_not_sure_enough_is_not_replaced() -> None:
    script = Script([sure([1] * 4, [0.99] * 4), sure([2] * 4, [0.85] * 4)], [4])
    assert run(sampler(script, 4, rule="editing")) == [1] * 4 and len(script.asked) == 2


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_block_that_goes_on_changing_is_left_in_the_end(most: int) -> None:
    there, back = sure([1] * 4, [0.99] * 4), sure([2] * 4, [0.99] * 4)
    script = Script([there, back, there, back, there, back], [4])
    run(sampler(script, 4, rule="editing", max_post_steps=most))
    assert len(script.asked) == 1 + most


def test_the_mask_replaces_nothing() -> None:
    script = Script([sure([1] * 4, [0.99] * 4), sure([9] * 4, [0.99] * 4)], [4])
    assert run(sampler(script, 4, rule="editing")) == [1] * 4


def test_past_its_deadline_a_sequence_is_not_held() -> None:
    script = Script([sure([1] * 8, [0.5] * 8)], [4])
    one = sampler(script, 8, rule="editing")
    one.step(expired=[0])
    assert not one.working and one.canvas.ids_BG.tolist() == [[1] * 8]


def test_a_structured_answer_is_never_edited() -> None:
    scaffolds: Any = [SimpleNamespace(budget=8, bounded=False)]
    settings = settings_for(scaffolds, DecodingConfig(rule="editing", threshold=0.8))
    assert (settings.rule, settings.threshold) == ("threshold_or_quota", 0.8)
