"""Whether a model still computes what it computed before, so that what was kept of it can be used.

PyTorch counts in-place changes of a tensor, but writes through `.data` (as adapters are merged),
fused optimizers and NumPy views go by uncounted. So besides the counters a few numbers of every
tensor are compared, at least one of each row. Single numbers that are changed in such a way in a
large row are not seen; `Pipeline.clear` is for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

MOST = 1 << 17  # numbers compared of one tensor
_OWN = frozenset(nn.Module().__dict__)  # what every module has
_SETTLED = ("torch.nn.", "mmdiff.")  # where modules come from whose attributes are their sizes
_INTEGERS = {
    1: torch.int8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
}  # by bytes: equal also where not a number
Kind = tuple[torch.device, torch.dtype]


class WeightsVersion:
    """Counts how often a model was found to be another one than before."""

    def __init__(self) -> None:
        self._state = _State(0, [], {}, {})

    def of(self, model: nn.Module) -> int:
        """The same number as long as weights, adapters, hooks and settings are what they were."""
        before, (marks, tensors) = self._state, _marks(model)
        views = before.views if marks == before.marks else _views(tensors)
        samples = _read(views)
        if views is before.views and all(
            torch.equal(part, before.samples[kind]) for kind, part in samples.items()
        ):
            return before.version
        self._state = _State(before.version + 1, marks, views, samples)  # at once, for threads
        return self._state.version

    def forget(self) -> None:
        """Let go of the tensors; the next number is a new one."""
        self._state = _State(self._state.version, [], {}, {})


class _State(NamedTuple):
    version: int
    marks: list[Any]
    views: dict[Kind, list[Tensor]]
    samples: dict[Kind, Tensor]


def _marks(model: nn.Module) -> tuple[list[Any], list[Tensor]]:
    """What tells a model from another without a look at its numbers, and its tensors."""
    marks: list[Any] = [getattr(model, "model_config", None)]
    tensors: list[Tensor] = []
    for module in every_module(model):
        marks.append(type(module))
        marks += _settings(module)
        for held in (module._parameters, module._buffers):
            for tensor in held.values():
                if tensor is not None:
                    tensors.append(tensor)
                    marks.append(_tensor_mark(tensor))
    marks.append(_autocast(tensors))
    return marks, tensors


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """Each once; `nn.Module.modules` does the same many times as slowly."""
    seen: set[int] = set()
    waiting: list[nn.Module] = [model]
    while waiting:
        module = waiting.pop()
        if id(module) not in seen:
            seen.add(id(module))
            yield module
            waiting += [child for child in module._modules.values() if child is not None]


def _settings(module: nn.Module) -> list[Any]:
    """Its hooks, a replaced `forward`, and its settings, among which adapters keep which of them is
    active."""
    marks: list[Any] = []
    if module._forward_hooks or module._forward_pre_hooks:
        marks += (tuple(module._forward_hooks), tuple(module._forward_pre_hooks))
    if "forward" in module.__dict__:
        marks.append(id(module.__dict__["forward"]))
    if type(module).__module__.startswith(_SETTLED):
        return marks
    for name, value in module.__dict__.items():
        if name not in _OWN and isinstance(value, bool | int | float | str):
            marks.append(value)
        elif name not in _OWN and isinstance(value, list | dict | tuple | set):
            marks.append(repr(value))
    return marks


def _tensor_mark(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return id(tensor)
    counted = -1 if tensor.is_inference() else tensor._version
    return (tensor.data_ptr(), counted, tensor.dtype)


def _autocast(tensors: list[Tensor]) -> Any:
    """The dtype that operations are cast to around this call, if any."""
    kind = tensors[0].device.type if tensors else "cpu"
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


@torch.inference_mode()
def _views(tensors: list[Tensor]) -> dict[Kind, list[Tensor]]:
    """At least one number of each row of each tensor."""
    found: dict[Kind, list[Tensor]] = {}
    for tensor in tensors:
        readable = tensor.layout is torch.strided and tensor.device.type != "meta"
        if readable and tensor.numel() and tensor.untyped_storage().nbytes():
            found.setdefault((tensor.device, tensor.dtype), []).append(_sample(tensor))
    return found


def _sample(tensor: Tensor) -> Tensor:
    count = tensor.numel()
    step = count // len(tensor) - 1 if tensor.dim() > 1 else 1  # in each row a column further on
    step = max(step, 1, -(-count // MOST))
    if tensor.is_contiguous():
        return tensor.as_strided((-(-count // step),), (step,))
    longest = max(range(tensor.dim()), key=tensor.shape.__getitem__)
    return tensor.movedim(longest, 0).reshape(tensor.shape[longest], -1)[:, 0]


@torch.inference_mode()
def _read(views: dict[Kind, list[Tensor]]) -> dict[Kind, Tensor]:
    """As integers, in one tensor for each device and dtype."""
    samples = {}
    for kind, parts in views.items():
        joined = torch.cat(parts)
        if not joined.dtype.is_complex:
            joined = joined.view(_INTEGERS[joined.element_size()])
        samples[kind] = joined
    return samples
