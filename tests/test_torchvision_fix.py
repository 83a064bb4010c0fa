"""Importing torchvision beside any torch: in fresh interpreters, because imports cannot be
undone."""

import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.torchvision_fix import _mismatched


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "first",
    [
        "from mmdiff import torchvision_fix\ntorchvision_fix.declare_operators()",
        "from transformers import AutoProcessor",
        "from mmdiff.modeling import multimodal",
        "from mmdiff.vision.tower import BUILDERS\nfrom mmdiff.config import PRESETS\n"
        "import dataclasses\nBUILDERS['timm'](dataclasses.replace(PRESETS['tiny'].vision))",
        "from mmdiff.audio.tower import WhisperTower\nfrom mmdiff.config import PRESETS\n"
        "WhisperTower(PRESETS['tiny'].audio)",
    ],
)
def test_torchvision_imports(first: str) -> None:
    checked = (
        "import torchvision.transforms.v2, torch\nprint(hasattr(torch.ops.torchvision, 'nms'))"
    )
    assert run(f"import mmdiff\n{first}\n{checked}") == "True"


def test_nothing_is_hooked_and_nothing_heavy_imported() -> None:
    """mmdiff's one finder waits for transformers' Auto classes; torchvision is not waited for."""
    code = (
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "import mmdiff\n"
        "new = [type(f).__module__ for f in sys.meta_path if f not in before]\n"
        "print(new, {'torch', 'torchvision'} & sys.modules.keys())"
    )
    assert run(code) == "['mmdiff.modeling.auto_classes'] set()"


@pytest.mark.parametrize(
    ("version", "cuda"), [("0.28.0+cpu", None), ("0.28.0+cu130", "13.0"), ("0.28.0", None)]
)
def test_other_pairs_are_left_alone(
    version: str, cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.version.cuda", cuda)
    (tmp_path / "version.py").write_text(f"__version__ = '{version}'\n")
    assert not _mismatched(tmp_path / "version.py")


def test_the_pair_that_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setattr("torch.version.hip", None)
    (tmp_path / "version.py").write_text("__version__ = '0.28.0+cu130'\n")
    assert _mismatched(tmp_path / "version.py")
    assert not _mismatched(tmp_path / "absent.py")
