"""Tune `tiny` into an adapter that fills in the JSON of spoken commands for a house.

Needs `pip install 'mmdiff[train]'`, and the voices of espeak-ng and flite for commands as they are
heard. On two cores it takes an hour and a half; stop it at any time, the same command goes on.
"""

import argparse
import json
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
from mmdiff.training.commands import command_row, heard_commands, part_row
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


def commands(model: ModelConfig, steps: int, folder: Path, spoken: int, precision: str) -> Stage:
    """What is adapted learns from written commands, from parts of them, and from transcripts."""
    config = TrainConfig(
        steps=steps,
        learning_rate=1.6e-3,
        rates={},
        warmup_steps=50,
        final_rate=0.01,
        save_every=250,
        mixed_precision=precision,
    )
    transcripts = heard_commands(folder, spoken)

    def data(tokenizer_file: Path) -> InTurn:
        whole = ConversationDataset(model, tokenizer_file, [command_row] * 16, seed=200)
        part = ConversationDataset(model, tokenizer_file, [part_row] * 32, seed=201)
        heard = ConversationDataset(model, tokenizer_file, [transcripts] * 16, seed=202)
        return InTurn([whole, part, heard, whole, part])

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
    # Settings at their defaults are left out, since other versions of PEFT do not know all of them.
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text())
    told = {name: value for name, value in settings.items() if value}
    file.write_text(json.dumps(told, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/commands"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--spoken", type=int, default=2000, help="commands that are read aloud")
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="no")
    options = parser.parse_args()

    torch.manual_seed(0)  # the adapter starts at random
    pipeline = mmdiff.load("tiny", dtype="float32")
    model = adapted(pipeline.model)
    config = pipeline.model.model_config
    stage = commands(
        config, options.steps, options.out / "heard", options.spoken, options.mixed_precision
    )
    data = stage.data(find("tiny") / "tokenizer.json")
    train(stage.wrap(model), stage.loss, data, stage.config, options.out / stage.name, stage.name)
    save(model, options.out / "adapter")
    print(f"the adapter is in {options.out / 'adapter'}")


if __name__ == "__main__":
    main()
