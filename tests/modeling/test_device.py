"""Number types: what a processor multiplies is told, and bfloat16 that it does not is warned of."""

import warnings
from pathlib import Path

import pytest
import torch

from mmdiff.modeling import device
from mmdiff.modeling.device import choose_dtype, describe_machine, multiplies_bfloat16

CPU = torch.device("cpu")
FLAGS = {
    "AVX-512 BF16": ("avx512_f avx512_bf16", True),
    "AMX": ("avx512_f amx_bf16", True),
    "ARM": ("neon bf16 i8mm", True),
    "AVX-512 alone": ("avx512_f avx512_vnni", False),
    "unknown": ("", False),
}


@pytest.mark.parametrize("name", FLAGS)
def test_bfloat16_is_warned_of_where_it_is_slow(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    flags, native = FLAGS[name]
    monkeypatch.setattr(device, "_cpu_flags", lambda: set(flags.split()))
    assert multiplies_bfloat16() is native
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype in ("auto", "float32", torch.float32):
            choose_dtype(dtype, CPU)
        choose_dtype("bfloat16", torch.device("meta"))
        assert not caught
        assert choose_dtype("bfloat16", CPU) is torch.bfloat16
    said = [str(each.message) for each in caught]
    assert len(said) == (not native)
    assert all("does not multiply bfloat16" in each and "\n" not in each for each in said)


def test_flags_come_from_pytorch_or_from_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"avx512_bf16": False, "amx_bf16": True, "cpu_name": "a processor"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert multiplies_bfloat16()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    for text, native in (("flags : fpu avx512_bf16", True), ("flags : avx512_bf16x fpu", False)):
        monkeypatch.setattr(Path, "read_text", lambda self, text=text, **_: text)
        assert multiplies_bfloat16() is native


def test_the_machine_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: True)
    wanted = {"device": "cpu", "dtype": "float32", "cpu_multiplies_bfloat16": True}
    assert describe_machine() == wanted
