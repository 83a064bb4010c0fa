"""What is installed is the whole house, under one name, and importing it costs nothing.

Both ways to a wheel are built by the build back end itself, without isolation or network. Costs are
counted in modules that get imported, not in seconds.
"""

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOMS = ["vision", "audio", "training", "eval"]
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "numpy",
    "open_clip",
    "PIL",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def build(kind: str, source: Path, out: Path) -> Path:
    result = python("-m", "hatchling", "build", "-t", kind, "-d", str(out), cwd=source)
    assert result.returncode == 0, result.stderr
    (file,) = out.iterdir()
    return file


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def imported_by(code: str, cwd: Path) -> set[str]:
    """The modules that a fresh Python holds after running `code`, even when that ends in
    SystemExit."""
    show = "import atexit, sys\natexit.register(lambda: print('\\nMODULES', *sys.modules))\n"
    result = python("-c", show + code, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("MODULES")[2].split())


@pytest.fixture(scope="module")
def tree(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, links kept as links; .gitignore too, for a build leaves out
    what it names."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ["pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"]:
        shutil.copy(root / name, copy)
    for name in ["mmdiff", *ROOMS]:
        shutil.copytree(
            root / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def files(tree: Path) -> set[str]:
    """Every module, and every file of the shipped models and of the page, by its place in the
    installed package."""
    walk = os.walk(tree / "mmdiff", followlinks=True)
    paths = {
        Path(folder, name).relative_to(tree).as_posix()
        for folder, _, names in walk
        for name in names
    }
    data = ("mmdiff/models/", "mmdiff/serve/page/")
    return {path for path in paths if path.endswith((".py", "py.typed")) or path.startswith(data)}


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_are_links(root: Path, room: str) -> None:
    assert os.readlink(root / "mmdiff" / room) == f"../{room}"


def test_the_wheel_holds_every_module_and_model(wheel: Path, files: set[str]) -> None:
    names = names_in(wheel)
    assert {f"mmdiff/{room}/__init__.py" for room in ROOMS} <= names
    assert files - names == set()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"mmdiff"}


def test_the_wheel_from_the_source_distribution_is_the_same(
    wheel: Path, tree: Path, tmp_path: Path
) -> None:
    sdist = build("sdist", tree, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / sdist.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    assert names_in(again) == names_in(wheel)


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_checkout_without_links_is_not_built(tree: Path, tmp_path: Path, kind: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, symlinks=True)
    for room in ROOMS[:2]:
        (copy / "mmdiff" / room).unlink()
        (copy / "mmdiff" / room).write_text(f"../{room}")  # as git writes it without core.symlinks
    result = python("-m", "hatchling", "build", "-t", kind, "-d", str(tmp_path / "out"), cwd=copy)
    assert result.returncode != 0
    assert "mmdiff/audio, mmdiff/vision: not a link to a folder" in result.stderr
    assert "core.symlinks true" in result.stderr and not list(tmp_path.glob("out/*"))


def test_the_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        (entry_points,) = [
            archive.read(name) for name in archive.namelist() if name.endswith("/entry_points.txt")
        ]
    assert b"mmdiff = mmdiff.cli.main:main" in entry_points
    rooms = ", ".join(f"mmdiff.{room}" for room in ROOMS)
    result = python("-c", f"import {rooms}\nprint(mmdiff.__file__)", cwd=tmp_path)
    assert result.stdout.strip() == str(tmp_path / "mmdiff" / "__init__.py"), result.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_goes_by_one_name(root: Path, room: str) -> None:
    result = python("-c", f"import {room}", cwd=root)
    assert result.returncode == 1
    assert f"import mmdiff.{room}, not {room}" in result.stderr


def test_importing_mmdiff_loads_nothing_heavy(root: Path) -> None:
    modules = imported_by("import mmdiff\nmmdiff.__version__", root)
    assert not modules & HEAVY
    light = {"mmdiff", "mmdiff.modeling", "mmdiff.modeling.auto_classes", "mmdiff.torchvision_fix"}
    assert {name for name in modules if name.startswith("mmdiff")} <= light


def test_help_loads_nothing_heavy(root: Path) -> None:
    modules = imported_by(
        "sys.argv = ['mmdiff', '--help']\nfrom mmdiff.cli.main import main\nmain()", root
    )
    assert "mmdiff.cli.main" in modules
    assert not modules & HEAVY


def test_an_unknown_name_is_an_attribute_error() -> None:
    import mmdiff

    assert "load" in dir(mmdiff)
    with pytest.raises(AttributeError, match="'paint'"):
        _ = mmdiff.paint


def test_every_module_says_what_it_is_for(tree: Path, files: set[str]) -> None:
    modules = [file for file in files if file.endswith(".py")]
    assert [
        file
        for file in modules
        if not ast.get_docstring(ast.parse((tree / file).read_text("utf-8")))
    ] == []
