"""What is downloaded is pinned, and what is wrong with a package is one sentence."""

import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from mmdiff.errors import MMDiffError
from mmdiff.training.everyday.sources import BY_NAME, SOURCES, Source


def small_source(folder: Path) -> Source:
    """A package of one file, as if downloaded before."""
    file = folder / "downloads" / "small-1.0.tgz"
    file.parent.mkdir(parents=True)
    with tarfile.open(file, "w:gz") as archive:
        member = tarfile.TarInfo("package/icons.json")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return Source("small", "npm", "small", "1.0", file.name, digest, "train", "MIT", "A. Nyone")


def test_a_package_is_unpacked_once(tmp_path: Path) -> None:
    source = small_source(tmp_path)
    assert source.is_here(tmp_path)
    first = source.fetch(tmp_path)
    assert (first / "package/icons.json").read_text() == "{}"
    (tmp_path / "downloads" / source.file).unlink()
    assert source.fetch(tmp_path) == first


def test_another_file_is_refused(tmp_path: Path) -> None:
    source = dataclasses.replace(small_source(tmp_path), sha256="0" * 64)
    with pytest.raises(MMDiffError, match="is another file than the recipe was made with"):
        source.fetch(tmp_path)
    assert not (tmp_path / "unpacked" / "small").exists()


def test_a_program_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MMDiffError, match="comes from npm, and the program 'npm' is not installed"):
        BY_NAME["noto"].fetch(tmp_path)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_failed_download_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{npm.parent}:/bin:/usr/bin")
    with pytest.raises(MMDiffError, match=r"could not be downloaded from npm \(no such package\)"):
        BY_NAME["noto"].fetch(tmp_path)


def test_every_source_has_a_licence_and_a_credit() -> None:
    assert len(BY_NAME) == len(SOURCES)
    for source in SOURCES:
        assert source.licence and source.credit and len(source.sha256) == 64
    tests = {source.name for source in SOURCES if source.use == "test"}
    assert tests == {"fluent-emoji-flat", "tuxpaint"}
