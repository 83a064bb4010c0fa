"""Load and save weights: safetensors and JSON only, every name accounted for, published layouts
through one table.

The layout is recognised by the keys, never by `model_type`: two published models share one and
differ in layout. Three layouts are known: our own, LLaDA's (`model.transformer.blocks.N...`) and
LLaDA-V's (`model.layers.N...`). Both published ones rotate halves as we do, so translating is
renaming; the tables are in `layouts/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import InvalidVersion, Version
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from mmdiff.audio.tower import WhisperTower, encoder_state, whisper_config
from mmdiff.config import ModelConfig, to_dict
from mmdiff.errors import CheckpointError
from mmdiff.modeling.adapters import merge_adapter
from mmdiff.modeling.chat_format import chat_template, with_end_of_turn
from mmdiff.modeling.checkpoint_folder import CheckpointTensors, read_json, refuse_adapter, some
from mmdiff.modeling.layouts.families import recognise, targets
from mmdiff.modeling.layouts.family import Layout
from mmdiff.modeling.layouts.published_config import config_of_published
from mmdiff.modeling.multimodal import MMDiffConfig, MMDiffModel
from mmdiff.modeling.onednn_linear import use_onednn
from mmdiff.modeling.processor import MMDiffProcessor
from mmdiff.modeling.quantize import Bits, quantize
from mmdiff.vision.tower import load_tower, tower_state

TOWER = "vision_tower."
OTHER_TOKENIZERS = ("tokenizer.model", "vocab.txt", "tokenizer_config.json")
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_weights(
    model: MMDiffModel, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Put weights into a model whose every parameter they must name, once, in its shape.

    Args:
        dtype: what they are turned into; their own by default.

    Raises:
        CheckpointError: names are unknown, missing or of another shape, which the message lists, or
            a tensor holds anything but finite floating-point numbers.
    """
    layout = recognise(weights)
    sources: dict[str, str] = {}
    joined: dict[str, tuple[str, ...]] = {}
    for name in weights:
        for target in targets(name, layout):
            sources[target], joined[target] = name, targets(name, layout)
    expected = canonical_state(model)
    _refuse_misfits(
        layout,
        {
            "unknown names": sorted(sources[target] for target in sources.keys() - expected.keys()),
            "missing names": sorted(expected.keys() - sources.keys()),
        },
    )
    ours: dict[str, Tensor] = {}
    tower: dict[str, Tensor] = {}
    misshapen = []
    for target, name in sorted(sources.items()):
        tensor = _part(weights[name], target, joined[target], expected)
        if tensor.shape != expected[target].shape:
            misshapen.append(
                f"{target}: {tuple(tensor.shape)} instead of {tuple(expected[target].shape)}"
            )
        elif target.startswith(TOWER):
            tower[target.removeprefix(TOWER)] = _number_type(name, tensor, dtype)
        else:
            ours[target] = _number_type(name, tensor, dtype)
    _refuse_misfits(layout, {"wrong shapes": misshapen})
    if model.vision_tower is not None:
        load_tower(model.vision_tower, tower)
    model.load_state_dict(ours, strict=False, assign=True)


def _part(
    tensor: Tensor, target: str, joined: tuple[str, ...], expected: Mapping[str, Tensor]
) -> Tensor:
    """What a tensor holds of one of ours; all of it where the rows do not add up."""
    rows = [len(expected[each]) for each in joined]
    if len(joined) == 1 or tensor.ndim == 0 or len(tensor) != sum(rows):
        return tensor
    # A copy of its own, or three parameters would share one storage.
    return tensor.split(rows)[joined.index(target)].clone()


def _refuse_misfits(layout: Layout, problems: Mapping[str, list[str]]) -> None:
    if listed := [f"{kind}: {some(names)}" for kind, names in problems.items() if names]:
        raise CheckpointError(
            f"the checkpoint ({layout.name} layout) does not fit the model; {'; '.join(listed)}"
        )


def _number_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor in another type, whose numbers are all finite."""
    if tensor.dtype not in WEIGHT_TYPES:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(
            f"{name} is stored as {kind}: quantized weights are not read; load the checkpoint in "
            "bfloat16 or float32, with quantize='8bit' or '4bit' to make it smaller"
        )
    made = tensor.to(dtype)
    if not _is_finite(made):
        if _is_finite(tensor):
            raise CheckpointError(
                f"{name} has numbers that {dtype} cannot hold; use bfloat16 or float32"
            )
        raise CheckpointError(
            f"{name} holds numbers that are not finite (NaN or infinite); fetch the checkpoint "
            "again"
        )
    return made


def _is_finite(tensor: Tensor) -> bool:
    # The least and the largest are NaN where any number is: one pass, and no copy of the tensor.
    return not tensor.numel() or all(map(torch.isfinite, tensor.aminmax()))


def canonical_state(model: MMDiffModel) -> dict[str, Tensor]:
    """The model's weights under the names that are saved, whichever library its tower comes
    from."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if not name.startswith(TOWER):
            state[name] = tensor
    if model.vision_tower is not None:
        for name, tensor in tower_state(model.vision_tower).items():
            state[TOWER + name] = tensor
    return state


def load_folder(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    device_map: str | None = None,
    bits: Bits | None = None,
    adapter: Path | None = None,
) -> tuple[MMDiffModel, MMDiffProcessor]:
    """A model and its processor from a folder of ours or of a published layout, every weight
    accounted for.

    Args:
        adapter: a folder with a LoRA adapter that is merged into the weights.

    Raises:
        CheckpointError: the folder is incomplete, damaged or of another architecture.
    """
    config = config_of(folder)
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(config))
    load_weights(model, CheckpointTensors(folder), dtype=dtype)
    if adapter is not None:
        merge_adapter(model, adapter)
    tokenizer = _tokenizer(folder)
    template = chat_template(folder, tokenizer)
    if not _names_end_of_turn(folder):
        model.set_config(with_end_of_turn(config, tokenizer, template))
    if bits is not None:
        quantize(model.backbone.layers, bits)
    # Accelerate's hooks bring weights to the modules they belong to.
    elif device.type == "cpu" and device_map is None:
        use_onednn(model)
    if device_map is not None:
        from accelerate import dispatch_model, infer_auto_device_map

        model = dispatch_model(
            model, infer_auto_device_map(model, no_split_module_classes=model._no_split_modules)
        )
    else:
        torch.nn.Module.to(model, device)
    return model, MMDiffProcessor.of(tokenizer, model.model_config, template)


def load_whisper(folder: Path, **changes: Any) -> WhisperTower:
    """A tower with the encoder of a published Whisper checkpoint; `changes` of its settings, such
    as the connector.

    Raises:
        CheckpointError: the folder is incomplete or damaged, or does not hold a Whisper model.
    """
    tower = WhisperTower(whisper_config(read_json(folder / "config.json"), **changes))
    state = encoder_state(CheckpointTensors(folder), tower)
    tower.load_state_dict(
        {name: _number_type(name, tensor, None) for name, tensor in state.items()}
    )
    return tower


def config_of(folder: Path) -> ModelConfig:
    """The settings of a checkpoint folder, ours or published."""
    refuse_adapter(folder)
    stored = read_json(folder / "config.json")
    if stored.get("model_type") != MMDiffConfig.model_type:
        return config_of_published(folder)
    try:
        return MMDiffConfig(settings=stored.get("settings")).model
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} does not describe a model: {error}"
        ) from None


def _names_end_of_turn(folder: Path) -> bool:
    stored = read_json(folder / "config.json")
    return (
        stored.get("model_type") == MMDiffConfig.model_type
        or stored.get("eot_token_id") is not None
    )


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer by its files: the class that it names may be code of its own, which is
    never run."""
    try:
        tokenizer: PreTrainedTokenizerBase
        if (folder / "tokenizer.json").is_file():
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        elif any(map(Path.is_file, map(folder.joinpath, OTHER_TOKENIZERS))):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        else:
            raise FileNotFoundError("there is no tokenizer.json")
    except Exception as error:  # its libraries raise many kinds; a damaged file is a bare Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be read ({reason}); {_cure(folder)}"
        ) from None
    return tokenizer


def _cure(folder: Path) -> str:
    """What to do about files that cannot be read: a newer transformers, where they were saved with
    one."""
    with contextlib.suppress(InvalidVersion, TypeError):
        saved_with = str(read_json(folder / "config.json").get("transformers_version"))
        if Version(saved_with) > Version(transformers.__version__):
            return (
                f"it was saved with transformers {saved_with}, and {transformers.__version__} is "
                f"installed: pip install 'transformers>={saved_with}'"
            )
    return "fetch it again"


def save_folder(model: MMDiffModel, processor: MMDiffProcessor, folder: Path) -> None:
    """Write a model and its processor as `load_folder` reads them, and `from_pretrained` for
    transformers towers."""
    model.save_pretrained(folder, state_dict=canonical_state(model))
    processor.save_pretrained(folder)


def describe(config: ModelConfig) -> dict[str, Any]:
    """Settings and numbers of parameters, counted on the meta device."""
    with torch.device("meta"):
        model = MMDiffModel(MMDiffConfig.of(config))
    parts = {"total": _count(model)}
    for name, part in model.named_children():
        parts[name] = _count(part)
    return {"parameters": parts, "settings": to_dict(config)}


def _count(module: torch.nn.Module) -> int:
    return sum(map(Tensor.numel, module.parameters()))
