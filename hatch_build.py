"""A check before every build: the rooms' links are links.

git on Windows, without the right to make symbolic links, writes text files in their place. A build
from those would lack half of the package without a word.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOMS = ("audio", "eval", "training", "vision")


class LinksHook(BuildHookInterface):
    """Refuses to build where a room is not a folder."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        broken = [
            f"mmdiff/{room}" for room in ROOMS if not (Path(self.root) / "mmdiff" / room).is_dir()
        ]
        if broken:
            raise RuntimeError(
                f"{', '.join(broken)}: not a link to a folder. git has checked this out without "
                "symbolic links; turn them on (on Windows: Developer Mode, then git config "
                "core.symlinks true and git checkout -- mmdiff), or install a wheel, which holds "
                "folders"
            )
