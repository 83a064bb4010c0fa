"""Fine-tune a model on images and questions of your own, beside generated ones so that it forgets
less.

Put your images, questions and answers into `ROWS`. Needs `pip install 'mmdiff[train]'`.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np

import mmdiff
from mmdiff.config import ModelConfig
from mmdiff.modeling.checkpoint import save_folder
from mmdiff.modeling.hub import find
from mmdiff.training.datasets import ConversationDataset, scene_row
from mmdiff.training.loop import TrainConfig, train
from mmdiff.training.objectives import Stage, denoising_loss
from mmdiff.training.packing import Row, Turn
from mmdiff.vision.image_io import open_image

IMAGES = Path(__file__).parent
ROWS = [
    ("shapes.png", [Turn("which picture is this?", "a red circle and its friends")]),
    ("busy.png", [Turn("which picture is this?", "the crowded one")]),
]


def my_row(rng: np.random.Generator) -> Row:
    """One of my images with its questions and answers; only `rng` decides which, so a run can be
    repeated."""
    name, turns = ROWS[int(rng.integers(len(ROWS)))]
    return open_image(IMAGES / name), turns


def mine(model: ModelConfig, steps: int) -> Stage:
    """All of the model learns, the vision encoder at a fifth of the rate."""
    config = TrainConfig(
        steps=steps, learning_rate=3e-4, rates={"vision_tower": 0.2}, warmup_steps=10
    )
    data = partial(ConversationDataset, model, sources=[my_row] * 4 + [scene_row] * 4, seed=100)
    return Stage(
        "mine", lambda whole: whole, denoising_loss("late_mean", model.tokens.mask), data, config
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/mine"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    pipeline = mmdiff.load(options.model, dtype="float32")
    stage = mine(pipeline.model.model_config, options.steps)
    data = stage.data(find(options.model) / "tokenizer.json")
    train(
        stage.wrap(pipeline.model),
        stage.loss,
        data,
        stage.config,
        options.out / stage.name,
        stage.name,
    )
    save_folder(pipeline.model.bfloat16(), pipeline.processor, options.out / "model")
    print(f"the model is in {options.out / 'model'}")


if __name__ == "__main__":
    main()
