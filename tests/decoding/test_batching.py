"""Rows that join and leave, canvases that grow, and guesses that change nothing."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from PIL import Image
from torch import Tensor

from mmdiff import config
from mmdiff.config import DecodingConfig, TokenIds
from mmdiff.decoding.canvas import PAD_POSITION, Array, Canvas
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import END_WINDOW, GROWTH, Sampler, denoise
from mmdiff.decoding.speculative import SpeculativeRunner
from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Pipeline

PAIRS = [
    (cache, rule)
    for cache in get_args(config.Cache)
    for rule in get_args(config.Rule)
    if rule != "wino" or cache == "none"
]
TOKENS = TokenIds(mask=9, eos=8, eot=7, bos=6, pad=8)


@pytest.fixture(scope="module")
def pipeline(endless: Pipeline) -> Pipeline:
    return Pipeline(endless.model, endless.processor, store_bytes=0)


def user(text: str, colour: str | None = None) -> list[dict[str, Any]]:
    media = (
        [] if colour is None else [{"type": "image", "image": Image.new("RGB", (64, 40), colour)}]
    )
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


ROWS = [
    user("what?"),
    user("is there a red circle in it?", "red"),
    user("how many?", "blue"),
    user("where is it?"),
]


@pytest.mark.parametrize(("cache", "rule"), PAIRS)
def test_rows_join_and_leave_between_steps(pipeline: Pipeline, cache: str, rule: str) -> None:
    """Four rows of several lengths come in two by two, and each answers as it does alone."""
    settings: dict[str, Any] = {
        "gen_length": 14,
        "block_length": 5,
        "steps": 9,
        "cache": cache,
        "rule": rule,
        "threshold": 0.02,
        "temperature": 0.5,
        "order": "random",
    }
    limits = [14, 9, 3, 12]
    running = pipeline.start(ROWS[:2], seeds=[0, 1], limits=limits[:2], **settings)
    made: dict[int, list[int]] = {}
    names = [0, 1]

    def step() -> None:
        running.step()
        left = running.pop_finished()
        made.update(zip(left.names, left.canvas.token_ids(()), strict=True))

    step()
    step()
    for row in (2, 3):
        names += running.add(
            pipeline.start([ROWS[row]], seeds=[row], limits=[limits[row]], **settings)
        )
        step()
    while running.working:
        step()
    assert len(running.names) == 0 and sorted(made) == sorted(names)
    for row, name in enumerate(names):
        alone = pipeline.start([ROWS[row]], seeds=[row], limits=[limits[row]], **settings)
        while alone.working:
            alone.step()
        assert (
            made[name] == alone.pop_finished().canvas.token_ids(())[0]
            and len(made[name]) == limits[row]
        )


def test_guided_rows_join_too(pipeline: Pipeline) -> None:
    settings: dict[str, Any] = {"gen_length": 8, "block_length": 8, "steps": 8, "cfg_scale": 1.0}
    running = pipeline.start(ROWS[:1], **settings)
    running.step()
    running.add(pipeline.start(ROWS[1:2], **settings))
    while running.working:
        running.step()
    wanted = [pipeline.chat(row, **settings) for row in ROWS[:2]]
    assert [answer.text for answer in pipeline.answers(running.pop_finished())] == [
        answer.text for answer in wanted
    ]


def test_rows_join_after_others_have_finished(pipeline: Pipeline) -> None:
    """A finished row is let go; the others are repeated for their guesses, and it with them, until
    it leaves."""
    settings: dict[str, Any] = {"gen_length": 4, "block_length": 1, "steps": 4, "lookahead": 2}
    limits = [1, 4, 4]
    running = pipeline.start(ROWS[:2], limits=limits[:2], **settings)
    for _ in range(3):
        running.step()
    names = [0, 1, *running.add(pipeline.start(ROWS[2:3], limits=limits[2:], **settings))]
    while running.working:
        running.step()
    left = running.pop_finished()
    assert left.names == names == [0, 1, 2]
    for row, made in enumerate(left.canvas.token_ids(())):
        alone = pipeline.start([ROWS[row]], limits=[limits[row]], **settings)
        while alone.working:
            alone.step()
        assert alone.pop_finished().canvas.token_ids(())[0] == made and len(made) == limits[row]


@pytest.mark.parametrize("change", [{"steps": 4}, {"temperature": 0.5}, {"cache": "none"}])
def test_rows_with_other_settings_do_not_join(pipeline: Pipeline, change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"gen_length": 8, "block_length": 8, "steps": 8}
    running = pipeline.start(ROWS[:1], **settings)
    with pytest.raises(MMDiffError, match="rows with other settings cannot join"):
        running.add(pipeline.start(ROWS[1:2], **{**settings, **change}))
    assert running.names == [0] and len(running.canvas.ids_BG) == 1


@pytest.mark.parametrize("limits", [[], [8], [8, 8, 8], [8, 0], [-1, 8]])
def test_limits_that_do_not_fit(pipeline: Pipeline, limits: list[int]) -> None:
    with pytest.raises(
        MMDiffError,
        match="do not fit 2 conversations; give a number for each|at least 1 and at most",
    ):
        pipeline.start(ROWS[:2], limits=limits, gen_length=8, block_length=8)


class Ending:
    """A model that expects the end from some place on, in each row: its canvas grows as long as
    that is ahead."""

    def __init__(self, ends: Sequence[int]) -> None:
        self.ends, self.widths = ends, []  # type: ignore[var-annotated]

    def __call__(self, ids_AG: Array, rows: Sequence[int], select_AG: Array) -> Tensor:
        self.widths.append((ids_AG != PAD_POSITION).sum(1).tolist())
        logits = torch.zeros(*ids_AG.shape, 10)
        logits[..., 1] = 5.0
        for row, number in enumerate(rows):
            logits[row, self.ends[number] :, 8] = 12.0
        return logits[select_AG]


def test_canvases_grow_until_the_end_is_expected() -> None:
    ends, limits = [3, 20, 500], [100, 100, 40]
    model = Ending(ends)
    canvas = Canvas.ragged([16, 16, 16], 100, TOKENS.mask)
    *_, last = denoise(
        model, canvas, DecodingConfig(100, 100, 100, threshold=0.5), TOKENS, limits=limits
    )
    assert [len(row) for row in last.token_ids((7, 8))] == [3, 20, 40]
    lengths = last.length_B.tolist()
    assert lengths[0] == 16 and lengths[2] == 40
    assert ends[1] + END_WINDOW / 2 <= lengths[1] <= ends[1] + END_WINDOW / 2 + GROWTH
    assert model.widths[0] == [16, 16, 16] and model.widths[1] == [16, 24, 24]


@pytest.mark.parametrize(
    ("cache", "rule"), [pair for pair in PAIRS if "quota" in pair or "none" in pair]
)
def test_a_grown_answer_does_not_depend_on_its_neighbours(
    pipeline: Pipeline, cache: str, rule: str
) -> None:
    settings: dict[str, Any] = {
        "gen_length": 30,
        "block_length": 6,
        "steps": 30,
        "start_length": 5,
        "cache": cache,
        "rule": rule,
    }
    together = pipeline.chat_batch(ROWS, seeds=range(4), **settings)
    alone = [pipeline.chat(row, seed=seed, **settings) for seed, row in enumerate(ROWS)]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    longest = pipeline.start(ROWS[:1], **settings)
    lengths = []
    while longest.working:
        lengths.append(int(longest.step().length_B[0]))
    assert lengths[:4] == [13, 21, 29, 30] and lengths[-1] == 30  # ends are never expected here


@pytest.mark.parametrize("guesses", [1, 3, 20])
@pytest.mark.parametrize("cache", ["none", "prefix"])
@pytest.mark.parametrize("temperature", [0.0, 0.4])
def test_guesses_change_passes_and_nothing_else(
    pipeline: Pipeline, guesses: int, cache: str, temperature: float
) -> None:
    """The answer is that of one position a step; guesses that come true save passes."""
    settings: dict[str, Any] = {
        "gen_length": 18,
        "block_length": 6,
        "steps": 18,
        "rule": "quota",
        "threshold": None,
        "cache": cache,
        "temperature": temperature,
    }
    plain = pipeline.chat_batch(ROWS, **settings)
    ahead = pipeline.chat_batch(ROWS, lookahead=guesses, **settings)
    for one, other in zip(plain, ahead, strict=True):
        assert [(each.text, each.step) for each in one.tokens] == [
            (each.text, each.step) for each in other.tokens
        ]
        assert one.passes == one.steps == other.steps == 18
    alone = pipeline.chat(ROWS[1], lookahead=guesses, **settings)
    assert alone.text == pipeline.chat(ROWS[1], **settings).text and alone.passes <= 18
    if temperature == 0.0 and guesses > 1:
        assert alone.passes < 18


@pytest.mark.parametrize(("cache", "rule"), PAIRS)
def test_a_row_in_a_hurry_is_decided_at_once_and_one_that_goes_unfinished_hurts_nobody(
    pipeline: Pipeline, cache: str, rule: str
) -> None:
    settings: dict[str, Any] = {
        "gen_length": 14,
        "block_length": 5,
        "steps": 14,
        "cache": cache,
        "rule": rule,
        "threshold": 0.99,
        "start_length": 6 if rule == "threshold" else None,
    }
    running = pipeline.start(ROWS, seeds=range(4), limits=[14, 14, 3, 14], **settings)
    running.step()
    gone = running.pop_finished(abort=[1])
    assert gone.names == [1] and bool(gone.canvas.open_BG.any())
    running.step(expired=[0])
    left = running.pop_finished()
    assert 0 in left.names and not bool(left.canvas.open_BG[left.names.index(0)].any())
    while running.working:
        running.step()
    last = running.pop_finished()
    assert 3 in last.names
    alone = pipeline.chat(ROWS[3], seed=3, **settings)
    assert pipeline.answers(last)[last.names.index(3)].text == alone.text


def test_right_guesses_save_all_but_one_pass_in_each_block() -> None:
    """A model whose logits never change is guessed right every time."""
    logits = torch.randn(1, 12, 10, generator=torch.Generator().manual_seed(0))

    class Prompt:
        length = passes = 0

        def fork(self) -> "Prompt":
            return Prompt()

    class Still:
        def __init__(self) -> None:
            self.prompts = [Prompt()]

        def __call__(
            self, ids_AG: Array, prompts: Any, select_AG: Array, hidden_AG: Any = None
        ) -> Tensor:
            for each in prompts:
                each.passes += 1
            return logits.expand(len(prompts), -1, -1)[select_AG]

    plain, ahead = Still(), SpeculativeRunner(Still(), 5, TOKENS)
    decoding = DecodingConfig(12, 6, 12, stop=False)
    *_, one = denoise(plain, Canvas.blank(1, 12, 9), decoding, TOKENS)
    *_, other = denoise(ahead, Canvas.blank(1, 12, 9), decoding, TOKENS)
    assert torch.equal(one.ids_BG, other.ids_BG) and torch.equal(one.step_BG, other.step_BG)
    assert plain.prompts[0].passes == 12
    assert ahead.prompts[0].passes == 4  # for each block a first one, and one with guesses


def test_guesses_need_an_exact_cache(pipeline: Pipeline) -> None:
    with pytest.raises(MMDiffError, match="lookahead=2 needs a cache that is exact"):
        pipeline.chat(ROWS[0], lookahead=2, cache="dual")


def test_the_verify_lane_tells_what_a_hidden_token_would_be(pipeline: Pipeline) -> None:
    """In one layer, where what others saw of the token cannot come back, hiding it for itself is
    hiding it for all."""
    model = pipeline.model
    layers, model.backbone.layers = model.backbone.layers, model.backbone.layers[:1]
    try:
        prompted = pipeline.prefill(ROWS[:2], 6)
        ids = torch.tensor([[30, 31, 0, 33, 0, 35], [40, 0, 42, 43, 0, 0]])
        select = ids == 0
        hidden = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]]).bool()
        made = prompted(ids.numpy(), prompted.prompts, select.numpy(), hidden.numpy())
        plain = prompted(ids.numpy(), prompted.prompts, select.numpy())
        torch.testing.assert_close(made[: int(select.sum())], plain, rtol=1e-4, atol=1e-5)
        for number, (row, place) in enumerate(hidden.nonzero().tolist()):
            one = torch.zeros_like(hidden)
            one[row, place] = True
            chosen = slice(row, row + 1)
            alone = prompted(
                ids.masked_fill(one, 0)[chosen].numpy(),
                prompted.prompts[chosen],
                one[chosen].numpy(),
            )
            torch.testing.assert_close(
                made[int(select.sum()) + number], alone[0], rtol=1e-4, atol=1e-5
            )
    finally:
        model.backbone.layers = layers


def test_wino_refuses_caches(pipeline: Pipeline) -> None:
    plain = make_runner(pipeline.prefill(ROWS[:1], 8), DecodingConfig(rule="wino"))
    assert isinstance(plain, ModelRunner) and plain.cache is None
    with pytest.raises(MMDiffError, match="cache='dual' does not fit rule='wino'"):
        pipeline.chat(ROWS[0], rule="wino", cache="dual")


def test_ragged_canvases() -> None:
    canvas = Canvas.ragged([2, 4], 5, 9)
    assert canvas.ids_BG.tolist() == [
        [9, 9, PAD_POSITION, PAD_POSITION, PAD_POSITION],
        [9, 9, 9, 9, PAD_POSITION],
    ]
    assert canvas.length_B.tolist() == [2, 4]

    def sampler(canvas: Canvas, limits: list[int]) -> Sampler:
        decoding = DecodingConfig()
        return Sampler(lambda *_: torch.zeros(0, 10), canvas, decoding, TOKENS, limits=limits)

    running = sampler(canvas, [6, 6])
    assert running.working
    assert [each.tail(3).sum() for each in running.running] == [2, 3]
    running.running[0].grow(1, 9)
    longer = running.canvas
    assert longer.length_B.tolist() == [3, 4] and longer.open_BG.sum().item() == 7
    running.add(sampler(Canvas.blank(1, 7, 9), [7]))
    both = running.canvas
    assert both.length_B.tolist() == [3, 4, 7] and not both.open_BG[:2, 4:].any()
