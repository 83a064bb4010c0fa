"""How the shipped model is made, stage by stage, each from the weights of the last one.

`tower` teaches the vision tower with SigLIP's objective, `align` fits connector and backbone to the
still tower, `tune` trains everything on conversations, `spell` teaches the audio tower with CTC,
`hear` adds speech to the conversations, and `structure` JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from mmdiff.config import ModelConfig
from mmdiff.prompts import REFINE_PROMPT
from mmdiff.training.datasets import (
    ConversationDataset,
    RegionTextDataset,
    SpeechDataset,
    SpokenRows,
    easy_vqa_row,
    scene_row,
)
from mmdiff.training.loop import TrainConfig
from mmdiff.training.objectives import (
    CtcHead,
    GroundingHeads,
    Stage,
    TowerTrainer,
    contrastive_loss,
    grounded_loss,
    spelling_loss,
)
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.questions import CAPTION_PROMPTS, captions, questions
from mmdiff.training.tiny.scenes import random_scene, scene_json
from mmdiff.training.tiny.sentences import (
    TRANSCRIBE_PROMPTS,
    heard_question,
    sentence,
)
from mmdiff.training.tiny.speech import prepare


def tower(model: ModelConfig, steps: int = 2600) -> Stage:
    """Teach the vision tower: 32 images and 103 phrases a step."""

    data = partial(RegionTextDataset, model, num_images=32, phrases_each=2, seed=1)
    config = TrainConfig(
        steps=steps, learning_rate=1e-3, rates={}, warmup_steps=60, final_rate=0.1, save_every=100
    )
    return Stage("tower", TowerTrainer, contrastive_loss, data, config)


def align(model: ModelConfig, steps: int = 300) -> Stage:
    """Fit connector and backbone to the still tower."""
    config = TrainConfig(
        steps=steps,
        learning_rate=1.5e-3,
        rates={"model.vision_tower": 0.0},
        warmup_steps=50,
        final_rate=1.0,
        save_every=100,
    )
    data = partial(ConversationDataset, model, sources=[scene_row] * 16, seed=2)
    return Stage("align", GroundingHeads, grounded_loss("late_mean", model), data, config)


def tune(model: ModelConfig, steps: int = 6600) -> Stage:
    """Train everything, the tower more gently."""
    config = TrainConfig(
        steps=steps,
        learning_rate=1.5e-3,
        rates={"model.vision_tower": 0.2},
        warmup_steps=50,
        final_rate=0.01,
        save_every=100,
    )
    data = partial(
        ConversationDataset, model, sources=[scene_row] * 14 + [easy_vqa_row] * 2, seed=3
    )
    return Stage("tune", GroundingHeads, grounded_loss("late_mean", model), data, config)


def spell(model: ModelConfig, steps: int = 2000, clips: int = 30_000) -> Stage:
    """Teach audio tower and connector to spell, 24 clips a step; the tower starts from Whisper's
    and moves slowly."""
    audio = model.audio
    assert audio is not None
    rates = {
        "model": 0.0,
        "model.audio_connector": 1.0,
        "model.audio_tower": 0.2,
        "model.backbone.lm_head": 0.5,
    }
    config = TrainConfig(
        steps=steps, learning_rate=1.5e-3, rates=rates, warmup_steps=200, save_every=200
    )

    def data(tokenizer_file: Path) -> SpeechDataset:
        speech = prepare(tokenizer_file.parent / "speech", audio.num_mels, clips)
        return SpeechDataset(speech, tokenizer_file, num_clips=24, seed=5)

    return Stage("spell", CtcHead, spelling_loss(model.tokens.eos), data, config)


def hear(model: ModelConfig, steps: int = 1200, clips: int = 30_000) -> Stage:
    """Go on with images, and learn to write down and understand speech; the audio tower stands
    still."""
    audio = model.audio
    assert audio is not None
    config = TrainConfig(
        steps=steps,
        learning_rate=7e-4,
        rates={"model.vision_tower": 0.2, "model.audio_tower": 0.0},
        warmup_steps=50,
        final_rate=0.01,
        save_every=100,
    )

    def data(tokenizer_file: Path) -> ConversationDataset:
        speech = prepare(tokenizer_file.parent / "speech", audio.num_mels, clips)
        sources = [scene_row] * 10 + [easy_vqa_row] + [SpokenRows(speech)] * 3
        return ConversationDataset(model, tokenizer_file, sources, seed=4)

    return Stage("hear", GroundingHeads, grounded_loss("late_mean", model), data, config)


def structure(model: ModelConfig, steps: int = 1200, clips: int = 30_000) -> Stage:
    """Go on with images and speech, and learn to fill in JSON about scenes."""
    audio = model.audio
    assert audio is not None
    config = replace(hear(model, steps, clips).config, learning_rate=5e-4, warmup_steps=20)

    def data(tokenizer_file: Path) -> ConversationDataset:
        speech = prepare(tokenizer_file.parent / "speech", audio.num_mels, clips)
        row = partial(scene_row, num_questions=3, num_hard=2, num_structured=2)
        sources = [row] * 8 + [easy_vqa_row] + [SpokenRows(speech, transcribe=0.3, refine=0.45)] * 2
        return ConversationDataset(model, tokenizer_file, sources, seed=9)

    return Stage("structure", GroundingHeads, grounded_loss("late_mean", model), data, config)


STAGES = (tower, align, tune, spell, hear, structure)


def corpus(num_scenes: int = 4000) -> Iterator[str]:
    """What the tokenizer learns from: questions, answers, captions and JSON of training scenes, and
    easy-VQA's text."""
    for seed in range(num_scenes):
        scene = random_scene(seed)
        rng = np.random.default_rng(seed)
        for qa in questions(scene, rng, 4):
            yield from (f"\n{qa.question}", qa.answer)
        yield from captions(scene).values()
        yield json.dumps(scene_json(scene))
        for said in (sentence(rng) for _ in range(3)):
            yield from (said, *(f"\n{part}" for part in heard_question(said, rng)))
        yield from ("user", "assistant", "system", "\n\n")
    for picture in easy_vqa.load("train"):
        for question, answer in picture.questions:
            yield from (f"\n{question}", answer)
    for prompts in CAPTION_PROMPTS.values():
        for prompt in prompts * 100:
            yield f"\n{prompt}"
    for prompt in (*TRANSCRIBE_PROMPTS, REFINE_PROMPT) * 100:
        yield f"\n{prompt}"
