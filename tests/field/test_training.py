"""Public reports about training runs of other projects, each tried on us with an input of our
own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmdiff.errors import MMDiffError
from mmdiff.training.checkpoints import checkpoints
from mmdiff.training.datasets import read_row
from mmdiff.training.loop import Batch, TrainConfig, parameter_groups, train
from mmdiff.training.losses import WEIGHTINGS
from mmdiff.training.packing import Turn
from mmdiff.vision.image_io import open_image
from tests.helpers.media import encoded

CONFIG = TrainConfig(
    steps=6, learning_rate=1e-2, rates={}, warmup_steps=1, save_every=2, log_every=1, workers=0
)


class Adapted(nn.Module):
    """A layer with a low-rank adapter beside it, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.base, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1)
        self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.base(x) + self.lora_B(self.lora_A(x))))
        return y


class Numbers(Dataset[Batch]):
    def __getitem__(self, number: int) -> Batch:
        return {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(number))}


def plain(
    model: nn.Module, batch: Batch, draws: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    return model(batch["x"]).square().mean(), {}


def freeze(model: nn.Module, *learning: str) -> nn.Module:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(learning))
    return model


FROZEN = [
    # link, what may learn, rates
    ("https://github.com/microsoft/aurora/issues/167", ("lora",), {}),
    ("https://github.com/pytorch/torchtitan/issues/3438", ("lora",), {"norm": 1.0}),
    ("https://github.com/huggingface/transformers/issues/26098", ("lora_A",), {"lora": 1.0}),
    ("https://github.com/ai4colonoscopy/IntelliScope/issues/2", ("lora", "head"), {"base": 0.0}),
    ("https://github.com/huggingface/diffusers/pull/2245", ("head",), {"base": 0.5}),
    ("https://github.com/microsoft/LoRA/pull/125", ("lora_B", "norm"), {"": 1.0}),
]


@pytest.mark.parametrize(("link", "learning", "rates"), FROZEN)
def test_what_is_frozen_is_not_trained(
    tmp_path: Path, link: str, learning: tuple[str, ...], rates: dict[str, float]
) -> None:
    model = freeze(Adapted(), *learning)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(model, plain, Numbers(), replace(CONFIG, rates=rates), tmp_path, "adapted")
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert changed == {name for name in before if name.startswith(learning)}


def test_nothing_to_learn_is_told(tmp_path: Path) -> None:
    # https://github.com/tloen/alpaca-lora/issues/352
    with pytest.raises(MMDiffError, match="nothing can learn"):
        train(freeze(Adapted(), "nothing"), plain, Numbers(), CONFIG, tmp_path, "adapted")


def test_only_what_learns_is_in_the_optimizer() -> None:
    # https://github.com/pytorch/torchtitan/issues/3438
    groups = parameter_groups(freeze(Adapted(), "lora"), CONFIG)
    assert sum(len(group["params"]) for group in groups) == 2


DIVERGED = [
    # link, the step whose loss is no number, what the loss is then, the last good checkpoint
    ("https://github.com/Nerogar/OneTrainer/issues/1147", 4, torch.nan, "step-00000004"),
    ("https://github.com/Rikorose/DeepFilterNet/issues/30", 3, torch.nan, "step-00000002"),
    ("https://github.com/mlfoundations/open_lm/pull/7", 5, torch.inf, "step-00000004"),
    ("https://github.com/BVLC/caffe/pull/1479", 2, -torch.inf, "step-00000002"),
    ("https://github.com/skinniderlab/CLM/issues/284", 0, torch.nan, None),
    (
        "https://github.com/Lightning-AI/pytorch-lightning/issues/1008",
        5,
        torch.nan,
        "step-00000004",
    ),
]


@pytest.mark.parametrize(("link", "step", "factor", "last"), DIVERGED)
def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, link: str, step: int, factor: float, last: str | None
) -> None:
    calls = 0

    def diverging(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        nonlocal calls
        calls += 1
        value, metrics = plain(model, batch, draws)
        return value * (factor if calls > step else 1.0), metrics

    model = Adapted()
    with pytest.raises(MMDiffError, match=f"step {step + 1} "):
        train(model, diverging, Numbers(), CONFIG, tmp_path, "adapted")
    assert [path.name for path in checkpoints(tmp_path)][-1:] == ([last] if last else [])
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_weights_are_looked_at_before_they_are_saved(tmp_path: Path) -> None:
    # https://github.com/neoml-lib/neoml/issues/576
    def poisoning(
        model: nn.Module, batch: Batch, draws: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        value, metrics = plain(model, batch, draws)
        model.head.bias.data.fill_(torch.nan)
        return value, metrics

    with pytest.raises(MMDiffError, match="weights are not numbers"):
        train(Adapted(), poisoning, Numbers(), replace(CONFIG, steps=1), tmp_path, "adapted")
    assert not checkpoints(tmp_path)


def image_bytes(size: int = 32) -> bytes:
    return encoded(Image.effect_noise((size, size), 50).convert("RGB"))


DAMAGED: list[tuple[str, bytes | None, Any]] = [
    # link, what the file holds (None: it is missing), what opens it
    ("https://github.com/facebookresearch/detectron2/issues/143", image_bytes()[:700], Image.open),
    ("https://github.com/eg4000/SKU110K_CVPR19/issues/23", image_bytes()[:60], Image.open),
    ("https://github.com/lucidrains/DALLE-pytorch/issues/195", b"", Image.open),
    ("https://github.com/python-pillow/Pillow/issues/4678", b"<html>not found</html>", Image.open),
    ("https://github.com/rom1504/clip-retrieval/pull/13", image_bytes()[:-40], open_image),
    ("https://github.com/microsoft/Biodiversity/pull/658", b"hello", open_image),
    ("https://github.com/lucidrains/gigagan-pytorch/pull/27", None, open_image),
]


@pytest.mark.parametrize(("link", "content", "opened_by"), DAMAGED)
def test_one_damaged_image_does_not_end_a_run(
    tmp_path: Path, link: str, content: bytes | None, opened_by: Any
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(image_bytes())
    if content is not None:
        bad.write_bytes(content)
    paths = iter([bad, bad, good])
    row, skipped = read_row(
        lambda rng: (opened_by(next(paths)), [Turn("what?", "it")]), np.random.default_rng(0)
    )
    assert row[0] is not None and row[0].size == (32, 32) and len(skipped) == 2


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    # https://github.com/pytorch/vision/issues/485
    (tmp_path / "bad.png").write_bytes(b"hello")
    good = Image.new("RGB", (8, 8))
    sources = iter([lambda: open_image(tmp_path / "bad.png"), lambda: good])
    _, skipped = read_row(lambda rng: (next(sources)(), []), np.random.default_rng(0))
    assert "bad.png" in skipped[0]


def test_the_published_weighting_is_that_of_the_rate() -> None:
    # https://github.com/inclusionAI/dFactory/issues/17: a plain mean is another objective, and is
    # called so
    assert [name for name, weighting in WEIGHTINGS.items() if weighting.bound] == [
        "pretraining",
        "response",
    ]
    times = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert all(
        torch.equal(WEIGHTINGS[name].times(times), times)
        for name in ("pretraining", "response", "mean")
    )
