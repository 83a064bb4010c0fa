"""mmdiff answers questions about images with a masked-diffusion language model.

`mmdiff.load("tiny")` gives a pipeline with `.ask(image, question)` and `.caption(image)`. Importing
this package is cheap: PyTorch and its relatives come with the first use of `load`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mmdiff.modeling import auto_classes

if TYPE_CHECKING:
    from mmdiff.answers import Answer, Draft, Extraction, Token
    from mmdiff.errors import MMDiffError
    from mmdiff.pipeline import Pipeline, load
    from mmdiff.transcript import Transcript

__version__ = "0.1.0"
_PUBLIC = {  # what users import from here, by the file that it is in
    "Answer": "answers",
    "Draft": "answers",
    "Extraction": "answers",
    "MMDiffError": "errors",
    "Pipeline": "pipeline",
    "Token": "answers",
    "Transcript": "transcript",
    "load": "pipeline",
}
__all__ = [
    "Answer",
    "Draft",
    "Extraction",
    "MMDiffError",
    "Pipeline",
    "Token",
    "Transcript",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"mmdiff.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# last: where transformers is imported already, this imports what stands on all above
auto_classes.install()
