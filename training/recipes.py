"""Named recipes: models made stage by stage, all with the one loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from mmdiff.config import PRESETS
from mmdiff.modeling.checkpoint import load_whisper, save_folder
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.training.loop import train
from mmdiff.training.objectives import Stage
from mmdiff.training.tiny import recipe as tiny
from mmdiff.training.tiny.tokenizer import train_tokenizer, wrap_tokenizer
from mmdiff.training.tiny.whisper import whisper_tower

RECIPES: dict[str, tuple[Callable[..., Stage], ...]] = {"tiny": tiny.STAGES}


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
        train_tokenizer(tiny.corpus(), config.backbone.vocab_size).save(str(tokenizer_file))
    torch.manual_seed(seed)
    tower = None
    if config.audio:
        kept = {}
        for name in ("frames_per_token", "segment_seconds", "ctc_drafts"):
            kept[name] = getattr(config.audio, name)
        if whisper:
            tower = load_whisper(whisper, **kept)
        else:
            tower = whisper_tower(config.audio)
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
