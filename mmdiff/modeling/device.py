"""Where a model is put: the device, and the number type of its weights."""

from __future__ import annotations

import torch

from mmdiff.config import shown
from mmdiff.errors import MMDiffError
from mmdiff.modeling.checkpoint import WEIGHT_TYPES
from mmdiff.modeling.quantize import QUANTIZED


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; without one CUDA where there is it, else the CPU. MPS is used when
    it is asked for.

    Raises:
        MMDiffError: it is not a device, or not one that this machine and this PyTorch have.
    """
    place = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(place)
        torch.zeros((), device=device).item()  # "meta" has tensors without values
        return device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
    if str(place).startswith("mps"):
        reason = "it takes a Mac with Apple silicon and a PyTorch that is built for it"
    raise MMDiffError(f"device {str(place)[:80]!r} cannot be used here ({reason}); try cpu")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number type of that name; "auto" is float32 on CPU and MPS, and bfloat16 elsewhere."""
    if dtype == "auto":
        dtype = torch.float32 if device.type in ("cpu", "mps") else torch.bfloat16
    number_type = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if number_type not in WEIGHT_TYPES:
        raise MMDiffError(f"dtype={shown(dtype)} does not fit; use float32 or bfloat16, or auto")
    return number_type


def check_placement(device_map: str | None, quantize: str | None) -> None:
    """What cannot be had, or not together, is an MMDiffError."""
    if device_map not in (None, "auto"):
        raise MMDiffError(
            f"device_map={shown(device_map)} is not known; use 'auto', or leave it out"
        )
    if quantize not in (None, *QUANTIZED):
        raise MMDiffError(f"quantize={shown(quantize)} is not known; use {' or '.join(QUANTIZED)}")
    if quantize is not None and device_map is not None:
        raise MMDiffError(
            f"quantize={quantize!r} and device_map={device_map!r} do not go together; "
            "choose one of them"
        )
