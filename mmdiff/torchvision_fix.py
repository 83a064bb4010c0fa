"""Let torchvision's CUDA build import beside a CPU-only torch.

The package index serves one torchvision build a platform. Next to a CPU-only torch it stops at
import, because two operators that its Python code describes are missing from its compiled part;
declaring their schemas is enough for everything mmdiff's towers use. Called before libraries that
import torchvision: transformers, timm, open_clip. Does nothing where torch has CUDA or ROCm.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[object] = []  # a library's declarations end with the object


def declare_operators() -> None:
    """Declare what torchvision lacks, once, where it is installed and does not fit torch."""
    if _kept or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    if _mismatched(Path(spec.origin).parent / "version.py"):
        _declare()


def _mismatched(version_file: Path) -> bool:
    if not version_file.exists() or "+cu" not in version_file.read_text():
        return False
    import torch

    return torch.version.cuda is None and torch.version.hip is None


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + SCHEMA)
    _kept.append(library)
