"""The benchmark: the obvious loops give the sampler's ids, so they are fair; reports have what they
should."""

import dataclasses

import pytest
import torch

from mmdiff.config import PRESETS, DecodingConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.decoding.sampler import denoise
from mmdiff.errors import MMDiffError
from mmdiff.eval import speed
from mmdiff.eval.baselines import joining_caches, llada_loop
from mmdiff.eval.speed import (
    SMALL,
    Load,
    bench,
    compile_layers,
    divergence,
    measure_machine,
    picture_length,
    random_model,
    random_prompt,
)
from mmdiff.modeling.multimodal import MMDiffModel
from tests.helpers.programs import needs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> MMDiffModel:
    sizes = dataclasses.replace(
        SMALL.backbone, num_hidden_layers=2, hidden_size=64, intermediate_size=96, vocab_size=256
    )
    tokens = dataclasses.replace(SMALL.tokens, mask=255, eos=254, eot=253, bos=252, pad=254)
    return random_model(
        dataclasses.replace(SMALL, backbone=sizes, tokens=tokens), CPU, torch.float32
    )


@pytest.mark.parametrize("name", ["none", "block", "dual"])
def test_the_obvious_versions_give_the_same_ids(model: MMDiffModel, name: str) -> None:
    decoding = DecodingConfig(24, 8, 12, stop=False, cache=name)  # type: ignore[arg-type]
    prompt, mask = random_prompt(model, Load(20, 2, decoding), 3), model.model_config.tokens.mask
    lengths = (decoding.gen_length, decoding.block_length, decoding.steps, mask)
    if name == "none":
        wanted = llada_loop(model.backbone, prompt, *lengths)
    else:
        wanted = joining_caches(model.backbone, prompt, *lengths, dual=name == "dual")
    *_, last = denoise(
        make_runner(ModelRunner(model, prompt), decoding),
        Canvas.blank(2, 24, mask),
        decoding,
        model.model_config.tokens,
    )
    assert torch.equal(wanted[:, 20:], last.ids_BG) and torch.equal(wanted[:, :20], prompt)


def test_a_report(model: MMDiffModel, capsys: pytest.CaptureFixture[str]) -> None:
    loads = [
        Load(10, 2, DecodingConfig(16, 8, 8, stop=False, cache=name)) for name in ("none", "prefix")
    ]  # type: ignore
    report = bench(model, loads, 1, baselines=True, diverging=True)
    assert report["rows"][1]["logits_off"] > 0 and 0 <= report["rows"][1]["ids_equal"] <= 1
    assert [row["how"] for row in report["rows"]] == [
        "cache none",
        "cache prefix",
        "llada_loop",
        "joining block",
        "joining dual",
        "cache none against llada_loop",
    ]
    assert 0 < report["rows"][-1]["least"] <= report["rows"][-1]["most"]
    for row in report["rows"][:-1]:
        assert row["passes"] == 8 and row["seconds"] > 0 and row["ms_per_pass"] > 0
    for row in report["rows"][:2]:
        assert (
            row["tokens_per_pass"] == 2.0 and row["tokens_per_second"] > 0 and row["floor_ms"] > 0
        )
    assert report["date"][:4] in capsys.readouterr().out


def test_bfloat16_is_timed_against_float32(model: MMDiffModel) -> None:
    load = Load(10, 2, DecodingConfig(16, 8, 8, stop=False, cache="prefix"))
    row = bench(model, [load], 3, baselines=False, bfloat16=True)["rows"][-1]
    assert row["how"] == "bfloat16, cache prefix against float32" and row["batch"] == 2
    assert 0 < row["least"] <= row["times_as_fast"] <= row["most"]
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    "decoding",
    [
        DecodingConfig(24, 16, 8),
        DecodingConfig(24, 8, 10),
        DecodingConfig(8, 16, 8),
        DecodingConfig(24, 8, 12, rule="saber"),
        DecodingConfig(24, 8, 12, threshold=0.9),
    ],
)
def test_the_obvious_versions_refuse_what_they_cannot_do(
    model: MMDiffModel, decoding: DecodingConfig
) -> None:
    with pytest.raises(
        MMDiffError, match=f"{decoding.steps} steps, gen_length={decoding.gen_length}.*--baselines"
    ):
        bench(model, [Load(10, 1, decoding)], 1, baselines=True)


def test_a_picture_has_a_length() -> None:
    assert PRESETS["tiny"].vision is not None
    assert picture_length("640x480", PRESETS["llada-v-8b"]) == 2929
    assert picture_length("1x1", PRESETS["tiny"]) == PRESETS["tiny"].vision.tokens_per_side ** 2


@pytest.mark.parametrize(
    "size", ["", "640", "640x", "0x480", "640x480x3", "640 x 480", "6.4x4", "-1x5", "9999999x1"]
)
def test_what_is_no_size_has_none(size: str) -> None:
    with pytest.raises(MMDiffError, match=f"picture={size!r} is not a size"):
        picture_length(size, PRESETS["llada-v-8b"])
    with pytest.raises(MMDiffError, match="needs a model that takes images"):
        picture_length("640x480", SMALL)


def test_prompts_hold_no_special_tokens(model: MMDiffModel) -> None:
    ids = random_prompt(model, Load(5000, 1, DecodingConfig()), 0)
    assert int(ids.max()) < 252 and measure_machine(CPU, torch.float32)["bytes_per_second"] > 1e8


def test_where_a_cache_is_exact_nothing_diverges(
    model: MMDiffModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = model.model_config
    causal = dataclasses.replace(config.backbone, attention_pattern="segment-causal")
    monkeypatch.setattr(model, "model_config", dataclasses.replace(config, backbone=causal))
    monkeypatch.setattr(model.backbone, "config", causal)
    load = Load(12, 1, DecodingConfig(16, 8, 8, stop=False, cache="prefix"))
    assert divergence(model, load) == {"logits_off": 0.0, "ids_equal": 1.0}


@pytest.mark.slow
@needs("g++")
def test_compiled_layers_give_the_same_logits(model: MMDiffModel) -> None:
    decoding = DecodingConfig(8, 8, 4, stop=False, cache="prefix")
    prompt, tokens = random_prompt(model, Load(12, 1, decoding), 0), model.model_config.tokens

    def ids() -> list[int]:
        with torch.inference_mode():
            predict = make_runner(ModelRunner(model, prompt), decoding)
        *_, last = denoise(predict, Canvas.blank(1, 8, tokens.mask), decoding, tokens)
        return last.ids_BG[0].tolist()

    wanted = ids()
    compile_layers(model)
    assert ids() == wanted
    for layer in model.backbone.layers:
        layer._compiled_call_impl = None


def test_a_model_without_room_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "free_bytes", lambda device: 2**30)
    with pytest.raises(
        MMDiffError, match="the model takes 29.9 GiB in float32, and cpu has 1.0 GiB free"
    ):
        random_model(PRESETS["llada-8b"], CPU, torch.float32)
