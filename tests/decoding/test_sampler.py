"""The sampler equals LLaDA's and Fast-dLLM's token for token, and a mock model shows what each rule
does."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.decoding.canvas import Array, Canvas
from mmdiff.decoding.guidance import Guided
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.decoding.sampler import Sampler, _end_expected, denoise, keep_top_k, sample
from mmdiff.decoding.sequence import plan_quotas
from mmdiff.errors import MMDiffError
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel

CASES = [
    (number, case)
    for number, case in enumerate(
        json.loads(
            (Path(__file__).parents[1] / "reference" / "llada-mha" / "generate.json").read_text()
        )
    )
    if case["kind"] in ("llada", "fast-none")
]
TOKENS = TokenIds(mask=9, eos=8, eot=7, bos=6, pad=8)
VOCAB = 10


@pytest.fixture(scope="module")
def llada(reference: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha"))).eval()
    load_weights(model, CheckpointTensors(reference / "llada-mha"))
    return model


def last(predict, canvas: Canvas, decoding: DecodingConfig, tokens: TokenIds, seeds=None) -> Canvas:  # type: ignore
    return list(denoise(predict, canvas, decoding, tokens, seeds))[-1]


@pytest.mark.parametrize(
    ("number", "case"), CASES, ids=[f"{case['kind']}-{number}" for number, case in CASES]
)
def test_ids_equal_the_published_samplers(llada: MMDiffModel, number: int, case: dict) -> None:  # type: ignore
    decoding = DecodingConfig(**case["params"], stop=False)
    tokens = llada.model_config.tokens
    prompt = torch.tensor(case["prompt"])
    prompted = ModelRunner(llada, prompt)
    predict = (
        Guided(prompted, prompted.unconditional(), decoding.cfg_scale)
        if decoding.cfg_scale
        else prompted
    )
    canvases = list(
        denoise(
            predict, Canvas.blank(len(prompt), decoding.gen_length, tokens.mask), decoding, tokens
        )
    )
    assert torch.cat((prompt, canvases[-1].ids_BG), dim=1).tolist() == case["output"]
    if case["nfe"] is not None:
        assert len(canvases) == case["nfe"]


def test_there_are_18_published_cases() -> None:
    assert len(CASES) == 18


class Mock:
    """Fixed logits per row and position; remembers what it was asked for."""

    def __init__(self, logits_BGV: Tensor) -> None:
        self.logits_BGV, self.asked = logits_BGV, []  # type: ignore[var-annotated]

    def __call__(self, ids_AG: Array, rows: Sequence[int], select_AG: Array) -> Tensor:
        self.asked.append((list(rows), select_AG.copy()))
        return self.logits_BGV[list(rows), : select_AG.shape[1]][torch.from_numpy(select_AG)]


def mock(rows: int, length: int, seed: int = 0) -> Mock:
    return Mock(torch.randn(rows, length, VOCAB, generator=torch.Generator().manual_seed(seed)))


def test_logits_are_asked_for_at_open_positions_of_the_block_only() -> None:
    model = mock(1, 8)
    for _ in denoise(model, Canvas.blank(1, 8, 9), DecodingConfig(8, 4, 8, stop=False), TOKENS):
        pass
    asked = [select.sum().item() for _, select in model.asked]
    assert asked == [4, 3, 2, 1, 4, 3, 2, 1]
    assert all(not select[:, 4:].any() for _, select in model.asked[:4])


def test_commits_are_final_and_carry_confidence_and_step() -> None:
    model = mock(2, 6)
    before = Canvas.blank(2, 6, 9)
    for step, canvas in enumerate(
        denoise(model, before, DecodingConfig(6, 6, 6, stop=False), TOKENS)
    ):
        kept = ~before.open_BG
        assert torch.equal(canvas.ids_BG[kept], before.ids_BG[kept])
        new = before.open_BG & ~canvas.open_BG
        assert (canvas.step_BG[new] == step).all() and new.sum() == 2
        chosen = model.logits_BGV[new].softmax(-1).gather(1, canvas.ids_BG[new][:, None])[:, 0]
        torch.testing.assert_close(canvas.confidence_BG[new], chosen)
        before = canvas
    assert not before.open_BG.any()


def test_the_mask_and_banned_ids_are_never_chosen() -> None:
    model = mock(3, 20)
    model.logits_BGV[..., [9, 2]] += 100
    tokens = dataclasses.replace(TOKENS, never=(2,))
    for temperature in (0.0, 1.0, 5.0):
        decoding = DecodingConfig(20, 20, 5, temperature=temperature, stop=False)
        ids = last(model, Canvas.blank(3, 20, 9), decoding, tokens).ids_BG
        assert not torch.isin(ids, torch.tensor([9, 2])).any()


def test_a_row_stops_when_all_before_its_end_is_decided() -> None:
    model = Mock(torch.zeros(2, 8, VOCAB))
    for position, (token, sure) in enumerate([(1, 4.0), (2, 5.0), (7, 9.0)] + [(3, 2.0)] * 5):
        model.logits_BGV[0, position, token] = sure
        model.logits_BGV[1, position, 3] = sure
    canvases = list(denoise(model, Canvas.blank(2, 8, 9), DecodingConfig(8, 8, 8), TOKENS))
    assert canvases[-1].token_ids((7, 8)) == [[1, 2], [3] * 8]
    assert (
        canvases[-1].step_BG[0].max() == 2
    )  # the end first, then what stands before it, and no more
    assert [len(rows) for rows, _ in model.asked] == [2] * 3 + [1] * 5


def test_without_stop_every_position_is_filled() -> None:
    model = Mock(torch.zeros(1, 8, VOCAB))
    model.logits_BGV[..., 8] = 5
    canvas = last(model, Canvas.blank(1, 8, 9), DecodingConfig(8, 8, 8, stop=False), TOKENS)
    assert not canvas.open_BG.any()


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("order", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_neighbours(
    threshold: float | None, order: str, temperature: float
) -> None:
    logits = mock(5, 12, seed=3).logits_BGV * 3
    decoding = DecodingConfig(12, 5, 7, order=order, threshold=threshold, temperature=temperature)  # type: ignore
    together = last(Mock(logits), Canvas.blank(5, 12, 9), decoding, TOKENS, seeds=range(50, 55))
    for row in range(5):
        alone = last(
            Mock(logits[row : row + 1]), Canvas.blank(1, 12, 9), decoding, TOKENS, seeds=[50 + row]
        )
        assert torch.equal(together.ids_BG[row], alone.ids_BG[0])
        assert torch.equal(together.step_BG[row], alone.step_BG[0])


def test_seeds_repeat_and_differ() -> None:
    logits = torch.zeros(1, 30, VOCAB)
    decoding = DecodingConfig(30, 30, 3, temperature=1.0, stop=False)
    ids = [
        last(Mock(logits), Canvas.blank(1, 30, 9), decoding, TOKENS, [seed]).ids_BG
        for seed in (1, 1, 2)
    ]
    assert torch.equal(ids[0], ids[1]) and not torch.equal(ids[0], ids[2])


def test_infilling_leaves_fixed_positions_alone() -> None:
    ids = torch.tensor([[1, 9, 2, 9, 9, 3]])
    canvas = last(mock(1, 6), Canvas.of(ids, 9), DecodingConfig(6, 2, 6, stop=False), TOKENS)
    assert canvas.ids_BG[0, [0, 2, 5]].tolist() == [1, 2, 3] and not canvas.open_BG.any()
    assert canvas.step_BG[0, [0, 2, 5]].tolist() == [-1, -1, -1]


def test_temperature_samples_the_softmax() -> None:
    """Frequencies of 40,000 draws lie within 5 standard errors; a false alarm is 1 in a million."""
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0])
    for temperature in (0.5, 1.0, 2.0):
        draws = [(torch.Generator().manual_seed(7), 40_000)]
        ids = sample(logits.expand(40_000, 4), 3, temperature, draws)
        wanted = (logits[:3] / temperature).softmax(0)
        got = torch.bincount(ids, minlength=4)[:3] / 40_000
        assert ((got - wanted).abs() < 5 * (wanted * (1 - wanted) / 40_000).sqrt()).all()


def test_noise_does_not_saturate() -> None:
    """A token of probability e-20 is drawn at high temperature about as often as it should be, not
    never."""
    logits = torch.tensor([[20.0, 0.0, -99.0]]).expand(20_000, 3)
    ids = sample(logits, 2, 10.0, [(torch.Generator().manual_seed(0), 20_000)])
    assert (ids == 1).float().mean().item() == pytest.approx(0.119, abs=0.015)


@pytest.mark.parametrize(
    ("length", "block", "steps"), [(16, 16, 16), (30, 7, 11), (5, 8, 3), (9, 2, 40), (64, 8, 8)]
)
def test_quotas_fill_the_canvas_whatever_divides_what(length: int, block: int, steps: int) -> None:
    decoding = DecodingConfig(length, block, steps, stop=False)
    quotas = plan_quotas(np.ones(length, dtype=bool), decoding)
    assert sum(quotas) == length and len(quotas) <= max(steps, 1)
    canvas = last(mock(2, length), Canvas.blank(2, length, 9), decoding, TOKENS)
    assert not canvas.open_BG.any() and canvas.step_BG.max() + 1 == len(quotas)


def test_fewer_steps_than_blocks_is_refused() -> None:
    with pytest.raises(MMDiffError, match="steps=3 is fewer than the 4 blocks"):
        last(mock(1, 16), Canvas.blank(1, 16, 9), DecodingConfig(16, 4, 3), TOKENS)


def test_seeds_must_fit_the_rows() -> None:
    with pytest.raises(MMDiffError, match="1 seeds for 2 rows"):
        last(mock(2, 4), Canvas.blank(2, 4, 9), DecodingConfig(4, 4, 4), TOKENS, seeds=[1])


def test_guidance_of_scale_0_is_the_model_itself() -> None:
    one, other = still(1, 6, 1), still(1, 6, 2)
    ids, select = np.zeros((1, 6), dtype=np.int64), np.ones((1, 6), dtype=bool)
    plain, without = (each(ids, each.prompts, select) for each in (one, other))
    for scale, wanted in ((0.0, plain), (1.0, 2 * plain - without)):
        guided = Guided(one, other, scale)
        torch.testing.assert_close(guided(ids, guided.prompts, select), wanted)


class Fixed:
    """A prompt with fixed logits at each position, and others for tokens that are hidden."""

    def __init__(self, logits_GV: Tensor, hidden_GV: Tensor) -> None:
        self.logits_GV, self.hidden_GV = logits_GV, hidden_GV
        self.passes = self.length = 0


class Still:
    """A runner of prompts with fixed logits."""

    def __init__(self, logits_BGV: Tensor, hidden_BGV: Tensor | None = None) -> None:
        hidden_BGV = logits_BGV if hidden_BGV is None else hidden_BGV
        self.prompts = [Fixed(*pair) for pair in zip(logits_BGV, hidden_BGV, strict=True)]
        self.hidden: list[list[int]] = []  # positions of the first row that were asked for so

    def __call__(
        self,
        ids_AG: Array,
        prompts: Sequence[Fixed],
        select_AG: Array,
        hidden_AG: Array | None = None,
    ) -> Tensor:
        made = []
        for each, select_G in zip(prompts, select_AG, strict=True):
            each.passes += 1
            made.append(each.logits_GV[: len(select_G)][torch.from_numpy(select_G)])
        for each, hidden_G in zip(prompts, () if hidden_AG is None else hidden_AG, strict=False):
            made.append(each.hidden_GV[: len(hidden_G)][torch.from_numpy(hidden_G)])
        if hidden_AG is not None:
            self.hidden.append(hidden_AG[0].nonzero()[0].tolist())
        return torch.cat(made)


def still(rows: int, length: int, seed: int = 0) -> Still:
    return Still(mock(rows, length, seed).logits_BGV)


def ending(length: int, first: int, chance: float) -> Still:
    """One row that expects its end from a position on, with this probability; what is left is
    shared evenly."""
    logits_1GV = torch.zeros(1, length, VOCAB)
    logits_1GV[:, :, 1] = 5.0
    logits_1GV[:, first:] = torch.tensor((1 - chance) / (VOCAB - 1)).log()
    logits_1GV[:, first:, 8] = torch.tensor(chance).log()
    return Still(logits_1GV)


class Whole:
    """A constraint that allows everything, decides a row as a whole, and forces what it is told to
    force."""

    def __init__(self, forced: dict[int, int] | None = None) -> None:
        self.seeds: list[int] = []
        self.by_force = forced or {}

    def decide(
        self,
        ids_G: Tensor,
        places: Sequence[int],
        logits_NV: Tensor,
        temperature: float,
        draws: torch.Generator,
    ) -> Tensor:
        self.seeds.append(draws.initial_seed())
        return logits_NV.index_fill(1, torch.tensor([9]), -torch.inf).argmax(-1)

    def expand(self, here_G: Tensor) -> Tensor:
        return torch.ones_like(here_G)

    def forced(self, ids_G: Tensor) -> dict[int, int]:
        return {place: token for place, token in self.by_force.items() if ids_G[place] == 9}


def test_the_end_is_expected_as_far_as_it_is_likeliest_from_the_back() -> None:
    probs_NV = torch.tensor([[0.05, 0.9, 0.05], [0.5, 0.4, 0.1], [0.1, 0.7, 0.2], [0.1, 0.1, 0.8]])
    expected = float(_end_expected(probs_NV.log(), [1, 2]))
    assert expected == pytest.approx((0.9 + 0.9) / 4)


@pytest.mark.parametrize(
    ("first", "chance", "length"),
    [
        (0, 0.5, 40),  # expected well enough, as 0.5 and the other end token
        (0, 0.4, 48),  # likeliest everywhere, and not likely enough
        (26, 1.0, 48),  # in 14 of the last 32 positions
        (22, 1.0, 40),  # in 18 of them
    ],
)
def test_a_canvas_grows_while_its_last_32_positions_do_not_expect_the_end(
    first: int, chance: float, length: int
) -> None:
    canvas = Canvas.ragged([40], 48, TOKENS.mask)
    grown = Sampler(
        ending(48, first, chance), canvas, DecodingConfig(48, 48, 48), TOKENS, limits=[48]
    ).step()
    assert grown.length_B.tolist() == [length]


def test_growth_ends_at_the_limit_and_the_schedule_begins_after_it() -> None:
    """One row grows twice, from 5 to 18 positions, the other not at all; the canvas is wider than
    either may be."""
    canvas = Canvas.ragged([5, 6], 30, TOKENS.mask)
    decoding = DecodingConfig(30, 30, 6, schedule="shifted", stop=False)
    batch = Sampler(still(2, 30), canvas, decoding, TOKENS, limits=[18, 6])
    commits: list[list[int]] = []
    while batch.working:
        assert len(commits) < 9
        before = batch.canvas.open_BG & (batch.canvas.step_BG < 0)
        after = batch.step().open_BG[:, : before.shape[1]]  # it may have become wider
        commits.append((before & ~after).sum(1).tolist())
    assert batch.canvas.length_B.tolist() == [18, 6]
    first, other = [[made[row] for made in commits] for row in (0, 1)]
    assert first == [0, 0, *plan_quotas(np.ones(18, dtype=bool), decoding)]
    quotas = plan_quotas(np.ones(6, dtype=bool), decoding)
    assert other == quotas + [0] * (len(commits) - len(quotas))


@pytest.mark.parametrize("rule", ["quota", "running_confidence", "saber", "wino"])
def test_a_row_in_a_hurry_is_decided_in_one_step(rule: str) -> None:
    """Also one that was to grow, over all its blocks, and with a rule that takes commits back."""
    model = still(3, 12)
    for each in model.prompts:
        each.hidden_GV = torch.zeros_like(each.logits_GV)  # bears nothing out
    decoding = DecodingConfig(12, 4, 12, rule=rule, stop=False)  # type: ignore[arg-type]
    batch = Sampler(model, Canvas.ragged([12, 12, 8], 12, 9), decoding, TOKENS, limits=[12, 12, 12])
    for hurried in ([1, 2], [0]):
        batch.step(expired=hurried)
        assert not batch.canvas.open_BG[hurried].any()
    batch = Sampler(model, Canvas.blank(3, 12, 9), decoding, TOKENS)
    batch.step()
    assert batch.canvas.open_BG[:, 4:].all() and not batch.step(expired=[1]).open_BG[1].any()


def test_what_a_constraint_adds_stays_within_the_block() -> None:
    canvas = Canvas.blank(1, 8, 9)
    batch = Sampler(still(1, 8), canvas, DecodingConfig(8, 4, 8), TOKENS, constraints=[Whole()])
    assert batch.step().open_BG.tolist() == [[False] * 4 + [True] * 4]
    assert (
        not batch.step().open_BG.any()
        and not torch.isin(batch.canvas.ids_BG, torch.tensor([9])).any()
    )


def test_a_constrained_row_ends_when_nothing_is_open_and_a_free_one_at_its_end_token() -> None:
    logits_BGV = torch.zeros(2, 8, VOCAB)
    logits_BGV[..., 8] = 5.0  # every position is an end
    batch = Sampler(
        Still(logits_BGV),
        Canvas.blank(2, 8, 9),
        DecodingConfig(8, 4, 8),
        TOKENS,
        constraints=[Whole(), None],
    )
    batch.step()
    assert batch.pop_finished().names == [1]
    batch.step()
    assert batch.pop_finished().names == [0]


def test_constrained_rows_draw_with_their_own_seeds_and_forced_tokens_have_their_step() -> None:
    constraints = [Whole({7: 3}), Whole()]
    batch = Sampler(
        still(2, 8),
        Canvas.blank(2, 8, 9),
        DecodingConfig(8, 4, 8, temperature=1.0),
        TOKENS,
        seeds=[5, 6],
        constraints=constraints,
    )
    batch.step()
    assert [each.seeds for each in constraints] == [[5], [6]]
    assert batch.canvas.ids_BG[0, 7] == 3 and batch.canvas.step_BG[0].tolist() == [0] * 4 + [
        -1
    ] * 3 + [0]
    assert batch.canvas.confidence_BG[0, 7] == 1.0
    batch.step()
    assert batch.canvas.step_BG[0].tolist() == [0] * 4 + [1] * 3 + [0]


def test_rows_that_join_keep_their_names_seeds_and_passes() -> None:
    """Two and then one join two others; each answers with its own draws, and tells how often it was
    computed."""
    logits_BGV = mock(5, 6, seed=4).logits_BGV
    decoding = DecodingConfig(6, 6, 6, temperature=1.0, stop=False)

    def batch(*rows: int) -> Sampler:
        return Sampler(
            Still(logits_BGV[list(rows)]),
            Canvas.blank(len(rows), 6, 9),
            decoding,
            TOKENS,
            seeds=[70 + row for row in rows],
        )

    running = batch(0, 1)
    running.step()
    running.step()
    gone = running.pop_finished(abort=[1])  # after two steps of six
    assert gone.names == [1] and gone.passes == [2] and gone.canvas.open_BG.sum() == 4
    assert running.add(batch(2, 3)) == [2, 3]
    running.step()
    assert running.add(batch(4)) == [4]
    assert running.pop_finished(abort=[3]).passes == [1]
    found: dict[int, list[int]] = {}
    while running.working:
        running.step()
        left = running.pop_finished()
        assert left.passes == [6] * len(left.names)
        found.update(zip(left.names, left.canvas.ids_BG.tolist(), strict=True))
    for row in (0, 2, 4):
        assert (
            found[row]
            == last(Still(logits_BGV[[row]]), Canvas.blank(1, 6, 9), decoding, TOKENS, [70 + row])
            .ids_BG[0]
            .tolist()
        )
    assert sorted(found) == [0, 2, 4]


def test_hidden_tokens_are_looked_back_at_and_fixed_ones_are_not() -> None:
    """The second position is not borne out, so it is open again once another was committed beside
    it."""
    logits_1GV, hidden_1GV = torch.zeros(1, 6, VOCAB), torch.zeros(1, 6, VOCAB)
    for place, sure in enumerate([0.0, 9.0, 9.0, 1.0, 1.0, 1.0]):
        logits_1GV[0, place, 3] = sure
    hidden_1GV[0, [0, 2, 3, 4, 5], 3] = 20.0
    model = Still(logits_1GV, hidden_1GV)
    canvas = Canvas.of(torch.tensor([[2, 9, 9, 9, 9, 9]]), 9)
    batch = Sampler(model, canvas, DecodingConfig(6, 6, 6, rule="wino", stop=False), TOKENS)
    assert batch.step().ids_BG.tolist() == [[2, 3, 3, 9, 9, 9]]
    logits_1GV[0, 3:5, 3] = 9.0
    assert batch.step().ids_BG.tolist() == [[2, 9, 3, 3, 3, 9]]
    assert model.hidden == [[1, 2]]
    torch.testing.assert_close(batch.canvas.confidence_BG[0, 3], logits_1GV[0, 3].softmax(-1)[3])


def test_rows_have_their_number_as_seed_by_default() -> None:
    decoding = DecodingConfig(20, 20, 2, temperature=1.0, stop=False)
    made = last(Still(torch.zeros(2, 20, VOCAB)), Canvas.blank(2, 20, 9), decoding, TOKENS)
    named = last(Still(torch.zeros(2, 20, VOCAB)), Canvas.blank(2, 20, 9), decoding, TOKENS, [0, 1])
    assert torch.equal(made.ids_BG, named.ids_BG) and not torch.equal(
        made.ids_BG[0], made.ids_BG[1]
    )


def test_a_step_for_each_block_is_enough_and_other_rules_need_none_for_each() -> None:
    for decoding in (
        DecodingConfig(16, 4, 4, stop=False),
        DecodingConfig(16, 4, 2, threshold=0.9, stop=False),
    ):
        assert not last(still(1, 16), Canvas.blank(1, 16, 9), decoding, TOKENS).open_BG.any()


def test_noise_is_minus_the_logarithm_of_an_exponential_draw() -> None:
    logits = torch.randn(500, VOCAB, generator=torch.Generator().manual_seed(1))
    draws = torch.empty(500, VOCAB, dtype=torch.float64).exponential_(
        generator=torch.Generator().manual_seed(2)
    )
    wanted = (logits.double() - 0.7 * draws.log())[:, :9].argmax(-1)
    assert torch.equal(sample(logits, 9, 0.7, [(torch.Generator().manual_seed(2), 500)]), wanted)


def test_ties_with_the_last_of_the_likeliest_stay() -> None:
    kept = keep_top_k(torch.tensor([[1.0, 3, 2, 2], [4, 3, 2, 1]]), 2)
    assert kept.isinf().tolist() == [[True, False, False, False], [False, False, True, True]]
    assert not keep_top_k(torch.zeros(1, 3), 50).isinf().any()
