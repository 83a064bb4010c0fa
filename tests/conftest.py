"""What every test stands on: one thread a worker, no hub, and the published implementations'
numbers."""

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mmdiff import torchvision_fix
from tests.helpers import programs

if TYPE_CHECKING:
    from mmdiff.modeling.multimodal import MMDiffModel
    from mmdiff.pipeline import Pipeline
    from tests.helpers.serving import Served

# Before anything imports PyTorch: two test workers share two cores, and no test may fetch a model.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
torchvision_fix.declare_operators()  # before tests import what imports torchvision


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bare",
        action="store_true",
        help="run as on a machine with nothing but Python, pip and git",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--bare"):
        folder = tempfile.TemporaryDirectory(prefix="bare-")
        config.add_cleanup(folder.cleanup)
        programs.hide(Path(folder.name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests want a program that is not here, and what to install for them."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = [report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)]
    if line := programs.advice(reasons):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder with pyproject.toml."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def reference(root: Path) -> Path:
    """Tiny random models with the outputs of the published implementations; see the README
    there."""
    return root / "tests" / "reference"


@pytest.fixture(scope="session")
def llada_v(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> "MMDiffModel":
    """The tiny LLaDA-V, loaded as any published folder; its small vocabulary makes config.json name
    the special ids."""
    from mmdiff.modeling.checkpoint import CheckpointTensors, config_of, load_weights
    from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel

    folder = tmp_path_factory.mktemp("llada-v")
    for path in (reference / "llada-v").iterdir():
        (folder / path.name).symlink_to(path)
    ids = {"mask_token_id": 500, "eot_token_id": 505, "image_token_id": 510}
    published = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**published, **ids}))
    config = config_of(folder)
    tokens = dataclasses.replace(config.tokens, never=(501, 502, 503, 504))
    model = MMDiffModel(MMDiffConfig.of(dataclasses.replace(config, tokens=tokens))).eval()
    load_weights(model, CheckpointTensors(folder))
    return model


@pytest.fixture(scope="session")
def random_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sizes of `tiny`, random weights and a tokenizer learned from a few
    sentences."""
    import torch

    from mmdiff.config import PRESETS
    from mmdiff.modeling.checkpoint import save_folder
    from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
    from mmdiff.modeling.processor import MMDiffProcessor
    from mmdiff.training.tiny.tokenizer import train_tokenizer, wrap_tokenizer

    folder = tmp_path_factory.mktemp("random-tiny")
    torch.manual_seed(0)
    model = MMDiffModel(MMDiffConfig.of(PRESETS["tiny"])).bfloat16()
    texts = [
        "user",
        "assistant",
        "system",
        "\n\n",
        "what color is the circle?",
        "a small red star",
    ] * 3
    tokenizer = wrap_tokenizer(train_tokenizer(texts, PRESETS["tiny"].backbone.vocab_size))
    save_folder(model, MMDiffProcessor.of(tokenizer, PRESETS["tiny"]), folder)
    return folder


@pytest.fixture(scope="session")
def endless(random_tiny: Path) -> "Pipeline":
    """Segment-causal, with random weights that never choose an end, so every position counts."""
    from mmdiff.pipeline import load

    loaded = load(random_tiny, device="cpu")
    settings = loaded.model.model_config
    ends = (settings.tokens.eos, settings.tokens.eot)
    tokens = dataclasses.replace(settings.tokens, never=(*settings.tokens.never, *ends))
    loaded.model.model_config = dataclasses.replace(settings, tokens=tokens)
    loaded.model.backbone.lm_head.weight.data *= (
        8  # scores far enough apart that rounding does not reorder them
    )
    return loaded


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Served"]:
    """A server with the defaults, in a process of its own."""
    from tests.helpers.serving import Served  # of tests/serve

    served = Served(tmp_path_factory.mktemp("served") / "log")
    yield served
    numbers = served.settle()
    assert numbers["mmdiff_engine_restarts_total"] == 0
    assert served.stop() == 0
    log = served.log.read_text()
    assert re.findall(r"Traceback(?:.*\n){1,40}|0x[0-9a-f]{6,}", log) == []
