"""What the stages of a recipe are made of: models with heads that only training needs, and losses
on them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmdiff.audio.connector import count_tokens
from mmdiff.config import ModelConfig
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.training.batches import TrainingBatch
from mmdiff.training.forward_process import MaskedBatch, draw_times, mask_tokens
from mmdiff.training.loop import Loss, TrainConfig
from mmdiff.training.losses import (
    WEIGHTINGS,
    Weighting,
    ctc_loss,
    fact_loss,
    masked_cross_entropy,
    region_text_loss,
)
from mmdiff.training.tiny.questions import FACTS
from mmdiff.vision.connector import build_connector

ModelInput = Literal[
    "attention_mask",
    "pixel_values",
    "image_sizes",
    "image_grids",
    "input_features",
    "feature_lengths",
    "position_ids",
    "segment_ids",
    "branch_ids",
]
MODEL_INPUTS: tuple[ModelInput, ...] = get_args(ModelInput)

# Weight of the heads' loss, which the backbone needs most, beside that of the answers.
GROUNDING = 2.0


class TowerTrainer(nn.Module):
    """The tower beside a small text encoder (a bag of words), which is thrown away afterwards.

    Shapes: X patches of all images, M phrases, T tokens, D width.
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
    model: nn.Module, batch: TrainingBatch, draws: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """SigLIP's loss between the patches of the images and the phrases of the batch."""
    logits_XM = model(batch["pixel_values"], batch["phrase_ids"], batch["phrase_mask"])
    owner_X = batch["owner"].flatten()
    return region_text_loss(logits_XM.float(), batch["truth"][owner_X], owner_X > 0)


class GroundingHeads(nn.Module):
    """The model with small heads that tell, where things are named, what is named; thrown away
    afterwards.

    From answers alone a small backbone takes very long to find the thing that a question is about:
    that needs two looks, from the answer to the name and from the name to the image, and neither
    is of use without the other. The heads teach the second by itself.
    """

    def __init__(self, model: MMDiffModel) -> None:
        super().__init__()
        self.model = model
        width, layers = model.model_config.backbone.hidden_size, len(model.backbone.layers)
        # Behind these, counted from 1; the last is left to the answers.
        self.layers = (layers // 2, layers - 1)
        self.heads = nn.ModuleList()
        for _ in self.layers:
            head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(FACTS.values())))
            self.heads.append(head)

    def forward(self, named: Tensor, **inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The model's logits, and of each head the logits (N, values of all facts) where `named`
        (B, T) is not 0."""
        hidden: list[Tensor] = []
        hooks = []
        for number in self.layers:
            layer = self.model.backbone.layers[number - 1]
            hooks.append(layer.register_forward_hook(lambda _layer, _inputs, x: hidden.append(x)))
        try:
            logits = self.model(**inputs).logits
        finally:
            for hook in hooks:
                hook.remove()
        told = []
        for head, x in zip(self.heads, hidden, strict=True):
            told.append(head(x[named != 0]))  # only where something is named
        return logits, told


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
        """Logits (embeddings, V) of each clip."""
        embeds = self.model.encode_audio(input_features, feature_lengths)
        found = []
        for embeds_TD in embeds:
            found.append(self.model.backbone.lm_head(self.model.backbone.norm(embeds_TD)))
        return found


def spelling_loss(blank: int) -> Loss[TrainingBatch]:
    """CTC of a `CtcHead`."""

    def loss(
        model: nn.Module, batch: TrainingBatch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        rows = model(batch["input_features"], batch["feature_lengths"])
        return ctc_loss(torch.cat(rows), [len(row) for row in rows], batch["said"], blank), {}

    return loss


def denoising_loss(weighting: str, mask_id: int) -> Loss[TrainingBatch]:
    """LLaDA's objective on packed conversations; `weighting` names a function of
    `losses.WEIGHTINGS`."""
    weigh = WEIGHTINGS[weighting]

    def loss(
        model: nn.Module, batch: TrainingBatch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        noisy, inputs = _hide(batch, draws, mask_id, weigh)
        return _denoising(model(**inputs).logits, batch, noisy, weigh)

    return loss


def grounded_loss(weighting: str, config: ModelConfig) -> Loss[TrainingBatch]:
    """`denoising_loss` of a `GroundingHeads`, the loss of its heads, and CTC at the embeddings of
    audio."""
    weigh, tokens = WEIGHTINGS[weighting], config.tokens

    def loss(
        model: nn.Module, batch: TrainingBatch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        noisy, inputs = _hide(batch, draws, tokens.mask, weigh)
        audio_BT = torch.zeros_like(noisy.masked_BT)
        if tokens.audio is not None:
            audio_BT = noisy.ids_BT == tokens.audio
        select_BT = inputs["select"] = noisy.masked_BT | audio_BT
        logits_SV, told = model(batch["named"], **inputs)
        value, metrics = _denoising(logits_SV[noisy.masked_BT[select_BT]], batch, noisy, weigh)
        parts = []
        for logits_NF in told:
            parts.append(fact_loss(logits_NF, batch["facts"], list(FACTS.values())))
        grounding = torch.stack([part for part, _ in parts]).mean()
        value = value + GROUNDING * grounding
        metrics |= {"grounding": grounding.item(), "told": parts[-1][1]}
        if config.audio is not None and "said" in batch:
            counts = []
            for frames in batch["feature_lengths"].tolist():
                counts.append(count_tokens(frames, config.audio))
            ctc = ctc_loss(logits_SV[audio_BT[select_BT]], counts, batch["said"], tokens.eos)
            value = value + ctc
            metrics["draft"] = ctc.item()
        return value, metrics

    return loss


def _hide(
    batch: TrainingBatch, draws: torch.Generator, mask_id: int, weighting: Weighting
) -> tuple[MaskedBatch, dict[str, Tensor]]:
    """Tokens of the answers hidden, and the inputs that a model then gets."""
    labels_BT, branches_BT = batch["labels"], batch["branch_ids"]
    rows, answers = labels_BT.shape[0], int(branches_BT.max()) + 1
    t_BR = weighting.times(draw_times(rows, answers, draws)).to(labels_BT.device)
    u_BT = torch.rand(labels_BT.shape, generator=draws).to(labels_BT.device)
    noisy = mask_tokens(batch["input_ids"], labels_BT, t_BR.gather(1, branches_BT), u_BT, mask_id)
    inputs: dict[str, Tensor] = {}
    for name in MODEL_INPUTS:
        if name in batch:
            inputs[name] = batch[name]
    return noisy, {"input_ids": noisy.ids_BT, "select": noisy.masked_BT, **inputs}


def _denoising(
    logits_SV: Tensor, batch: TrainingBatch, noisy: MaskedBatch, weigh: Weighting
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
    loss: Loss[TrainingBatch]
    data: Callable[[Path], Dataset[TrainingBatch]]  # given the tokenizer's file
    config: TrainConfig
