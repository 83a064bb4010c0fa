"""What requests share: found again by content, kept within bytes, and without a change to any
answer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from mmdiff.decoding.prefix_cache import CachingEncoder, PrefixCache, digest
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.pipeline import Pipeline, load


@pytest.fixture
def pipeline(random_tiny: Path) -> Pipeline:
    loaded = load(random_tiny, device="cpu")
    loaded.model.backbone.lm_head.weight.data *= (
        8  # scores far enough apart that rounding does not reorder them
    )
    return loaded


def picture(colour: str = "red") -> Image.Image:
    image = Image.new("RGB", (60, 60), "white")
    ImageDraw.Draw(image).rectangle((10, 10, 40, 30), fill=colour)
    return image


class Spy:
    """Counts the views that a tower sees and the positions that the backbone computes."""

    def __init__(self, model: MMDiffModel) -> None:
        self.views, self.positions = 0, 0
        assert model.vision_tower is not None
        model.vision_tower.register_forward_pre_hook(lambda module, args: self._saw(args[0]))
        model.backbone.register_forward_pre_hook(lambda module, args: self._computed(args[0]))

    def _saw(self, pixels: torch.Tensor) -> None:
        self.views += len(pixels)

    def _computed(self, embeds: torch.Tensor) -> None:
        self.positions += embeds.shape[0] * embeds.shape[1]


def test_the_second_question_skips_the_encoder_and_the_shared_prompt(pipeline: Pipeline) -> None:
    spy, settings = (
        Spy(pipeline.model),
        {"gen_length": 8, "steps": 1, "threshold": None, "rule": "quota", "block_length": 8},
    )
    first = pipeline.ask(picture(), "what is it?", **settings)
    seen, computed = spy.views, spy.positions
    second = pipeline.ask(
        picture(), "is it a star?", **settings
    )  # another object with the same pixels
    assert spy.views == seen and spy.positions - computed < computed - 25
    assert pipeline.store.hits >= 2
    again = pipeline.ask(picture(), "what is it?", **settings)
    assert again.text == first.text
    fresh = load_like(pipeline)
    assert second.text == fresh.ask(picture(), "is it a star?", **settings).text
    assert pipeline.ask(picture("blue"), "what is it?", **settings) and spy.views > seen


def test_nothing_is_stored_twice(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where everything is computed anew at each step."""
    keys, put = [], pipeline.store.put
    monkeypatch.setattr(
        pipeline.store, "put", lambda key, tensor: (keys.append(key), put(key, tensor))
    )
    for question in ("what is it?", "what is it?", "is it a star?"):
        pipeline.ask(picture(), question, cache="prefix", refresh=1)
    assert len(keys) == len(set(keys)) == len(pipeline.store) > 2


def load_like(pipeline: Pipeline) -> Pipeline:
    return Pipeline(pipeline.model, pipeline.processor, store_bytes=0)


def test_answers_are_those_without_a_store(pipeline: Pipeline) -> None:
    """Rows that know much and rows that know little, in one batch, and with another length of
    padding."""
    questions = ["what?", "which colour is the thing that is left of the star?", "is it red?"]
    pictures: list[Any] = [picture(), None, [picture("blue"), picture()]]
    pipeline.ask(picture(), "where is it?")
    pipeline.ask([picture("blue"), picture("green")], "which?")
    got = pipeline.ask(pictures, questions, rule="quota", threshold=None)
    wanted = load_like(pipeline).ask(pictures, questions, rule="quota", threshold=None)
    for one, other in zip(got, wanted, strict=True):
        assert [token.text for token in one.tokens] == [token.text for token in other.tokens]
        torch.testing.assert_close(one.confidence, other.confidence, rtol=1e-3, atol=1e-5)


def test_the_same_picture_twice_in_a_prompt_is_encoded_once(pipeline: Pipeline) -> None:
    spy = Spy(pipeline.model)
    pipeline.ask([picture(), picture()], "are they the same?")
    assert spy.views == 1


def test_sounds_are_remembered(pipeline: Pipeline) -> None:
    wave = torch.sin(torch.arange(16_000) / 20).numpy()
    seen = []
    assert pipeline.model.audio_tower is not None
    pipeline.model.audio_tower.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    first = pipeline.listen(wave, "what is said?", sample_rate=16_000)
    second = pipeline.listen(wave.copy(), "what is said?", sample_rate=16_000)
    assert seen == [1] and first.text == second.text


def test_full_attention_shares_encoded_media_only(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    settings = pipeline.model.model_config
    full = dataclasses.replace(
        settings, backbone=dataclasses.replace(settings.backbone, attention_pattern="full")
    )
    monkeypatch.setattr(pipeline.model, "model_config", full)
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "what is it?"}]
    prompted = pipeline.prefill([[{"role": "user", "content": content}]], 8)
    assert prompted.prompts[0].blocks == [] and len(pipeline.store) == 1


def test_the_least_recently_used_is_dropped() -> None:
    store = PrefixCache(100)
    for name in (b"a", b"b"):
        store.put(name, torch.zeros(10))  # 40 bytes
    assert store.get(b"a") is not None
    store.put(b"c", torch.zeros(10))
    assert store.get(b"b") is None and store.get(b"a") is not None and store.num_bytes == 80
    store.put(b"d", torch.zeros(26))  # too large
    assert len(store) == 2 and (store.hits, store.misses) == (2, 1)


def test_a_copy_is_kept_and_not_a_view() -> None:
    """A view would change with the tensor that it is part of, and keep all of it in memory."""
    store, large = PrefixCache(100), torch.zeros(10, 100)
    store.put(b"a", large[:, 1])
    large.fill_(1.0)
    kept = store.get(b"a")
    assert (
        kept is not None
        and kept.tolist() == [0.0] * 10
        and kept.untyped_storage().nbytes() == store.num_bytes == 40
    )
    assert b"a" in store and b"b" not in store and (store.hits, store.misses) == (1, 0)


def test_digests_tell_contents_apart() -> None:
    one = torch.arange(4.0)
    parts = [
        (one,),
        (one.int(),),
        (one.view(2, 2),),
        (one, one),
        (one + 1,),
        (b"a", b"bc"),
        (b"ab", b"c"),
    ]
    assert len({digest(*each) for each in parts}) == len(parts) and digest(one) == digest(
        one.clone()
    )


def test_a_sound_is_known_again_beside_a_longer_one() -> None:
    """There its spectrogram is padded, which is no part of it."""
    asked: list[list[int]] = []

    class Encoder:
        def encode_images(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
            raise NotImplementedError

        def encode_audio(self, features: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
            asked.append(lengths.tolist())
            return [torch.zeros(2, 4) for _ in lengths]

    remembering = CachingEncoder(Encoder(), PrefixCache(10_000), b"")
    mels = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0))
    remembering.encode_audio(mels[:1, :, :5], torch.tensor([5]))
    remembering.encode_audio(mels, torch.tensor([5, 9]))
    assert asked == [[5], [9]]


def test_what_other_weights_made_takes_no_room() -> None:
    model, store = torch.nn.Linear(2, 2), PrefixCache(1000)
    first = store.version(model)
    store.put(first + b"a", torch.zeros(3))
    assert store.version(model) == first and len(store) == 1
    with torch.no_grad():
        model.weight += 1
    assert store.version(model) != first and len(store) == 0
