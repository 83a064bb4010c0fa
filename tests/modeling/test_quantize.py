"""Fewer bits: smaller, close to the full weights, and refused in one sentence where they do not
fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from mmdiff.errors import MMDiffError
from mmdiff.pipeline import load


def weight_bytes(model: nn.Module) -> int:
    """What all weights take, with the scales of those in 4 bits."""
    states = [
        state
        for weight in model.parameters()
        if (state := getattr(weight, "quant_state", None)) is not None
    ]
    return sum(each.nbytes for each in (*model.parameters(), *(state.absmax for state in states)))


@pytest.mark.parametrize(("bits", "smaller", "near"), [("8bit", 3.5, 0.05), ("4bit", 6.0, 0.3)])
def test_layers_are_smaller_and_logits_close(
    random_tiny: Path, bits: Any, smaller: float, near: float
) -> None:
    full, small = load(random_tiny, device="cpu"), load(random_tiny, device="cpu", quantize=bits)
    layers, fewer = full.model.backbone.layers, small.model.backbone.layers
    assert weight_bytes(layers) / weight_bytes(fewer) > smaller
    ids = torch.arange(10, 40)[None]
    with torch.inference_mode():
        wanted, got = full.model(ids).logits, small.model(ids).logits
    assert 0 < (wanted - got).abs().mean() < near * wanted.abs().mean()
    assert small.ask(Image.new("RGB", (50, 50), "red"), "what is it?").steps >= 1


def test_what_does_not_fit_is_refused(random_tiny: Path) -> None:
    with pytest.raises(MMDiffError, match="quantize='2bit' is not known; use 8bit or 4bit"):
        load(random_tiny, quantize="2bit")  # type: ignore[arg-type]
    with pytest.raises(MMDiffError, match="do not go together"):
        load(random_tiny, quantize="4bit", device_map="auto")


def test_a_quantized_model_is_not_saved(random_tiny: Path, tmp_path: Path) -> None:
    """Nothing could load it; the folder is left as it was."""
    from mmdiff.modeling.checkpoint import save_folder

    small = load(random_tiny, device="cpu", quantize="8bit")
    for save in (
        lambda: save_folder(small.model, small.processor, tmp_path / "new"),
        lambda: small.model.save_pretrained(tmp_path / "new"),
    ):
        with pytest.raises(MMDiffError, match="layers in 8 or 4 bits is not saved"):
            save()
    assert not (tmp_path / "new").exists()
