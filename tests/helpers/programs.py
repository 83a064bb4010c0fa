"""Programs and recordings that some tests use when the system has them; all but those tests run
without.

`pytest --bare` hides them, as on a machine with nothing but Python, pip and git.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

# Debian's package, and what it brings: a program, or a folder.
PACKAGES: Mapping[str, str] = {
    "espeak-ng": "espeak-ng",
    "flite": "flite",
    "festival": "text2wave",
    "festvox-us-slt-hts": "/usr/share/festival/voices/us/cmu_us_slt_arctic_hts",
    "chromium": "chromium",
    "curl": "curl",
    "g++": "g++",
    "nginx-light": "nginx",
    "nodejs": "node",
    "npm": "npm",
    "asterisk-core-sounds-en": "/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",
    "asterisk-core-sounds-en-g722": "/usr/share/asterisk/sounds/en_US_f_Allison",
    "asterisk-moh-opsound-g722": "/usr/share/asterisk/moh",
    "pocketsphinx-testdata": "/usr/share/pocketsphinx/test/data",
}
BARE_PROGRAMS = ("git", "sh", "bash", "head")  # what every system with Python, pip and git has
_hidden = False


def missing(packages: Iterable[str]) -> list[str]:
    """Those of the packages whose program or folder is not here."""
    return [package for package in packages if not _is_here(PACKAGES[package])]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a test where one of the packages is missing, and says which."""
    absent = missing(packages)
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def hide(folder: Path) -> None:
    """Hide every package above from this process and those it starts: `folder` becomes the whole
    PATH."""
    global _hidden
    _hidden = True
    for name in BARE_PROGRAMS:
        if program := shutil.which(name):
            (folder / name).symlink_to(program)
    for name in ("python", "python3"):
        (folder / name).symlink_to(sys.executable)
    os.environ["PATH"] = str(folder)


def advice(reasons: Iterable[str]) -> str | None:
    """What to install for tests that were skipped for these reasons; None where no package is among
    them."""
    skipped = 0
    packages: set[str] = set()
    for reason in reasons:
        named = _named_in(reason)
        packages |= named
        skipped += bool(named)
    tests = "1 test" if skipped == 1 else f"{skipped} tests"
    return (
        f"{tests} skipped: install {', '.join(sorted(packages))} to run them" if packages else None
    )


def _named_in(reason: str) -> set[str]:
    """The packages that a reason names, be it by the package or by its program."""
    words = set(re.findall(r"[\w+-]+", reason))
    return {package for package, brings in PACKAGES.items() if words & {package, brings}}


def _is_here(brings: str) -> bool:
    if brings.startswith("/"):
        return not _hidden and Path(brings).exists()
    return shutil.which(brings) is not None
