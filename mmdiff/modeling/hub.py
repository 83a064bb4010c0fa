"""Finds a model's folder: shipped, on disk, or on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from mmdiff.config import PRESETS, shown
from mmdiff.errors import CheckpointError
from mmdiff.modeling.checkpoint import config_of
from mmdiff.modeling.checkpoint_folder import adapter_base

SHIPPED = Path(__file__).parent.parent / "models"
FETCHED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]  # of a checkpoint on the hub
SETTINGS = ["config.json", "*/config.json", "adapter_config.json"]


def find_base(name: str | Path, weights: bool = True) -> tuple[Path, Path | None]:
    """The folder of a whole model, and where the name is that of an adapter, the adapter's; see
    `find`."""
    folder = find(name, weights)
    base = adapter_base(folder)
    if base is None:
        return folder, None
    try:
        return find(base, weights), folder
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} is a PEFT adapter of another model, which is needed too: {error}"
        ) from None


def find(name: str | Path, weights: bool = True) -> Path:
    """The folder of a model: shipped, on disk, or fetched from the hub (names with one slash).

    Args:
        weights: whether all of it is fetched; without, its settings alone.
    """
    if not isinstance(name, str | Path) or not str(name).strip():
        raise CheckpointError(
            f"model={shown(name)} does not fit; give a shipped name, a folder or a hub name"
        )
    folder = SHIPPED / str(name)
    if str(name) in PRESETS and (folder / "config.json").is_file():
        return folder
    if Path(name).is_dir():
        return Path(name)
    if str(name) in PRESETS:
        raise CheckpointError(
            f"mmdiff ships no weights for {str(name)!r}; give the path of a checkpoint folder, "
            "trained or downloaded"
        )
    if str(name).count("/") == 1 and not str(name).startswith((".", "/", "~")):
        folder = _fetch(str(name), SETTINGS)
        if not weights:
            return folder
        if adapter_base(folder) is None:
            config_of(folder)  # what is not loaded is refused before its weights are fetched
        return _fetch(str(name), FETCHED)
    shipped = ", ".join(
        preset for preset in PRESETS if (SHIPPED / preset / "config.json").is_file()
    )
    raise CheckpointError(
        f"unknown model {shown(str(name))}; give a shipped name ({shipped}), a folder or a hub name"
    )


def _fetch(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (
        Exception
    ) as error:  # the hub client raises many kinds; to the caller they all mean "not to be had"
        raise CheckpointError(
            f"{shown(name)} is neither a folder here nor could it be fetched from the hub "
            f"({error.__class__.__name__}); check the name, or give the path of a downloaded folder"
        ) from None
