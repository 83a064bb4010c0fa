"""Weights of the backbone's layers in 8 or 4 bits (bitsandbytes), for models that would not fit
otherwise.

Embeddings, head, towers and connectors stay as they are: beside the layers they are small.
Sources: LLM.int8() (arXiv 2208.07339), NF4 of QLoRA (arXiv 2305.14314).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

from torch import nn

from mmdiff.errors import require_extra

Bits = Literal["8bit", "4bit"]


def quantize(model: nn.Module, bits: Bits) -> None:
    """Swap every `nn.Linear` in `model` for one whose weights become 8 or 4 bits when they next
    move to a device."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, QUANTIZED[bits](child))


def _int8(linear: nn.Linear) -> nn.Module:
    bnb = require_extra("bitsandbytes", "quantize", "quantize='8bit'")
    made = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False
    )
    made.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    return cast(nn.Module, made)


def _nf4(linear: nn.Linear) -> nn.Module:
    bnb = require_extra("bitsandbytes", "quantize", "quantize='4bit'")
    made = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        quant_type="nf4",
        compute_dtype=linear.weight.dtype,
    )
    made.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    made.bias = linear.bias
    return cast(nn.Module, made)


QUANTIZED: dict[str, Callable[[nn.Linear], nn.Module]] = {"8bit": _int8, "4bit": _nf4}
