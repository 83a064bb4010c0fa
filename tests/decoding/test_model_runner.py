"""What each cache computes anew, by hand, and what is kept while rows join and grow."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmdiff.config import BackboneConfig, DecodingConfig
from mmdiff.decoding.canvas import PAD_POSITION
from mmdiff.decoding.kv_cache import (
    BlockPolicy,
    CachePolicy,
    DelayedPolicy,
    DualPolicy,
    KVPool,
    KVSlot,
    PrefixPolicy,
)
from mmdiff.decoding.model_runner import ModelRunner, make_runner
from mmdiff.errors import MMDiffError
from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.pipeline import Pipeline


def progress(**changes: Any) -> KVSlot:
    """One row in the middle of three blocks of two; one of them was decided at the step before."""
    usual = KVSlot(
        open_G=np.array([0, 0, 0, 1, 1, 1]).astype(bool),
        open_before_G=np.array([0, 0, 1, 1, 1, 1]).astype(bool),
        block_G=np.array([0, 0, 1, 1, 0, 0]).astype(bool),
        age=3,
    )
    return dataclasses.replace(usual, **changes)


@pytest.mark.parametrize(
    ("cache", "positions"),
    [
        (PrefixPolicy(), [1, 1, 1, 1, 1, 1]),
        (BlockPolicy(), [0, 0, 1, 1, 1, 1]),
        (DualPolicy(), [0, 0, 1, 1, 0, 0]),
        (DelayedPolicy(), [0, 0, 1, 1, 1, 1]),
    ],
)
def test_positions_that_are_recomputed(cache: CachePolicy, positions: list[int]) -> None:
    assert cache.positions_to_recompute(progress()).astype(int).tolist() == positions
    reopened = np.array([0, 1, 0, 1, 1, 1]).astype(
        bool
    )  # a token that was taken back is open again, and was not before
    assert isinstance(cache, DualPolicy) or cache.positions_to_recompute(progress(open_G=reopened))[
        1
    ] == (not isinstance(cache, BlockPolicy) or isinstance(cache, DelayedPolicy))


@pytest.mark.parametrize("cache", [PrefixPolicy, BlockPolicy, DualPolicy, DelayedPolicy])
def test_rows_that_are_computed_anew(cache: type[PrefixPolicy] | type[BlockPolicy]) -> None:
    def stale(interval: int | None, **changes: Any) -> bool:
        return cache(interval).needs_refresh(progress(**changes))

    assert stale(None, age=-1) and not stale(None, age=1000)
    assert [age for age in range(1, 6) if stale(3, age=age)] == [3, 4, 5]
    for change in ({"entered": True}, {"grown": True}):
        assert stale(None, **change) == (
            cache is not PrefixPolicy
        )  # which computes the whole canvas at every step
    usual = cache()
    assert [usual.needs_refresh(progress(age=age)) for age in (7, 8)] == [
        False,
        cache is DelayedPolicy,
    ]


SIZES = BackboneConfig(
    vocab_size=8,
    hidden_size=4,
    intermediate_size=4,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
)


def test_keys_and_values_are_written_and_given_back_where_they_belong() -> None:
    """Of some rows and of all, at a run of columns and at scattered ones; padding is not read."""
    pool = KVPool(SIZES, torch.device("cpu"), torch.float32)
    slots = [KVSlot(), KVSlot(), KVSlot()]
    pool.arrange(slots, 4)
    with torch.inference_mode():
        for where, rows in (
            (np.array([[1, 2]] * 3), [0, 1, 2]),
            (np.array([[3, 0], [2, -1]]), [2, 0]),
            (np.array([[0, 1], [0, 1]]), [1, 2]),
        ):
            before, count = pool.stored.clone(), len(rows)
            k, v = torch.rand(count, 2, 2, 2), torch.rand(count, 2, 2, 2)
            got_k, got_v = pool.writers([slots[row] for row in rows], where, 4)[0](k, v)
            assert got_k.shape == got_v.shape == (count, 2, 4, 2)
            for number, row in enumerate(rows):
                for new, place in enumerate(where[number].tolist()):
                    before[0, 0, row, :, place] = k[number, :, new]
                    before[0, 1, row, :, place] = v[number, :, new]
                torch.testing.assert_close(got_k[number], before[0, 0, row, :, :4])
                torch.testing.assert_close(got_v[number], before[0, 1, row, :, :4])
            torch.testing.assert_close(pool.stored, before)


def test_columns_are_added_behind() -> None:
    pool = KVPool(SIZES, torch.device("cpu"), torch.float32)
    slots = [KVSlot()]
    pool.arrange(slots, 2)
    pool.stored[..., :2, :] = 1.0
    pool.arrange(slots, 4)
    assert pool.stored[0, 0, 0, 0, :, 0].tolist() == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def llada(reference: Path) -> MMDiffModel:
    model = MMDiffModel(MMDiffConfig.of(config_of(reference / "llada-mha"))).eval()
    load_weights(model, CheckpointTensors(reference / "llada-mha"))
    return model


class Noted(BlockPolicy):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__(3)
        object.__setattr__(self, "told", [])

    def needs_refresh(self, slot: KVSlot) -> bool:
        self.told.append(dataclasses.replace(slot))  # type: ignore[attr-defined]
        return super().needs_refresh(slot)


def test_a_cache_is_told_where_the_rows_stand(llada: MMDiffModel) -> None:
    """Blocks of two: the row grows at the third step, and enters its next block at the fourth."""
    mask, noted = llada.model_config.tokens.mask, Noted()
    runner = ModelRunner(llada, torch.tensor([[1, 2, 3]])).cached(noted, 2)
    canvases = [
        [mask, mask, mask, PAD_POSITION, PAD_POSITION],
        [5, mask, mask, PAD_POSITION, PAD_POSITION],
        [5, mask, mask, mask, mask],
        [5, 6, mask, mask, mask],
        [5, 6, 7, mask, mask],
        [5, 6, 7, 8, mask],
        [5, 6, 7, 8, mask],
    ]
    for canvas in canvases:
        ids = np.array([canvas])
        first = canvas.index(mask)
        select = (ids == mask) & (np.arange(5) < (first // 2 + 1) * 2)
        runner(ids, runner.prompts, select)
    told = noted.told  # type: ignore[attr-defined]
    assert [each.grown for each in told] == [True, False, True, False, False, False, False]
    assert [each.entered for each in told] == [
        True,
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    # Anew when it is first seen, grows, or enters a block; three steps later for its age.
    assert [each.age for each in told] == [-1, 1, 2, 1, 1, 2, 1]
    assert told[1].open_before_G[:3].tolist() == [True, True, True]
    assert told[2].open_before_G[:3].tolist() == [False, True, True]
    assert told[1].open_G.tolist() == [False, True, True, False, False]
    assert told[3].block_G.astype(int).tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("refresh", [1, 2, 3])
def test_everything_is_computed_anew_every_so_many_steps(
    llada: MMDiffModel, refresh: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask, made = llada.model_config.tokens.mask, []
    for name in ("prefill", "decode"):
        usual = getattr(ModelRunner, name)
        monkeypatch.setattr(
            ModelRunner,
            name,
            lambda *args, _usual=usual, _name=name, **options: (
                made.append(_name),
                _usual(*args, **options),
            )[1],
        )
    batch = make_runner(
        ModelRunner(llada, torch.tensor([[1, 2, 3]])),
        DecodingConfig(8, 8, 8, cache="dual", refresh=refresh),
    )
    ids = np.full((1, 8), mask)
    for place in range(7):
        batch(ids, batch.prompts, ids == mask)
        ids[0, place] = place
    assert made == ["prefill" if step % refresh == 0 else "decode" for step in range(7)]


def user(text: str, *colours: str) -> list[dict[str, Any]]:
    media = [{"type": "image", "image": Image.new("RGB", (64, 40), colour)} for colour in colours]
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def test_rows_that_join_are_computed_anew_and_the_others_stay(endless: Pipeline) -> None:
    """The second row has a longer prompt, so that what is kept of the first moves."""
    pipeline = Pipeline(endless.model, endless.processor, store_bytes=0)
    mask = pipeline.model.model_config.tokens.mask
    for cache in ("prefix", "block", "dual", "delayed"):
        decoding = DecodingConfig(4, 2, 4, cache=cache)  # type: ignore[arg-type]
        running, joining = (
            make_runner(pipeline.prefill([row], 4), decoding)
            for row in (user("a"), user("is it?", "red"))
        )
        ids = np.array([[mask] * 4])
        running(ids, running.prompts, np.array([[1, 1, 0, 0]], dtype=bool))
        prompts = [*running.prompts, *joining.prompts]
        both = np.array([[30, mask, mask, mask], [mask] * 4])
        select = np.array([[0, 1, 0, 0], [1, 1, 0, 0]], dtype=bool)
        made = running(both, prompts, select)
        alone = pipeline.prefill([user("is it?", "red")], 4)
        exact = alone(both[1:], alone.prompts, select[1:])
        torch.testing.assert_close(made[1:], exact, rtol=1e-4, atol=1e-4)
        if cache == "prefix":  # exact for the other, too
            alone = pipeline.prefill([user("a")], 4)
            exact = alone(both[:1], alone.prompts, select[:1])
            torch.testing.assert_close(made[:1], exact, rtol=1e-4, atol=1e-4)


def test_a_prompt_with_a_hole_in_the_store_is_computed_from_the_hole_on(endless: Pipeline) -> None:
    pipeline = Pipeline(endless.model, endless.processor)
    row = user("are they the same?", "red", "blue")
    settings = {"gen_length": 4, "block_length": 4, "steps": 4}
    calls: list[int] = []
    hook = pipeline.model.backbone.register_forward_pre_hook(
        lambda module, args: calls.append(args[0].shape[1])
    )
    wanted = pipeline.chat(row, **settings)
    parts = pipeline.prefill([row], 4).prompts[0].blocks
    assert len(parts) > 2
    pipeline.store._kept.pop(b"kv" + parts[1].key)
    assert all(b"kv" + part.key in pipeline.store for part in (parts[0], *parts[2:]))
    calls.clear()
    again = pipeline.chat(row, **settings)
    hook.remove()
    assert again.text == wanted.text and again.confidence == pytest.approx(
        wanted.confidence, abs=1e-5
    )
    assert calls[0] == parts[-1].end - parts[0].end + 4


def test_the_usual_cache_is_exact(endless: Pipeline, llada: MMDiffModel) -> None:
    """The prompt is kept where it does not see the answer, and nothing is where it does."""
    usual = make_runner(endless.prefill([user("a")], 4), DecodingConfig())
    assert isinstance(usual, ModelRunner) and usual.cache == PrefixPolicy()
    plain = make_runner(ModelRunner(llada, torch.tensor([[1, 2]])), DecodingConfig())
    assert isinstance(plain, ModelRunner) and plain.cache is None
    with pytest.raises(MMDiffError, match="cache='prefix' is not; use none"):
        make_runner(
            ModelRunner(llada, torch.tensor([[1, 2]])), DecodingConfig(cache="prefix", lookahead=2)
        )
    for cache in ("none", "prefix"):
        make_runner(endless.prefill([user("a")], 4), DecodingConfig(cache=cache, lookahead=2))  # type: ignore[arg-type]
