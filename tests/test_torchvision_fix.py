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


def test_torchvision_imports() -> None:
    assert (
        run(
            "import mmdiff, torchvision, torchvision.transforms.v2, torch\n"
            "print(torchvision.__name__, hasattr(torch.ops.torchvision, 'nms'))"
        )
        == "torchvision True"
    )


def test_nothing_happens_until_then() -> None:
    assert (
        run(
            "from mmdiff import torchvision_fix\n"
            "import sys\n"
            "torchvision_fix.install(); torchvision_fix.install()\n"
            "print(sum(isinstance(f, torchvision_fix._Finder) for f in sys.meta_path), 'torch' in sys.modules)"
        )
        == "1 False"
    )


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
