"""The sampler equals LLaDA's and Fast-dLLM's token for token, and a mock model shows what each rule does."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmdiff.canvas import Canvas
from mmdiff.checkpoint import Weights, config_of, load_weights
from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.errors import MMDiffError
from mmdiff.guidance import Guided
from mmdiff.model import MMDiffConfig, MMDiffModel
from mmdiff.prompted import Prompted
from mmdiff.sampler import denoise, plan_quotas, sample

CASES = [
    (number, case)
    for number, case in enumerate(
        json.loads((Path(__file__).parent / "reference" / "llada-mha" / "generate.json").read_text())
    )
    if case["kind"] in ("llada", "fast-none")
]
TOKENS = TokenIds(mask=9, eos=8, eot=7, bos=6, pad=8)
VOCAB = 10


@pytest.fixture(scope="module")
def llada(reference: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha"))).eval()
    load_weights(model, Weights(reference / "llada-mha"))
    return model


def last(predict, canvas: Canvas, decoding: DecodingConfig, tokens: TokenIds, seeds=None) -> Canvas:  # type: ignore
    return list(denoise(predict, canvas, decoding, tokens, seeds))[-1]


@pytest.mark.parametrize(("number", "case"), CASES, ids=[f"{case['kind']}-{number}" for number, case in CASES])
def test_ids_equal_the_published_samplers(llada: MMDiffModel, number: int, case: dict) -> None:  # type: ignore
    decoding = DecodingConfig(**case["params"], stop=False)
    tokens = llada.model_config.tokens
    prompt = torch.tensor(case["prompt"])
    prompted = Prompted(llada, prompt)
    predict = Guided(prompted, prompted.unconditional(), decoding.cfg_scale) if decoding.cfg_scale else prompted
    canvases = list(denoise(predict, Canvas.blank(len(prompt), decoding.gen_length, tokens.mask), decoding, tokens))
    assert torch.cat((prompt, canvases[-1].ids_BG), dim=1).tolist() == case["output"]
    if case["nfe"] is not None:
        assert len(canvases) == case["nfe"]


def test_there_are_18_published_cases() -> None:
    assert len(CASES) == 18


class Mock:
    """Fixed logits per row and position; remembers what it was asked for."""

    def __init__(self, logits_BGV: Tensor) -> None:
        self.logits_BGV, self.asked = logits_BGV, []  # type: ignore[var-annotated]

    def __call__(self, ids_AG: Tensor, rows_A: Tensor, select_AG: Tensor) -> Tensor:
        self.asked.append((rows_A.tolist(), select_AG.clone()))
        return self.logits_BGV[rows_A][select_AG]


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
    for step, canvas in enumerate(denoise(model, before, DecodingConfig(6, 6, 6, stop=False), TOKENS)):
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
    assert canvases[-1].answers((7, 8)) == [[1, 2], [3] * 8]
    assert canvases[-1].step_BG[0].max() == 2  # the end first, then what stands before it, and no more
    assert [len(rows) for rows, _ in model.asked] == [2] * 3 + [1] * 5


def test_without_stop_every_position_is_filled() -> None:
    model = Mock(torch.zeros(1, 8, VOCAB))
    model.logits_BGV[..., 8] = 5
    canvas = last(model, Canvas.blank(1, 8, 9), DecodingConfig(8, 8, 8, stop=False), TOKENS)
    assert not canvas.open_BG.any()


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize("order", ["low_confidence", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_depend_on_its_neighbours(threshold: float | None, order: str, temperature: float) -> None:
    logits = mock(5, 12, seed=3).logits_BGV * 3
    decoding = DecodingConfig(12, 5, 7, order=order, threshold=threshold, temperature=temperature)  # type: ignore
    together = last(Mock(logits), Canvas.blank(5, 12, 9), decoding, TOKENS, seeds=range(50, 55))
    for row in range(5):
        alone = last(Mock(logits[row : row + 1]), Canvas.blank(1, 12, 9), decoding, TOKENS, seeds=[50 + row])
        assert torch.equal(together.ids_BG[row], alone.ids_BG[0])
        assert torch.equal(together.step_BG[row], alone.step_BG[0])


def test_seeds_repeat_and_differ() -> None:
    logits = torch.zeros(1, 30, VOCAB)
    decoding = DecodingConfig(30, 30, 3, temperature=1.0, stop=False)
    ids = [last(Mock(logits), Canvas.blank(1, 30, 9), decoding, TOKENS, [seed]).ids_BG for seed in (1, 1, 2)]
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
    """A token of probability e-20 is drawn at high temperature about as often as it should be, not never."""
    logits = torch.tensor([[20.0, 0.0, -99.0]]).expand(20_000, 3)
    ids = sample(logits, 2, 10.0, [(torch.Generator().manual_seed(0), 20_000)])
    assert (ids == 1).float().mean().item() == pytest.approx(0.119, abs=0.015)


@pytest.mark.parametrize(("length", "block", "steps"), [(16, 16, 16), (30, 7, 11), (5, 8, 3), (9, 2, 40), (64, 8, 8)])
def test_quotas_fill_the_canvas_whatever_divides_what(length: int, block: int, steps: int) -> None:
    decoding = DecodingConfig(length, block, steps, stop=False)
    quotas = plan_quotas(Canvas.blank(2, length, 9), decoding)
    assert quotas.sum(dim=1).tolist() == [length, length] and quotas.shape[1] <= max(steps, 1)
    canvas = last(mock(2, length), Canvas.blank(2, length, 9), decoding, TOKENS)
    assert not canvas.open_BG.any() and canvas.step_BG.max() + 1 == quotas.shape[1]


def test_fewer_steps_than_blocks_is_refused() -> None:
    with pytest.raises(MMDiffError, match="steps=3 is fewer than the 4 blocks"):
        last(mock(1, 16), Canvas.blank(1, 16, 9), DecodingConfig(16, 4, 3), TOKENS)


def test_seeds_must_fit_the_rows() -> None:
    with pytest.raises(MMDiffError, match="1 seeds for 2 rows"):
        last(mock(2, 4), Canvas.blank(2, 4, 9), DecodingConfig(4, 4, 4), TOKENS, seeds=[1])


def test_guidance_of_scale_0_is_the_model_itself() -> None:
    one, other = mock(1, 6, 1), mock(1, 6, 2)
    select = torch.ones(1, 6, dtype=torch.bool)
    rows, ids = torch.tensor([0]), torch.zeros(1, 6, dtype=torch.long)
    torch.testing.assert_close(Guided(one, other, 0.0)(ids, rows, select), one(ids, rows, select))
    pushed = Guided(one, other, 1.0)(ids, rows, select)
    torch.testing.assert_close(pushed, 2 * one(ids, rows, select) - other(ids, rows, select))
