"""Linear layers through oneDNN, which comes with PyTorch, for models on processors.

PyTorch multiplies float32 through MKL, which leaves the wide registers of AMD's processors unused;
oneDNN does not. The numbers are the same but for the last bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 16  # positions below which MKL is faster


class OneDNNLinear(nn.Linear):
    """The same layer with the same weights; while gradients are wanted, on a GPU, or compiled, as
    it was."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            input.dtype != torch.float32
            or input.device.type != "cpu"
            or input.shape[:-1].numel() < FEW
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
        ):
            return F.linear(input, self.weight, self.bias)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self.weight, self.bias, "none", [], ""
        )
        return found


def use_onednn(model: nn.Module) -> None:
    """Let the linear layers of a model multiply through oneDNN, where this PyTorch has it."""
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = OneDNNLinear
