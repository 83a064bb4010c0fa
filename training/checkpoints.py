"""Training checkpoints that are whole or absent: written beside, synced, then renamed into place.

One folder a checkpoint: `model.safetensors`, `optimizer.safetensors`, `state.json` and a
`manifest.json` with the sha256 of each. Random draws and data depend on the step alone (see
loop.py), so these are all that resuming needs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmdiff.errors import CheckpointError
from mmdiff.files import share_weights, sync_folder

MANIFEST = "manifest.json"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int = 2
) -> Path:
    """Write `folder/step-N` atomically and remove all but the last `keep` checkpoints."""
    target = folder / f"step-{step:08d}"
    part = folder / f".{target.name}.part"
    for leftover in folder.glob(".step-*.part"):
        shutil.rmtree(leftover)
    part.mkdir(parents=True)
    tensors, groups = _split_optimizer(optimizer.state_dict())
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()},
        part / "model.safetensors",
    )
    save_file(tensors, part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps({"step": step, "param_groups": groups}))
    share_weights(part, "state.json")
    sums = {}
    for path in sorted(part.iterdir()):
        sums[path.name] = _sha256(path)
    (part / MANIFEST).write_text(json.dumps(sums, indent=1))
    for path in part.iterdir():
        _sync(path)
    sync_folder(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    sync_folder(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(folder / f".{old.name}.part"))
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).exists())


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None
) -> int:
    """Restore model and optimizer in place and return the step.

    Raises:
        CheckpointError: a file is missing or its sha256 is not the manifest's.
    """
    for name, expected in _manifest(path).items():
        if not (path / name).exists() or _sha256(path / name) != expected:
            raise _damaged(path / name)
    model.load_state_dict(load_file(path / "model.safetensors"))
    state = json.loads((path / "state.json").read_text())
    if optimizer is not None:
        tensors = load_file(path / "optimizer.safetensors")
        optimizer.load_state_dict(_join_optimizer(tensors, state["param_groups"]))
    return int(state["step"])


def _manifest(path: Path) -> dict[str, str]:
    try:
        sums: dict[str, str] = json.loads((path / MANIFEST).read_text())
    except (OSError, ValueError):
        raise _damaged(path / MANIFEST) from None
    return sums


def _damaged(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file} is missing or damaged; delete {file.parent} to resume from an earlier step"
    )


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    tensors = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
    return tensors, state["param_groups"]


def _join_optimizer(tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> dict[str, Any]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": groups}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)  # Windows writes out only what may be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
