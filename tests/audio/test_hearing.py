"""Sound through processor and model: placeholders, several windows, mixed batches, folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from mmdiff.config import PRESETS, AudioConfig
from mmdiff.errors import MMDiffError
from mmdiff.modeling.checkpoint import load_folder, save_folder
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.tokens import segment_ids
from mmdiff.training.tiny.tokenizer import wrap_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SOUNDS = {
    "stack": AudioConfig(**SIZES),
    "dual": AudioConfig(**SIZES, connector="dual", taps=(0, 1), num_queries=4, qformer_heads=2),
}
RED = Image.new("RGB", (70, 40), "red")
Hearing = tuple[MMDiffModel, MMDiffProcessor]


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=int(16_000 * seconds)).astype(np.float32) * 0.1


@pytest.fixture(scope="module", params=SOUNDS)
def hearing(request: pytest.FixtureRequest, random_tiny: Path) -> Hearing:
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["tiny"], audio=SOUNDS[request.param])
    tokenizer = wrap_tokenizer(Tokenizer.from_file(str(random_tiny / "tokenizer.json")))
    return MMDiffModel(MMDiffConfig.of(config)).eval(), MMDiffProcessor.of(tokenizer, config)


def user(*parts: Any) -> list[dict[str, Any]]:
    kinds = {str: "text", np.ndarray: "audio"}
    content = [{"type": (kind := kinds.get(type(part), "image")), kind: part} for part in parts]
    return [{"role": "user", "content": content}]


def prepare(processor: MMDiffProcessor, conversations: Any) -> Any:
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, add_generation_prompt=True
    )


def test_one_placeholder_per_embedding(hearing: Hearing) -> None:
    model, processor = hearing
    batch = prepare(processor, user(sound(2), "what was said?"))
    assert batch["input_features"].shape == (1, 80, 200) and batch["feature_lengths"].tolist() == [
        200
    ]
    extra = 4 if model.model_config.audio == SOUNDS["dual"] else 0
    assert (batch["input_ids"] == processor.tokens.audio).sum() == 25 + extra
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape


def test_long_sounds_are_several_windows_at_one_mark(hearing: Hearing) -> None:
    model, processor = hearing
    batch = prepare(processor, user(sound(61), "what was said?"))
    assert batch["feature_lengths"].tolist() == [3000, 3000, 100]
    assert (
        segment_ids(batch["input_ids"], processor.tokens).max() == 3
    )  # header, sound, words, the answer's header
    assert torch.isfinite(model(**batch).logits).all()


@torch.no_grad()
def test_many_windows_are_encoded_each_as_alone(hearing: Hearing) -> None:
    """More than the tower sees together, in no order of length."""
    model, processor = hearing
    sounds = [sound(0.3 + 0.37 * (7 * number % 11), number) for number in range(11)]
    batch = prepare(processor, [user(each) for each in sounds])
    together = model.encode_audio(batch["input_features"], batch["feature_lengths"])
    for each, embeds in zip(sounds, together, strict=True):
        alone = prepare(processor, user(each))
        torch.testing.assert_close(
            embeds,
            model.encode_audio(alone["input_features"], alone["feature_lengths"])[0],
            rtol=1e-3,
            atol=1e-4,
        )


@torch.no_grad()
def test_rows_with_and_without_media_are_as_alone(hearing: Hearing) -> None:
    model, processor = hearing
    rows = [
        user(sound(1.3), "what?"),
        user("hello"),
        user(RED, sound(0.4, 1), sound(2.2, 2), "which?"),
        user(RED, "?"),
    ]
    batch = prepare(processor, rows)
    together = model(**batch).logits
    for row, conversation in enumerate(rows):
        alone = model(**prepare(processor, conversation)).logits[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_it_saves_and_loads(hearing: Hearing, tmp_path: Path) -> None:
    model, processor = hearing
    save_folder(model, processor, tmp_path)
    again, preparing = load_folder(tmp_path, torch.device("cpu"), torch.float32)
    batch = prepare(preparing, user(sound(1), "what?"))
    torch.testing.assert_close(
        again(**batch).logits, model(**prepare(processor, user(sound(1), "what?"))).logits
    )


def test_files_are_sounds_too(hearing: Hearing, tmp_path: Path) -> None:
    import soundfile

    _, processor = hearing
    soundfile.write(tmp_path / "a.wav", sound(1), 8_000, subtype="FLOAT")
    from_file = processor(text="<|audio|>", audio=str(tmp_path / "a.wav"))
    from_array = processor(text="<|audio|>", audio=sound(1), sampling_rate=8_000)
    in_chat = prepare(
        processor,
        [{"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "a.wav")}]}],
    )
    for other in (from_array, in_chat):
        torch.testing.assert_close(from_file["input_features"], other["input_features"])


def test_misfits(hearing: Hearing, random_tiny: Path) -> None:
    _, processor = hearing
    with pytest.raises(
        MMDiffError, match="1 <|audio|> marks for 0 audio parts".replace("|", r"\|")
    ):
        processor(text="<|audio|>")
    with pytest.raises(MMDiffError, match="1 .* marks for 2 audio parts"):
        processor(text=["<|audio|>"], audio=[[sound(1), sound(1)]])
    deaf = MMDiffProcessor.of(processor.tokenizer, dataclasses.replace(PRESETS["tiny"], audio=None))
    with pytest.raises(MMDiffError, match="takes no audio"):
        deaf(text="<|audio|>", audio=sound(1))
