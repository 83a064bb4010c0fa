"""Linear layers through oneDNN give the numbers of PyTorch's own, however the input lies in
memory."""

import pytest
import torch
from torch import Tensor, nn

from mmdiff.modeling.onednn_linear import FEW, OneDNNLinear, use_onednn

INPUTS = {
    "plain": torch.randn(2, 3, 7, 24),
    "few": torch.randn(FEW - 1, 24),
    "none": torch.randn(0, 24),
    "transposed": torch.randn(3, 24, 50).mT,
    "expanded": torch.randn(5, 1, 24).expand(5, 20, 24),
    "strided": torch.randn(4, 30, 48)[:, ::3, ::2],
    "double": torch.randn(64, 24, dtype=torch.float64),
    "half": torch.randn(64, 24, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_numbers_are_the_same(name: str, bias: bool) -> None:
    x: Tensor = INPUTS[name]
    plain, suited = (nn.Linear(24, 40, bias=bias, dtype=x.dtype) for _ in range(2))
    suited.load_state_dict(plain.state_dict())
    use_onednn(suited)
    assert type(suited) is OneDNNLinear
    with torch.inference_mode():
        torch.testing.assert_close(suited(x), plain(x))
    if len(x):
        suited(x).sum().backward()
        assert suited.weight.grad is not None and bool(suited.weight.grad.abs().sum() > 0)
