"""LoRA adapters: merged into the model that they were made for, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmdiff.cli.main import main
from mmdiff.errors import CheckpointError
from mmdiff.pipeline import load

QUESTION = "what color is the circle?"


@pytest.fixture(scope="module")
def adapted(
    random_tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, torch.Tensor]:
    """A folder as PEFT writes it, in float16, and the head's weights and a layer's as they are when it is merged."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    model = load(random_tiny).model
    torch.manual_seed(1)
    made = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    made.peft_config["default"].base_model_name_or_path = str(random_tiny)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter).half() / 8)
    made.save_pretrained(str(folder), save_embedding_layers=False)
    save_file(
        {name: tensor.half() for name, tensor in load_file(folder / WEIGHTS).items()},
        folder / WEIGHTS,
    )
    layer = made.merge_and_unload().backbone.layers[0].self_attn.q_proj.weight
    return folder, layer.detach().clone()


WEIGHTS = "adapter_model.safetensors"


def test_an_adapter_is_merged_into_its_base(
    adapted: tuple[Path, torch.Tensor], random_tiny: Path
) -> None:
    folder, expected = adapted
    merged, plain = load(folder), load(random_tiny)
    assert torch.equal(merged.model.backbone.layers[0].self_attn.q_proj.weight, expected)
    layers = merged.model.backbone.layers[0], plain.model.backbone.layers[0]
    assert torch.equal(layers[0].self_attn.k_proj.weight, layers[1].self_attn.k_proj.weight)
    assert not torch.equal(
        merged.model.backbone.lm_head.weight, plain.model.backbone.lm_head.weight
    )
    assert type(layers[0].self_attn.q_proj) is type(layers[1].self_attn.q_proj)
    assert all(parameter.requires_grad for parameter in merged.model.parameters())
    assert set(merged.model.state_dict()) == set(plain.model.state_dict())
    assert merged.ask(None, QUESTION, gen_length=8) == load(folder).ask(
        None, QUESTION, gen_length=8
    )
    assert load(folder, dtype="bfloat16").model.dtype == torch.bfloat16


def test_info_is_about_the_whole_model(
    adapted: tuple[Path, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["mmdiff", "info", str(adapted[0])])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (
        not ended.value.code and json.loads(capsys.readouterr().out)["parameters"]["total"] > 10**6
    )


def _setting(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**settings, name: value}))

    return change


def _tensor(
    change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]],
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        save_file(dict(change(name, tensor) for name, tensor in state.items()), folder / WEIGHTS)

    return apply


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "another kind": (
        _setting("peft_type", "PROMPT_TUNING"),
        "peft_type='PROMPT_TUNING'; only LORA",
    ),
    "no kind": (_setting("peft_type", None), "peft_type=None; only LORA"),
    "a base that is nowhere": (
        _setting("base_model_name_or_path", "nowhere"),
        "unknown model 'nowhere'",
    ),
    "no base": (_setting("base_model_name_or_path", None), "unknown model 'BASE'"),
    "layers that are not there": (_setting("target_modules", ["c_attn"]), "does not fit its base"),
    "another rank": (_setting("r", 3), "does not fit its base"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "pickles are never read"),
    "a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin") and None,  # type: ignore
        "pickles are never read",
    ),
    "damaged": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"0" * 99) and None,  # type: ignore
        "damaged or not a safetensors file",
    ),
    "not finite": (_tensor(lambda name, tensor: (name, tensor * float("nan"))), "not finite"),
    "another model's names": (
        _tensor(lambda name, tensor: (name.replace("backbone", "model"), tensor)),
        "does not fit its base: it lacks .*lm_head",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_refused(
    adapted: tuple[Path, torch.Tensor], tmp_path: Path, name: str
) -> None:
    for file in adapted[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change, match = BROKEN[name]
    change(tmp_path)
    with pytest.raises(CheckpointError, match=match) as refused:
        load(tmp_path)
    assert "\n" not in str(refused.value)
