"""What lies in a checkpoint folder: JSON objects and safetensors files, read strictly. Pickles are
never opened.

Names and settings are not interpreted here: that is `layouts/` and `checkpoint.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmdiff.config import shown
from mmdiff.errors import CheckpointError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ADAPTER = "adapter_config.json"  # PEFT's


class CheckpointTensors(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files, read one at a time when asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = weight_map(folder)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def weight_map(folder: Path) -> dict[str, Path]:
    """The file that holds each tensor, all there.

    With an index, a tensor is read from the file that the index says: copies in other files count
    for nothing. A `model.safetensors` that holds all of them goes before an index that does not
    name it, as in transformers; one that lacks some is taken for a leftover.

    Raises:
        CheckpointError: the folder has no weights, not all that its index names, or an index that
            is malformed.
    """
    single, index = folder / SINGLE, folder / INDEX
    if not index.exists():
        if not single.is_file():
            raise CheckpointError(_without_weights(folder))
        return dict.fromkeys(tensor_names(single), single)
    listed = _read_index(index)
    if single.is_file() and SINGLE not in listed.values():
        held = tensor_names(single)
        if listed.keys() <= set(held):
            return dict.fromkeys(held, single)
    if absent := _absent(folder, listed):
        raise CheckpointError(f"{folder} is incomplete: {some(absent)}; fetch it again")
    held_by = {file: set(tensor_names(folder / file)) for file in sorted(set(listed.values()))}
    ghosts = []
    for name, file in sorted(listed.items()):
        if name not in held_by[file]:
            ghosts.append(f"{name} in {file}")
    if ghosts:
        raise CheckpointError(
            f"{folder} is incomplete: {INDEX} names tensors that are not there: {some(ghosts)}; "
            "fetch it again"
        )
    return {name: folder / file for name, file in listed.items()}


def _read_index(index: Path) -> dict[str, str]:
    listed = read_json(index).get("weight_map")
    if (
        not isinstance(listed, dict)
        or not listed
        or not all(isinstance(file, str) for file in listed.values())
    ):
        raise CheckpointError(
            f"{index} has no weight_map from tensor names to file names ({shown(listed)}); fetch "
            f"it again, or delete it where {SINGLE} is whole"
        )
    return listed


def _absent(folder: Path, listed: Mapping[str, str]) -> list[str]:
    """Files of an index that the folder lacks; one outside of it counts as absent."""
    files = sorted(set(listed.values()))
    return [file for file in files if Path(file).name != file or not os.path.isfile(folder / file)]


def _without_weights(folder: Path) -> str:
    reason = f"{folder} holds neither {SINGLE} nor {INDEX}"
    if pickles := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")):
        name = pickles[0].name
        reason += f"; {name} is a pickle, which is never read: convert it to safetensors"
    return reason


@contextmanager
def replacing_weights(folder: Path) -> Iterator[None]:
    """While weights are saved into a folder; an older index or `model.safetensors` beside the new
    one is removed."""
    files = (folder / SINGLE, folder / INDEX)
    before = [_written_at(file) for file in files]
    yield
    fresh = [_written_at(file) != earlier for file, earlier in zip(files, before, strict=True)]
    if any(fresh):
        for file, is_fresh in zip(files, fresh, strict=True):
            if not is_fresh:
                file.unlink(missing_ok=True)


def _written_at(file: Path) -> tuple[int, int] | None:
    if not file.is_file():
        return None
    return file.stat().st_mtime_ns, file.stat().st_ino


def adapter_base(folder: Path) -> str | None:
    """The model that a folder with a PEFT adapter alone was made for; None for the folder of a
    whole model."""
    if (
        not (folder / ADAPTER).is_file()
        or (folder / SINGLE).is_file()
        or (folder / INDEX).is_file()
    ):
        return None
    return str(read_json(folder / ADAPTER).get("base_model_name_or_path") or "BASE")


def refuse_adapter(folder: Path) -> None:
    """Say how a folder that holds a PEFT adapter alone is used.

    Raises:
        CheckpointError: it is one.
    """
    if (base := adapter_base(folder)) is not None:
        raise CheckpointError(
            f"{folder} is a PEFT adapter, not a whole model: load its base, pipeline = "
            f"mmdiff.load({shown(base)}), "
            "and put it on with peft.PeftModel.from_pretrained(pipeline.model, "
            f"{shown(str(folder))})"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or a CheckpointError that says what is wrong with it."""
    try:
        value = json.loads(
            path.read_text(encoding="utf-8-sig")
        )  # some editors begin a file with a byte-order mark
    except FileNotFoundError:
        raise CheckpointError(
            f"{shown(str(path.parent))} holds no {path.name}; give the folder of a whole model"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({error.__class__.__name__}); fetch it again"
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} holds a {type(value).__name__}, not a JSON object; fetch it again"
        )
    return value


def tensor_names(file: Path) -> list[str]:
    """The names in a safetensors file."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is damaged or not a safetensors file ({error}); fetch it again"
        ) from None


def some(names: Sequence[str], most: int = 8) -> str:
    """The first names of a list, and how many more there are."""
    first = ", ".join(name if len(name) <= 80 else f"{name[:77]}..." for name in names[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
