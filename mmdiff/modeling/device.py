"""Where a model is put: the device, and the number type of its weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from mmdiff.config import shown
from mmdiff.errors import MMDiffError
from mmdiff.modeling.checkpoint import WEIGHT_TYPES
from mmdiff.modeling.quantize import QUANTIZED

# What /proc/cpuinfo and PyTorch call bfloat16 products: two kinds of x86, and ARM.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def choose_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; without one CUDA where there is it, else the CPU. MPS is used when
    it is asked for.

    Raises:
        MMDiffError: it is not a device, or not one that this machine and this PyTorch have.
    """
    if not name:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # "meta" has tensors without values
        return device
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
    if str(name).startswith("mps"):
        reason = "it takes a Mac with Apple silicon and a PyTorch that is built for it"
    raise MMDiffError(f"device {str(name)[:80]!r} cannot be used here ({reason}); try cpu")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number type of that name; "auto" is float32 on CPU and MPS, and bfloat16 elsewhere.

    Warns of bfloat16 on a CPU that does not multiply it.
    """
    if dtype == "auto":
        dtype = torch.float32 if device.type in ("cpu", "mps") else torch.bfloat16
    number_type = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if number_type not in WEIGHT_TYPES:
        raise MMDiffError(f"dtype={shown(dtype)} does not fit; use float32 or bfloat16, or auto")
    if number_type is torch.bfloat16 and device.type == "cpu" and not multiplies_bfloat16():
        warnings.warn(
            "this processor does not multiply bfloat16 (no AVX-512 BF16, AMX or ARM BF16): it "
            "takes half the memory of float32, and longer; leave out dtype for float32",
            stacklevel=3,
        )
    return number_type


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions that multiply bfloat16; without, it is slower than
    float32."""
    return not BFLOAT16_FLAGS.isdisjoint(_cpu_flags())


def _cpu_flags() -> set[str]:
    if hasattr(torch.cpu, "get_capabilities"):  # from PyTorch 2.11 on, and on every system
        return {name for name, has in torch.cpu.get_capabilities().items() if has}
    try:
        return set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return set()


def describe_machine() -> dict[str, object]:
    """Where a model is put here and in which number type, and whether bfloat16 is an option."""
    device = choose_device(None)
    return {
        "device": str(device),
        "dtype": str(choose_dtype("auto", device)).removeprefix("torch."),
        "cpu_multiplies_bfloat16": multiplies_bfloat16(),
    }


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
