"""mmdiff answers questions about pictures with a masked-diffusion language model.

`mmdiff.load("tiny")` gives a pipeline with `.ask(image, question)` and `.caption(image)`. Importing
this package is
cheap: PyTorch and its relatives come with the first use of `load`.
"""

from typing import TYPE_CHECKING, Any

from mmdiff import torchvision_fix
from mmdiff.modeling import auto_classes

if TYPE_CHECKING:
    from mmdiff.pipeline import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

torchvision_fix.install()  # before anything can import torchvision; does nothing until then


def __getattr__(name: str) -> Any:
    if name == "load":
        from mmdiff.pipeline import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# last: where transformers is imported already, this imports what stands on all above
auto_classes.install()
