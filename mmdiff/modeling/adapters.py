"""Adapters of PEFT: what a model learned besides, in a small folder, merged into its weights when
it is loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mmdiff.config import shown
from mmdiff.errors import CheckpointError, require_extra
from mmdiff.modeling.checkpoint_folder import ADAPTER, read_json, some, tensor_names

WEIGHTS = "adapter_model.safetensors"


def merge_adapter(model: nn.Module, folder: Path) -> None:
    """Add what a LoRA adapter learned to the weights of the model that it was made for, in place.

    Raises:
        CheckpointError: it is of another kind, damaged, or made for another model.
    """
    kind = read_json(folder / ADAPTER).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of peft_type={shown(kind)}; only LORA can be merged"
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}; save the adapter as safetensors: pickles are never read"
        )
    peft = require_extra("peft", "adapters", "loading an adapter")
    state = _finite_state(folder)
    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
        settings.base_model_name_or_path = (
            None  # the model has no name of its own, and PEFT would warn of another one
        )
        with warnings.catch_warnings():  # of names that PEFT uses and transformers will drop
            warnings.simplefilter("ignore", FutureWarning)
            adapted = peft.get_peft_model(model, settings)
        found = peft.set_peft_model_state_dict(adapted, state)
    except KeyError as error:
        raise CheckpointError(
            f"the adapter {folder} does not fit its base: it lacks {error}"
        ) from None
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise CheckpointError(f"the adapter {folder} does not fit its base: {reason}") from None
    if found.unexpected_keys:
        unknown = some(found.unexpected_keys)
        raise CheckpointError(
            f"the adapter {folder} does not fit its base; unknown names: {unknown}"
        )
    adapted.merge_and_unload()
    model.requires_grad_(True)  # as those of other models


def _finite_state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensor_names(folder / WEIGHTS)  # a damaged file is refused
    state = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    if wrong := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise CheckpointError(
            f"{wrong[0]} of the adapter {folder} holds numbers that are not finite; fetch it again"
        )
    return state
