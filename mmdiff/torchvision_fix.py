"""Let torchvision's CUDA build import beside a CPU-only torch.

The package index serves one torchvision build a platform. Next to a CPU-only torch it stops at
import, because two operators that its Python code describes are missing from its compiled part;
declaring their schemas is enough for everything mmdiff's towers use. Inert where torch has CUDA or
ROCm, and where torchvision is never imported.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[object] = []  # a library's declarations end with the object


class _Finder:
    """Finds nothing; declares the operators the moment torchvision is first asked for.

    A meta path finder, but not by name: the import of `importlib.abc` would take longer than that
    of this package.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(fullname, path)
            if (
                spec is not None
                and spec.origin is not None
                and _mismatched(Path(spec.origin).parent / "version.py")
            ):
                _declare()
        return None


def install() -> None:
    """Watch for the first import of torchvision; costs nothing until then."""
    if "torchvision" not in sys.modules and not any(
        isinstance(finder, _Finder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _Finder())


def _mismatched(version_file: Path) -> bool:
    import torch

    cpu_only = torch.version.cuda is None and torch.version.hip is None
    return cpu_only and version_file.exists() and "+cu" in version_file.read_text()


def _declare() -> None:
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + SCHEMA)
    _kept.append(library)
