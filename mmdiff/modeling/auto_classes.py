"""After `import mmdiff`, transformers' Auto classes know its model, and neither package is imported
for it.

Our classes register themselves where they are defined. Here a finder waits for the modules of the
Auto classes, and imports ours behind them. Without it AutoProcessor would take a folder of ours for
one of a tokenizer alone, and leave out images without a word.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

from mmdiff import torchvision_fix

AUTO = "transformers.models.auto."
REGISTERED_BY = {
    AUTO + "configuration_auto": "mmdiff.modeling.auto_config",
    AUTO + "modeling_auto": "mmdiff.modeling.multimodal",
    AUTO + "processing_auto": "mmdiff.modeling.processor",
}


class _Finder:
    """Finds the modules of the Auto classes as always, and imports ours when they have run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in REGISTERED_BY:
            return None
        torchvision_fix.declare_operators()  # transformers' modules for images import torchvision
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                importlib.import_module(REGISTERED_BY[fullname])

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now what transformers has imported already, and the rest when it does."""
    for auto, ours in REGISTERED_BY.items():
        if auto in sys.modules:
            importlib.import_module(ours)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
