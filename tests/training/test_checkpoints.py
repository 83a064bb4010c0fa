"""A checkpoint is whole or absent, whatever interrupts its writing, and says so when it was damaged
later."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmdiff.errors import CheckpointError
from mmdiff.training import checkpoints as module
from mmdiff.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint

FILES = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}


def parts(seed: int = 0, updates: int = 3) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small network and its AdamW, after some updates; two groups, as the loop makes them."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    groups = [
        {
            "params": [p for p in model.parameters() if (p.dim() > 1) == matrix],
            "factor": factor,
            "weight_decay": decay,
        }
        for matrix, factor, decay in ((True, 1.0, 0.01), (False, 0.2, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, lr=1 / 3000, betas=(0.9, 0.98))
    for _ in range(updates):
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def equal(one: Any, other: Any) -> bool:
    """The same numbers, bit for bit, in nested state dictionaries (tuples may have become
    lists)."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_model_and_optimizer_come_back_exactly(tmp_path: Path) -> None:
    """Moments, step counts and every group's settings: what is lost here shows only as a worse
    resumed run."""
    model, optimizer = parts()
    path = save_checkpoint(tmp_path, 30, model, optimizer)
    other_model, other_optimizer = parts(seed=1, updates=0)
    assert load_checkpoint(path, other_model, other_optimizer) == 30
    assert equal(model.state_dict(), other_model.state_dict())
    assert equal(optimizer.state_dict(), other_optimizer.state_dict())
    assert len(other_optimizer.state_dict()["state"]) == 6


def test_a_model_alone_can_be_restored(tmp_path: Path) -> None:
    model, optimizer = parts()
    other, _ = parts(seed=1)
    assert load_checkpoint(save_checkpoint(tmp_path, 1, model, optimizer), other) == 1
    assert equal(model.state_dict(), other.state_dict())


def test_an_optimizer_without_updates_is_saved_too(tmp_path: Path) -> None:
    model, optimizer = parts(updates=0)
    other_model, other_optimizer = parts(seed=1, updates=0)
    load_checkpoint(save_checkpoint(tmp_path, 1, model, optimizer), other_model, other_optimizer)
    assert other_optimizer.state_dict()["state"] == {}


def test_only_safetensors_and_json_are_written(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, *parts())
    assert path == tmp_path / "step-00000007"
    assert {file.name for file in path.iterdir()} == FILES
    assert set(json.loads((path / "manifest.json").read_text())) == FILES - {"manifest.json"}
    assert os.listdir(tmp_path) == [path.name]


def test_the_last_two_are_kept_oldest_first(tmp_path: Path) -> None:
    model, optimizer = parts()
    for step in (5, 90, 100, 1000):
        save_checkpoint(tmp_path, step, model, optimizer)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000100", "step-00001000"]
    save_checkpoint(tmp_path, 1100, model, optimizer, keep=1)
    assert os.listdir(tmp_path) == ["step-00001100"]
    assert checkpoints(tmp_path / "absent") == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize(
    "failing", ["save_file of model", "save_file of optimizer", "_sha256", "_sync", "rename"]
)
def test_a_crash_while_writing_leaves_the_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    """At no moment may a half-written checkpoint pass for the newest one."""
    model, optimizer = parts()
    for step in (10, 20):
        save_checkpoint(tmp_path, step, model, optimizer)
    name, _, which = failing.partition(" of ")

    def fail(*args: Any) -> Any:
        if which not in str(args[-1]):
            return save_file(*args)
        raise error

    save_file = module.save_file
    with monkeypatch.context() as patch:
        patch.setattr(Path if name == "rename" else module, name, fail)
        with pytest.raises(type(error)):
            save_checkpoint(tmp_path, 30, model, optimizer)
    assert visible(tmp_path) == ["step-00000010", "step-00000020"]
    assert [load_checkpoint(path, *parts(seed=1)) for path in checkpoints(tmp_path)] == [10, 20]
    save_checkpoint(tmp_path, 30, model, optimizer)  # over what the crash left behind
    assert visible(tmp_path) == ["step-00000020", "step-00000030"]
    assert load_checkpoint(checkpoints(tmp_path)[-1], *parts(seed=1)) == 30
    assert len(os.listdir(tmp_path)) == 2


def test_a_crash_while_pruning_lists_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old folder used to be emptied in place, so that one with a manifest and no weights could
    stay listed."""
    model, optimizer = parts()
    for step in (10, 20):
        save_checkpoint(tmp_path, step, model, optimizer)

    def empty_a_little(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            (path / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", empty_a_little)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 30, model, optimizer)
    assert [load_checkpoint(path, *parts(seed=1)) for path in checkpoints(tmp_path)] == [20, 30]
    save_checkpoint(tmp_path, 40, model, optimizer)
    assert sorted(os.listdir(tmp_path)) == ["step-00000030", "step-00000040"]


def test_a_leftover_part_is_replaced(tmp_path: Path) -> None:
    """Files of an interrupted attempt must not slip into the next one, nor lie around for ever."""
    for name in (".step-00000005.part", ".step-00000004.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.json").write_text("{}")
    assert checkpoints(tmp_path) == []
    path = save_checkpoint(tmp_path, 5, *parts())
    assert {file.name for file in path.iterdir()} == FILES
    assert os.listdir(tmp_path) == [path.name]


def test_a_folder_without_manifest_is_no_checkpoint(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 5, *parts())
    (path / "manifest.json").unlink()
    assert checkpoints(tmp_path) == []
    assert save_checkpoint(tmp_path, 5, *parts()) == path
    assert checkpoints(tmp_path) == [path]


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, name: str, damage: str) -> None:
    """A flipped bit in a weight loads without complaint unless the sums are compared."""
    path = save_checkpoint(tmp_path, 5, *parts())
    data = (path / name).read_bytes()
    if damage == "missing":
        (path / name).unlink()
    else:
        (path / name).write_bytes(
            data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1])
        )
    model, optimizer = parts(seed=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=f"{name} is missing or damaged; delete .*step-00000005 to resume"
    ):
        load_checkpoint(path, model, optimizer)
    assert equal(before, model.state_dict())


@pytest.mark.parametrize("text", [None, "", '{"model.safetensors": '])
def test_a_bad_manifest_is_named_too(tmp_path: Path, text: str | None) -> None:
    """It used to end in a FileNotFoundError or JSONDecodeError."""
    path = save_checkpoint(tmp_path, 5, *parts())
    (path / "manifest.json").unlink()
    if text is not None:
        (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="manifest.json is missing or damaged"):
        load_checkpoint(path, *parts(seed=1))
