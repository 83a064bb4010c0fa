"""Caches: published ids and passes, exactness where it is promised, and rows that do not know of
each other."""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from PIL import Image

from mmdiff import config
from mmdiff.config import BackboneConfig, DecodingConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.kv_cache import CACHES, KVPool, KVSlot
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import denoise
from mmdiff.decoding.speculative import SpeculativeRunner
from mmdiff.errors import MMDiffError
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.pipeline import Pipeline

KINDS = {"fast-prefix": "block", "fast-dual": "dual"}
CASES = [
    (number, case)
    for number, case in enumerate(
        json.loads(
            (Path(__file__).parents[1] / "reference" / "llada-mha" / "generate.json").read_text()
        )
    )
    if case["kind"] in KINDS
]
REVISING = ("running_confidence", "saber", "wino", "editing")
PAIRS = [
    (cache, rule)
    for cache in get_args(config.Cache)
    for rule in get_args(config.Rule)
    if rule != "wino" or cache == "none"
]  # no cache holds what a token would be if it were hidden


@pytest.fixture(scope="module")
def llada(reference: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha"))).eval()
    load_weights(model, CheckpointTensors(reference / "llada-mha"))
    return model


@pytest.fixture(scope="module")
def pipeline(endless: Pipeline) -> Pipeline:
    return Pipeline(endless.model, endless.processor)


def test_the_names_are_those_of_the_settings() -> None:
    assert {"none", *CACHES} == set(get_args(config.Cache))


def test_there_are_20_published_cases() -> None:
    assert len(CASES) == 20


@pytest.mark.parametrize(
    ("number", "case"), CASES, ids=[f"{case['kind']}-{number}" for number, case in CASES]
)
def test_ids_equal_the_published_ones(
    llada: MMDiffModel, number: int, case: dict[str, Any]
) -> None:
    decoding = DecodingConfig(**case["params"], stop=False, cache=KINDS[case["kind"]])  # type: ignore[arg-type]
    prompt, tokens = torch.tensor(case["prompt"]), llada.model_config.tokens
    predict = make_runner(ModelRunner(llada, prompt), decoding)
    *_, last = denoise(predict, Canvas.blank(1, decoding.gen_length, tokens.mask), decoding, tokens)
    assert torch.cat((prompt, last.ids_BG), dim=1).tolist() == case["output"]
    assert isinstance(predict, ModelRunner) and predict.calls <= case["nfe"]


PICTURES = [Image.new("RGB", (70, 40), "red"), Image.new("RGB", (64, 64), "blue")]


def prompts() -> list[Any]:
    """Eight rows of several lengths, with and without a picture."""

    def user(text: str, picture: Image.Image | None = None) -> list[dict[str, Any]]:
        media = [] if picture is None else [{"type": "image", "image": picture}]
        return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]

    words = (
        "what?",
        "is there a red circle?",
        "how many stars are there in the picture?",
        "where is it?",
    )
    return [user(text, picture) for text in words for picture in (PICTURES[len(text) % 2], None)]


def steps(
    pipeline: Pipeline, rows: list[Any], decoding: DecodingConfig, seeds: list[int]
) -> Iterator[Canvas]:
    prompted = pipeline.prefill(rows, decoding.gen_length)
    tokens = pipeline.model.model_config.tokens
    canvas = Canvas.blank(len(rows), decoding.gen_length, tokens.mask)
    return denoise(make_runner(prompted, decoding), canvas, decoding, tokens, seeds)


def settings_for(cache: str, rule: str, **more: Any) -> DecodingConfig:
    return DecodingConfig(20, 7, 9, cache=cache, rule=rule, threshold=0.02, gamma=9.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cache", "rule"), PAIRS)
def test_eight_rows_are_eight_single_rows(pipeline: Pipeline, cache: str, rule: str) -> None:
    decoding, rows = settings_for(cache, rule), prompts()
    *_, together = steps(pipeline, rows, decoding, list(range(8)))
    for number, row in enumerate(rows):
        *_, alone = steps(pipeline, [row], decoding, [number])
        assert torch.equal(together.ids_BG[number], alone.ids_BG[0])
        assert torch.equal(together.step_BG[number], alone.step_BG[0])
        torch.testing.assert_close(
            together.confidence_BG[number], alone.confidence_BG[0], rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(("cache", "rule"), PAIRS)
def test_fixed_positions_stay_and_every_step_commits(
    pipeline: Pipeline, cache: str, rule: str
) -> None:
    decoding, tokens = (
        settings_for(cache, rule, temperature=0.7),
        pipeline.model.model_config.tokens,
    )
    ids = torch.full((1, 20), tokens.mask)
    ids[0, [0, 3, 11]] = torch.tensor([40, 41, 42])
    predict = make_runner(pipeline.prefill(prompts()[:1], 20), decoding)
    before, count = Canvas.of(ids, tokens.mask), 0
    for canvas in denoise(predict, before, decoding, tokens, [5]):
        kept = ~before.open_BG & ((before.step_BG < 0) | torch.tensor(rule not in REVISING))
        assert (
            torch.equal(canvas.ids_BG[kept], before.ids_BG[kept])
            and not (canvas.open_BG & kept).any()
        )
        if rule != "editing":  # which goes on where nothing is open
            assert canvas.open_BG.sum() < before.open_BG.sum()
        before, count = canvas, count + 1
    assert not before.open_BG.any() and before.ids_BG[0, [0, 3, 11]].tolist() == [40, 41, 42]
    assert not torch.isin(before.ids_BG, torch.tensor([tokens.mask, *tokens.never])).any()
    assert isinstance(predict, ModelRunner) and predict.calls == count
    again = list(
        denoise(
            make_runner(pipeline.prefill(prompts()[:1], 20), decoding),
            Canvas.of(ids, tokens.mask),
            decoding,
            tokens,
            [5],
        )
    )[-1]
    assert torch.equal(again.ids_BG, before.ids_BG)


class Both:
    """The logits of a cached model, compared with those computed anew at every step."""

    def __init__(self, prompted: ModelRunner, decoding: DecodingConfig) -> None:
        self.exact, self.cached, self.largest, self.scale = (
            prompted,
            make_runner(prompted, decoding),
            0.0,
            0.0,
        )

    def __call__(self, ids_AG: Any, rows: Any, select_AG: Any) -> torch.Tensor:
        prompts = [self.exact.prompts[row] for row in rows]
        logits = self.cached(ids_AG, prompts, select_AG)
        wanted = self.exact(ids_AG, prompts, select_AG)
        self.largest = max(self.largest, float((logits - wanted).abs().max()))
        self.scale = max(self.scale, float(wanted.abs().max()))
        return logits


def difference(
    prompted: ModelRunner, tokens: config.TokenIds, decoding: DecodingConfig, rows: int
) -> float:
    """The largest difference of a logit, as a share of the largest logit."""
    both = Both(prompted, decoding)
    for _ in denoise(both, Canvas.blank(rows, decoding.gen_length, tokens.mask), decoding, tokens):
        pass
    return both.largest / both.scale


def test_prefix_is_exact_where_the_prompt_does_not_see_the_answer(pipeline: Pipeline) -> None:
    prompted = pipeline.prefill(prompts(), 20)
    assert (
        difference(prompted, pipeline.model.model_config.tokens, settings_for("prefix", "quota"), 8)
        < 2e-6
    )


@pytest.mark.parametrize("cache", CACHES)
def test_with_full_attention_caches_approximate(llada: MMDiffModel, cache: str) -> None:
    """And with a refresh at every step they do not."""
    prompt = torch.arange(1, 13)[None]
    decoding = DecodingConfig(24, 8, 24, cache=cache, stop=False)  # type: ignore[arg-type]
    tokens = llada.model_config.tokens
    assert difference(ModelRunner(llada, prompt), tokens, decoding, 1) > 1e-4
    often = dataclasses.replace(decoding, refresh=1)
    assert difference(ModelRunner(llada, prompt), tokens, often, 1) < 2e-6


def test_shifted_logits_are_not_cached(reference: Path) -> None:
    """Nor where the prompt does not see the answer, which would make a cache exact otherwise."""
    sizes = config_of(reference / "dream")
    for pattern in get_args(config.AttentionPattern):
        shifted = dataclasses.replace(
            sizes, backbone=dataclasses.replace(sizes.backbone, attention_pattern=pattern)
        )
        prompted = ModelRunner(MMDiffModel(MMDiffConfig.of(shifted)), torch.tensor([[1, 2]]))
        decoding = DecodingConfig()
        if pattern == "block-causal":
            decoding = DecodingConfig(block_origin="sequence")
        plain = make_runner(prompted, decoding)
        assert isinstance(plain, ModelRunner) and plain.cache is None
        looking = dataclasses.replace(decoding, lookahead=2)
        assert isinstance(make_runner(prompted, looking), SpeculativeRunner)
        with pytest.raises(MMDiffError, match="cache='prefix' does not fit"):
            make_runner(prompted, dataclasses.replace(decoding, cache="prefix"))


def test_rows_that_leave_make_room_for_others() -> None:
    """Whatever is taken, added and written, the rows are those of joining tensors anew."""
    sizes = BackboneConfig(
        vocab_size=8,
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    draw = random.Random(0)
    pool, wanted = KVPool(sizes, torch.device("cpu"), torch.float32), torch.zeros(2, 2, 0, 2, 1, 2)
    for _ in range(200):
        assert wanted.shape[2] == len(pool.slots)
        rows = sorted(draw.sample(range(len(pool.slots)), draw.randint(0, len(pool.slots))))
        if draw.random() < 0.2:
            rows.reverse()
        more, columns = draw.randint(0, 3) * (len(rows) < 20), wanted.shape[4] - 1
        length = columns + (draw.random() < 0.1)
        slots = [*[pool.slots[row] for row in rows], *[KVSlot() for _ in range(more)]]
        moved = slots != pool.slots or length > columns
        pool.arrange(slots, length)
        if moved:  # the column for padding, which is never read, is not kept
            wanted = wanted[:, :, rows, :, :columns]
            wanted = torch.nn.functional.pad(wanted, (0, 0, 0, length + 1 - columns, 0, 0, 0, more))
        assert torch.equal(pool.stored, wanted)
        value = draw.random()
        pool.stored += value
        wanted = wanted + value
