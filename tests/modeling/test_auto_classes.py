"""After `import mmdiff`, whatever was imported first, transformers' Auto classes give its model and
processor."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmdiff.modeling.multimodal import MMDiffModel, MMDiffOutput
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.pipeline import load

CHECK = """
p = AutoProcessor.from_pretrained({folder!r})
from PIL import Image
batch = p(text="<|image|> hello", images=Image.new("RGB", (8, 8)))
print(type(p).__name__, sorted(batch))
"""
WANTED = (
    "MMDiffProcessor ['attention_mask', 'image_grids', 'image_sizes', 'input_ids', 'pixel_values']"
)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import mmdiff\nassert 'transformers' not in sys.modules\nfrom transformers import AutoProcessor",
        pytest.param(
            "from transformers import AutoConfig\nimport mmdiff\nfrom transformers import AutoProcessor",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_images_are_never_left_out(random_tiny: Path, imports: str) -> None:
    assert run("import sys\n" + imports + CHECK.format(folder=str(random_tiny))) == WANTED


def test_the_model_is_one_that_reads_images(random_tiny: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(random_tiny, dtype=torch.float32)
    assert isinstance(model, MMDiffModel)
    assert isinstance(AutoProcessor.from_pretrained(random_tiny), MMDiffProcessor)


def test_a_compiled_model_gives_the_same(random_tiny: Path) -> None:
    model = load(random_tiny, device="cpu").model
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        wanted, got = model(ids), torch.compile(model, backend="eager")(ids)
    assert isinstance(got, MMDiffOutput)
    torch.testing.assert_close(got.logits, wanted.logits)
    assert (
        wanted[0] is wanted.logits
        and wanted["logits"] is wanted.logits
        and tuple(wanted) == ("logits",)
    )
