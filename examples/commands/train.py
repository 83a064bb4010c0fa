"""Tune `tiny` into an adapter that fills in the JSON of spoken commands for a house.

Needs `pip install 'mmdiff[train]' peft`, and the voices espeak-ng and flite for what is learned by
sound. On one core it takes about an hour; stop it at any time, the same command goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

import mmdiff
from mmdiff.config import ModelConfig
from mmdiff.modeling.hub import find
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.training.batches import TrainingBatch
from mmdiff.training.commands import SpokenCommands, command_row, part_row
from mmdiff.training.datasets import ConversationDataset
from mmdiff.training.loop import TrainConfig, train
from mmdiff.training.objectives import Stage, denoising_loss

RANK = 64


class InTurn(Dataset[TrainingBatch]):
    """Batches of several kinds by turns, each with rows of about one length."""

    def __init__(self, turns: Sequence[ConversationDataset]) -> None:
        self.turns = turns

    def __getitem__(self, number: int) -> TrainingBatch:
        return self.turns[number % len(self.turns)][number]


def commands(model: ModelConfig, steps: int, clips: Path, spoken: int) -> Stage:
    """What is adapted learns from written commands, from parts of them, and from spoken ones."""
    assert model.audio is not None
    config = TrainConfig(
        steps=steps,
        learning_rate=1.6e-3,
        rates={},
        warmup_steps=50,
        final_rate=0.01,
        save_every=100,
    )
    heard = SpokenCommands(clips, spoken).prepare(model.audio.num_mels)

    def data(tokenizer_file: Path) -> InTurn:
        whole = ConversationDataset(model, tokenizer_file, [command_row] * 16, seed=200)
        part = ConversationDataset(model, tokenizer_file, [part_row] * 32, seed=201)
        sound = ConversationDataset(model, tokenizer_file, [heard] * 16, seed=202)
        return InTurn([whole, part, whole, part, sound, whole, part, whole, part, whole])

    return Stage(
        "commands", lambda whole: whole, denoising_loss("one_step", model.tokens.mask), data, config
    )


def adapted(model: MMDiffModel) -> Any:
    """The model with what is to learn: LoRA on the backbone's layers, and the words' embeddings."""
    from peft import LoraConfig, get_peft_model

    words = ["embed_tokens", "lm_head"]
    lora = LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules=r"backbone\.layers\..*_proj", modules_to_save=words
    )
    made = get_peft_model(model, lora)
    made.peft_config["default"].base_model_name_or_path = "tiny"
    return made


def save(model: Any, folder: Path) -> None:
    """What was learned alone, in float16."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    model.save_pretrained(str(folder), save_embedding_layers=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/commands"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--spoken", type=int, default=1500, help="clips to learn from by sound")
    options = parser.parse_args()

    torch.manual_seed(0)  # the adapter starts at random
    pipeline = mmdiff.load("tiny", dtype="float32")
    model = adapted(pipeline.model)
    config = pipeline.model.model_config
    stage = commands(config, options.steps, options.out / "clips", options.spoken)
    data = stage.data(find("tiny") / "tokenizer.json")
    train(stage.wrap(model), stage.loss, data, stage.config, options.out / stage.name, stage.name)
    save(model, options.out / "adapter")
    print(f"the adapter is in {options.out / 'adapter'}")


if __name__ == "__main__":
    main()
