"""Named recipes: how the shipped model is made, stage by stage, all with the one loop.

`tower` teaches the vision tower with SigLIP's objective, `align` fits connector and backbone to the
still tower, `tune` trains everything on conversations. Each stage starts from the last one's
weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmdiff.audio.connector import count_tokens
from mmdiff.config import PRESETS, ModelConfig
from mmdiff.modeling.checkpoint import load_whisper, save_folder
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.training.datasets import (
    ConversationDataset,
    RegionTextDataset,
    Sounds,
    SpeechDataset,
    easy_vqa_row,
    scene_row,
)
from mmdiff.training.forward_process import MaskedBatch, draw_times, mask_tokens
from mmdiff.training.loop import Batch, Loss, TrainConfig, train
from mmdiff.training.losses import (
    WEIGHTINGS,
    Weighting,
    ctc_loss,
    fact_loss,
    masked_cross_entropy,
    region_text_loss,
)
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.questions import CAPTION_PROMPTS, FACTS, captions, questions
from mmdiff.training.tiny.scenes import random_scene, scene_json
from mmdiff.training.tiny.sentences import (
    REFINE_PROMPT,
    TRANSCRIBE_PROMPTS,
    heard_question,
    sentence,
)
from mmdiff.training.tiny.speech import prepare
from mmdiff.training.tiny.tokenizer import train_tokenizer, wrap_tokenizer
from mmdiff.training.tiny.whisper import whisper_tower
from mmdiff.vision.connector import build_connector

MODEL_INPUTS = (
    "attention_mask",
    "pixel_values",
    "image_sizes",
    "image_grids",
    "input_features",
    "feature_lengths",
    "position_ids",
    "segment_ids",
    "branch_ids",
)

GROUNDING = (
    2.0  # weight of the heads' loss, which the backbone needs most, beside that of the answers
)


class TowerTrainer(nn.Module):
    """The tower beside a small text encoder (a bag of words), which is thrown away afterwards.

    Shapes: X patches of all pictures, M phrases, T tokens, D width.
    """

    def __init__(self, model: MMDiffModel, width: int = 192) -> None:
        super().__init__()
        assert model.vision_tower is not None and model.model_config.vision is not None
        self.vision_tower: nn.Module = model.vision_tower
        # A tower from scratch learns shapes far sooner when neighbours have like positions from the
        # start.
        positions = self.vision_tower.get_parameter("embeddings.position_embedding.weight")
        with torch.no_grad():
            positions.copy_(waves(model.model_config.vision.patches_per_side, positions.shape[1]))
        self.project = nn.Linear(model.model_config.vision.hidden_size, width)
        self.words = nn.Embedding(model.model_config.backbone.vocab_size, width)
        self.text = build_connector(width, width)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, pixel_values: Tensor, phrase_ids: Tensor, phrase_mask: Tensor) -> Tensor:
        """Logits (X, M) of every patch with every phrase: scaled cosines and a bias, as in
        SigLIP."""
        words_MD = (self.words(phrase_ids) * phrase_mask[..., None]).sum(1)
        texts_MD = F.normalize(self.text(words_MD), dim=-1)
        patches_XD = F.normalize(
            self.project(self.vision_tower(pixel_values)).flatten(0, 1), dim=-1
        )
        return patches_XD @ texts_MD.T * self.log_scale.exp() + self.bias


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (side * side, width): SimpleViT's positions (arXiv
    2205.01580)."""
    frequencies = 100.0 ** -(torch.arange(width // 4) / (width // 4))  # radians per patch
    angles_SF = torch.arange(side)[:, None] * frequencies
    waves_SF = torch.cat((angles_SF.sin(), angles_SF.cos()), dim=1)
    rows_SSF = waves_SF[:, None].expand(side, side, -1)
    return 0.5 * torch.cat((rows_SSF, rows_SSF.transpose(0, 1)), dim=2).flatten(0, 1)


def contrastive_loss(
    model: nn.Module, batch: Batch, draws: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """SigLIP's loss between the patches of the pictures and the phrases of the batch."""
    logits_XM = model(batch["pixel_values"], batch["phrase_ids"], batch["phrase_mask"])
    owner_X = batch["owner"].flatten()
    return region_text_loss(logits_XM.float(), batch["truth"][owner_X], owner_X > 0)


class GroundingHeads(nn.Module):
    """The model with small heads that tell, where things are named, what is named; thrown away
    afterwards.

    From answers alone a small backbone takes very long to find the thing that a question is about:
    that needs two looks, from the answer to the name and from the name to the picture, and neither
    is of use without the other. The heads teach the second by itself.
    """

    def __init__(self, model: MMDiffModel) -> None:
        super().__init__()
        self.model = model
        width, layers = model.model_config.backbone.hidden_size, len(model.backbone.layers)
        self.layers = (
            layers // 2,
            layers - 1,
        )  # after so many of them; the last is left to the answers
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(FACTS.values())))
            for _ in self.layers
        )

    def forward(self, named: Tensor, **inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The model's logits, and of each head the logits (N, values of all facts) where `named`
        (B, T) is not 0."""
        hidden: list[Tensor] = []
        hooks = [
            self.model.backbone.layers[layer - 1].register_forward_hook(
                lambda _layer, _inputs, x: hidden.append(x)
            )
            for layer in self.layers
        ]
        try:
            logits = self.model(**inputs).logits
        finally:
            for hook in hooks:
                hook.remove()
        return logits, [head(x[named != 0]) for head, x in zip(self.heads, hidden, strict=True)]


class CtcHead(nn.Module):
    """Audio tower and connector with the backbone's head right behind them: each embedding learns
    to spell its part.

    These pass CTC's long beginning, in which nothing but blanks are written, far sooner than the
    whole model.
    """

    def __init__(self, model: MMDiffModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: Tensor, feature_lengths: Tensor) -> list[Tensor]:
        """Logits (embeddings, V) of each sound."""
        embeds = self.model.encode_audio(input_features, feature_lengths)
        return [
            self.model.backbone.lm_head(self.model.backbone.norm(embeds_TD)) for embeds_TD in embeds
        ]


def spelling_loss(blank: int) -> Loss:
    """CTC of a `CtcHead`."""

    def loss(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        rows = model(batch["input_features"], batch["feature_lengths"])
        return ctc_loss(torch.cat(rows), [len(row) for row in rows], batch["said"], blank), {}

    return loss


def denoising_loss(weighting: str, mask_id: int) -> Loss:
    """LLaDA's objective on packed conversations; `weighting` names a function of
    `losses.WEIGHTINGS`."""
    weigh = WEIGHTINGS[weighting]

    def loss(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        noisy, inputs = _hide(batch, draws, mask_id, weigh)
        return _denoising(model(**inputs).logits, batch, noisy, weigh)

    return loss


def grounded_loss(weighting: str, config: ModelConfig) -> Loss:
    """`denoising_loss` of a `GroundingHeads`, the loss of its heads, and that of the drafts at the
    embeddings of sounds."""
    weigh, tokens = WEIGHTINGS[weighting], config.tokens

    def loss(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        noisy, inputs = _hide(batch, draws, tokens.mask, weigh)
        sounds_BT = torch.eq(noisy.ids_BT, -1 if tokens.audio is None else tokens.audio)
        select_BT = inputs["select"] = noisy.masked_BT | sounds_BT
        logits_SV, told = model(batch["named"], **inputs)
        value, metrics = _denoising(logits_SV[noisy.masked_BT[select_BT]], batch, noisy, weigh)
        parts = [fact_loss(logits_NF, batch["facts"], list(FACTS.values())) for logits_NF in told]
        grounding = torch.stack([part for part, _ in parts]).mean()
        value, metrics = (
            value + GROUNDING * grounding,
            {**metrics, "grounding": grounding.item(), "told": parts[-1][1]},
        )
        if config.audio is not None and "said" in batch:
            counts = [
                count_tokens(frames, config.audio) for frames in batch["feature_lengths"].tolist()
            ]
            draft = ctc_loss(logits_SV[sounds_BT[select_BT]], counts, batch["said"], tokens.eos)
            value, metrics = value + draft, {**metrics, "draft": draft.item()}
        return value, metrics

    return loss


def _hide(
    batch: Batch, draws: torch.Generator, mask_id: int, weighting: Weighting
) -> tuple[MaskedBatch, dict[str, Tensor]]:
    """Tokens of the answers hidden, and the inputs that a model then gets."""
    labels_BT, branches_BT = batch["labels"], batch["branch_ids"]
    rows, answers = labels_BT.shape[0], int(branches_BT.max()) + 1
    t_BR = weighting.times(draw_times(rows, answers, draws)).to(labels_BT.device)
    u_BT = torch.rand(labels_BT.shape, generator=draws).to(labels_BT.device)
    noisy = mask_tokens(batch["input_ids"], labels_BT, t_BR.gather(1, branches_BT), u_BT, mask_id)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    return noisy, {"input_ids": noisy.ids_BT, "select": noisy.masked_BT, **inputs}


def _denoising(
    logits_SV: Tensor, batch: Batch, noisy: MaskedBatch, weigh: Weighting
) -> tuple[Tensor, dict[str, float]]:
    weights_BT = weigh(noisy, batch["labels"], batch["branch_ids"]) * batch["importance"]
    labels_S = batch["labels"][noisy.masked_BT]
    value = masked_cross_entropy(logits_SV, labels_S, weights_BT[noisy.masked_BT])
    real_S = batch["importance"][noisy.masked_BT] == 1.0
    right_S = logits_SV.detach().argmax(-1) == labels_S
    return value, {"right": right_S[real_S].float().mean().item()}


@dataclass(frozen=True)
class Stage:
    """One part of a recipe: what learns, from what, by which loss, and how."""

    name: str
    wrap: Callable[[MMDiffModel], nn.Module]
    loss: Loss
    data: Callable[[Path], Dataset[Batch]]  # given the tokenizer's file
    config: TrainConfig


def tower(model: ModelConfig, steps: int = 2600) -> Stage:
    """Teach the vision tower: 32 pictures and 103 phrases a step."""

    data = partial(RegionTextDataset, model, num_pictures=32, phrases_each=2, seed=1)
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
    """Go on with pictures, and learn to write down and understand speech; the audio tower stands
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
        sources = [scene_row] * 10 + [easy_vqa_row] + [Sounds(speech)] * 3
        return ConversationDataset(model, tokenizer_file, sources, seed=4)

    return Stage("hear", GroundingHeads, grounded_loss("late_mean", model), data, config)


def structure(model: ModelConfig, steps: int = 1200, clips: int = 30_000) -> Stage:
    """Go on with pictures and speech, and learn to fill in JSON about scenes."""
    audio = model.audio
    assert audio is not None
    config = replace(hear(model, steps, clips).config, learning_rate=5e-4, warmup_steps=20)

    def data(tokenizer_file: Path) -> ConversationDataset:
        speech = prepare(tokenizer_file.parent / "speech", audio.num_mels, clips)
        row = partial(scene_row, num_questions=3, num_hard=2, num_structured=2)
        sources = [row] * 8 + [easy_vqa_row] + [Sounds(speech, transcribe=0.3, refine=0.45)] * 2
        return ConversationDataset(model, tokenizer_file, sources, seed=9)

    return Stage("structure", GroundingHeads, grounded_loss("late_mean", model), data, config)


RECIPES: dict[str, tuple[Callable[..., Stage], ...]] = {
    "tiny": (tower, align, tune, spell, hear, structure)
}


def run(
    recipe: str, folder: Path, seed: int = 0, scale: float = 1.0, whisper: Path | None = None
) -> Path:
    """Run the stages of a recipe, going on where an earlier run in `folder` stopped.

    Args:
        scale: factor on every stage's number of steps, for a trial run.
        whisper: folder of a Whisper checkpoint whose encoder the audio tower starts from, instead
            of tiny.en's.

    Returns:
        the folder of the finished model, in bfloat16, with its tokenizer.
    """
    config = PRESETS[recipe]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(corpus(), config.backbone.vocab_size).save(str(tokenizer_file))
    torch.manual_seed(seed)
    tower = None
    if config.audio:
        kept = {
            name: getattr(config.audio, name)
            for name in ("frames_per_token", "segment_seconds", "ctc_drafts")
        }
        tower = load_whisper(whisper, **kept) if whisper else whisper_tower(config.audio)
        config = replace(config, audio=tower.config)
    model = MMDiffModel(MMDiffConfig.of(config))
    model.audio_tower = tower
    for make_stage in RECIPES[recipe]:
        stage = make_stage(config)
        settings = replace(stage.config, steps=max(1, round(scale * stage.config.steps)))
        train(
            stage.wrap(model),
            stage.loss,
            stage.data(tokenizer_file),
            settings,
            folder / stage.name,
            stage.name,
        )
    processor = MMDiffProcessor.of(wrap_tokenizer(Tokenizer.from_file(str(tokenizer_file))), config)
    save_folder(model.bfloat16(), processor, folder / "model")
    return folder / "model"


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
        yield from (f"\n{prompt}" for prompt in prompts * 100)
    yield from (f"\n{prompt}" for prompt in (*TRANSCRIBE_PROMPTS, REFINE_PROMPT) * 100)
