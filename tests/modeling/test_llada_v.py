"""Pictures through the whole published model: embeddings' place, logits and answers of every
reference case."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmdiff.config import DecodingConfig
from mmdiff.decoding.canvas import Canvas
from mmdiff.decoding.model_runner import ModelRunner
from mmdiff.decoding.sampler import denoise
from mmdiff.modeling.multimodal import MMDiffModel
from mmdiff.vision.image_io import open_image
from mmdiff.vision.preprocess import count_tokens, make_views

CASES = json.loads(
    (Path(__file__).parents[1] / "reference" / "llada-v" / "cases.json").read_text()
)["cases"]


def inputs(model: MMDiffModel, folder: Path, case: dict[str, Any]) -> dict[str, torch.Tensor]:
    vision, image_id = model.model_config.vision, model.model_config.tokens.image
    assert vision is not None and image_id is not None
    views = make_views(open_image(folder / case["image"]), vision)
    count = count_tokens(views.size, vision)
    assert count == case["tokens"]
    ids = [
        token
        for part in case["prompt"]
        for token in ([image_id] * count if part == -200 else [part])
    ]
    return {
        "input_ids": torch.tensor([ids]),
        "pixel_values": views.pixels_V3HW,
        "image_sizes": torch.tensor([views.size]),
        "image_grids": torch.tensor([views.grid]),
    }


@pytest.mark.parametrize("case", CASES, ids=[case["image"] for case in CASES])
def test_logits_and_answers(llada_v: MMDiffModel, reference: Path, case: dict[str, Any]) -> None:
    folder, number = reference / "llada-v", Path(case["image"]).stem
    batch = inputs(llada_v, folder, case)
    expected = load_file(folder / "outputs.safetensors")[f"{number}.logits_last16"]
    last = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    last[:, -16:] = True
    with torch.no_grad():
        logits = llada_v(**batch, select=last).logits
        prompted = ModelRunner(llada_v, **batch)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    tokens = llada_v.model_config.tokens
    for run in case["generate"]:
        decoding = DecodingConfig(run["gen_length"], run["block_length"], run["steps"])
        *_, canvas = denoise(
            prompted, Canvas.blank(1, run["gen_length"], tokens.mask), decoding, tokens
        )
        assert canvas.token_ids((tokens.eot,))[0] == run["output"]
