"""The objectives equal the published one, and the forward process hides what it should."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_outputs import ModelOutput

from mmdiff.decoding.schedule import masking_rate
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.training.forward_process import IGNORE, draw_times, mask_tokens
from mmdiff.training.losses import (
    WEIGHTINGS,
    fact_loss,
    masked_cross_entropy,
    mean_weights,
    pretraining_weights,
    region_text_loss,
    response_weights,
)
from mmdiff.training.objectives import denoising_loss


def test_loss_and_gradients_equal_the_published_llada_v(
    reference: Path, llada_v: MMDiffModel
) -> None:
    outputs = load_file(reference / "llada-v" / "outputs.safetensors")
    given = {name.removeprefix("train."): value for name, value in outputs.items()}
    model = copy.deepcopy(llada_v)
    labels = given["labels"]
    t = given["t"][:, None].expand(labels.shape)
    noisy = mask_tokens(given["input_ids"], labels, t, given["u"], mask_id=500)
    weights = response_weights(noisy, labels, torch.zeros_like(labels))
    logits = model(noisy.ids_BT, select=noisy.masked_BT).logits
    loss = masked_cross_entropy(logits, labels[noisy.masked_BT], weights[noisy.masked_BT])
    loss.backward()
    torch.testing.assert_close(loss[None], given["loss"], rtol=1e-4, atol=1e-5)
    q_proj = model.backbone.layers[0].self_attn.q_proj
    torch.testing.assert_close(
        model.backbone.lm_head.weight.grad, given["grad_lm_head"], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(q_proj.weight.grad, given["grad_q0"], rtol=1e-4, atol=1e-5)


def test_prompts_are_never_hidden_and_rates_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 9, (50, 400), generator=generator)
    labels[:, :100] = IGNORE
    t, u = torch.full((50, 400), 0.3), torch.rand(50, 400, generator=generator)
    noisy = mask_tokens(labels.clamp(min=0), labels, t, u, mask_id=99)
    assert not noisy.masked_BT[:, :100].any()
    assert (noisy.ids_BT[noisy.masked_BT] == 99).all()
    assert torch.equal(noisy.ids_BT[~noisy.masked_BT], labels.clamp(min=0)[~noisy.masked_BT])
    rate = masking_rate(torch.tensor(0.3)).item()
    assert noisy.masked_BT[:, 100:].float().mean().item() == pytest.approx(rate, abs=0.02)


def test_times_are_uniform_and_evenly_spread() -> None:
    times = draw_times(8, 16, torch.Generator().manual_seed(3))
    assert times.shape == (8, 16)
    assert torch.equal((times.flatten() * 128).floor().sort().values, torch.arange(128.0))


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_weightings_by_the_slow_sum(name: str) -> None:
    """Each weighting against its formula, written as loops over answers and positions."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 5, (3, 12), generator=generator)
    branches = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]] * 3)
    labels[branches == 0] = IGNORE
    labels[:, 6] = IGNORE
    t = torch.rand(3, 3, generator=generator).gather(1, branches)
    noisy = mask_tokens(
        labels.clamp(min=0), labels, t, torch.rand(3, 12, generator=generator), mask_id=9
    )
    losses = torch.rand(3, 12, generator=generator)
    got = (WEIGHTINGS[name](noisy, labels, branches) * losses).sum()
    want, hidden = 0.0, int(noisy.masked_BT.sum())
    for b in range(3):
        for i in range(12):
            if noisy.masked_BT[b, i]:
                length = int(((branches[b] == branches[b, i]) & (labels[b] != IGNORE)).sum())
                weight = {
                    "pretraining": 1 / noisy.rate_BT[b, i] / 36,
                    "response": 1 / noisy.rate_BT[b, i] / length / 6,
                    "mean": 1 / hidden,
                    "late_mean": 1 / hidden,
                    "one_step": 1 / hidden,
                }[name]
                want += float(weight * losses[b, i])
    assert got.item() == pytest.approx(want, rel=1e-5)


def test_weightings_have_names() -> None:
    weights = {
        "pretraining": pretraining_weights,
        "response": response_weights,
        "mean": mean_weights,
        "late_mean": mean_weights,
        "one_step": mean_weights,
    }
    assert {name: weighting.weights for name, weighting in WEIGHTINGS.items()} == weights
    assert [name for name, weighting in WEIGHTINGS.items() if weighting.bound] == [
        "pretraining",
        "response",
    ]


class Table(torch.nn.Module):
    """Each hidden token's probabilities, one table for each way to see the others; no joint
    distribution fits them."""

    def __init__(self, length: int, vocabulary: int) -> None:
        super().__init__()
        self.logits = 2 * torch.randn(
            (vocabulary + 1) ** length,
            length,
            vocabulary,
            generator=torch.Generator().manual_seed(0),
        )
        self.powers = (vocabulary + 1) ** torch.arange(length)

    def forward(self, input_ids: torch.Tensor, select: torch.Tensor, **_: object) -> ModelOutput:
        """The mask is the id behind the vocabulary."""
        return ModelOutput(logits=self.logits[(input_ids * self.powers).sum(1)][select])

    def exact(self, ids: tuple[int, ...]) -> float:
        """The mean negative log-likelihood over all orders, which the bound equals (RADD, arXiv
        2406.03736)."""
        logs, mask = self.logits.log_softmax(-1), self.logits.shape[-1]

        @functools.cache
        def left(seen: tuple[int, ...]) -> float:
            row = logs[int((torch.tensor(seen) * self.powers).sum())]
            hidden = [i for i, token in enumerate(seen) if token == mask]
            costs = [
                -float(row[i, ids[i]]) + left((*seen[:i], ids[i], *seen[i + 1 :])) for i in hidden
            ]
            return sum(costs) / max(1, len(costs))

        return left((mask,) * len(ids))


@pytest.mark.parametrize(
    "name", sorted(name for name, weighting in WEIGHTINGS.items() if weighting.bound)
)
def test_the_bound_is_met(name: str) -> None:
    """By the loss that training takes."""
    table, ids = Table(4, 3), torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])
    batch = {
        "input_ids": ids,
        "labels": ids,
        "importance": torch.ones(2, 4),
        "branch_ids": torch.zeros_like(ids),
    }
    many = {key: value.repeat(512, 1) for key, value in batch.items()}
    loss = denoising_loss(name, mask_id=3)
    values = torch.stack(
        [loss(table, many, torch.Generator().manual_seed(seed))[0] for seed in range(150)]
    )
    wanted = sum(table.exact(tuple(row)) for row in ids.tolist()) / 8
    error = values.std().item() / len(values) ** 0.5
    assert error < 0.015 * wanted and abs(values.mean().item() - wanted) < 3 * error


def test_times_are_those_of_the_weighting() -> None:
    """Uniform for the published objectives: half of all tokens are hidden on average; two thirds of
    the late, and all of those of one step."""
    labels = torch.zeros(200, 20, dtype=torch.long)
    batch = {
        "input_ids": labels,
        "labels": labels,
        "importance": torch.ones(200, 20),
        "branch_ids": labels,
    }
    shares = {}
    for name in WEIGHTINGS:

        class Seeing(torch.nn.Module):
            def forward(
                self, input_ids: torch.Tensor, select: torch.Tensor, **_: object
            ) -> ModelOutput:
                shares[name] = select.float().mean().item()  # noqa: B023
                return ModelOutput(logits=torch.zeros(int(select.sum()), 3))

        denoising_loss(name, mask_id=2)(Seeing(), batch, torch.Generator().manual_seed(0))
    late = shares.pop("late_mean")
    assert shares.pop("one_step") == 1.0
    assert late == pytest.approx(2 / 3, abs=0.02) and list(shares.values()) == pytest.approx(
        [0.5] * 3, abs=0.02
    )


def test_region_text_loss_is_low_for_right_logits_only() -> None:
    truth = torch.tensor([[True, False], [False, True], [False, False]])
    shown = torch.tensor([True, True, False])
    sure = torch.where(truth, 9.0, -9.0)
    good, metrics = region_text_loss(sure, truth, shown)
    bad, _ = region_text_loss(-sure, truth, shown)
    assert good < 0.01 < 5 < bad and metrics == {"recall": 1.0, "specificity": 1.0}


def test_fact_loss_is_the_mean_over_facts_of_the_mean_over_what_is_known() -> None:
    sizes, generator = (3, 2, 4), torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, generator=generator)
    facts = torch.tensor([[0, 1], [IGNORE, 0], [2, 1], [IGNORE, IGNORE]])
    facts = torch.cat((facts, torch.full((4, 1), IGNORE)), dim=1)  # nothing is known of the last
    means, right = [], []
    for part, values in zip(logits.split(sizes, dim=1), facts.T.tolist(), strict=True):
        known = [(row, value) for row, value in zip(part, values, strict=True) if value != IGNORE]
        losses = [-row.log_softmax(0)[value].item() for row, value in known]
        right += [row.argmax().item() == value for row, value in known]
        means += [sum(losses) / len(losses)] if losses else []
    value, share = fact_loss(logits, facts, sizes)
    assert value.item() == pytest.approx(sum(means) / 2) and share == pytest.approx(sum(right) / 5)


def test_fact_loss_of_nothing_is_nothing() -> None:
    value, share = fact_loss(
        torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 2, dtype=torch.long), (3, 2)
    )
    assert value.item() == 0 and share == 0
