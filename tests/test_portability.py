"""Other machines: no POSIX modules, no program of the system, older packages, other devices, and
files for others."""

import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from mmdiff import pipeline
from mmdiff.config import PRESETS
from mmdiff.errors import MMDiffError, OldPackageError, require_extra
from mmdiff.modeling import auto_config
from mmdiff.modeling.checkpoint import save_folder
from mmdiff.modeling.device import choose_device
from mmdiff.modeling.quantize import quantize
from mmdiff.pipeline import load
from mmdiff.training.checkpoints import save_checkpoint
from mmdiff.vision.tower import BUILDERS
from tests.helpers import programs

ON_POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
# A Python as on Windows, for mmdiff: other packages find what their own files for this system need.
WITHOUT_POSIX = """
import builtins, importlib, os, pkgutil, signal, socket, sys
import mmdiff, accelerate, fastapi, psutil, transformers.modeling_utils
hidden, real = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"}, builtins.__import__
def hide(name, globals=None, locals=None, fromlist=(), level=0):
    if name in hidden and (globals or {}).get("__name__", "").startswith("mmdiff"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = hide
for module, names in {signal: "SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGQUIT SIGKILL setitimer", socket: "AF_UNIX",
                      os: "fork getuid geteuid setsid killpg getpgid mkfifo"}.items():
    for name in names.split():
        delattr(module, name)
for module in pkgutil.walk_packages(mmdiff.__path__, "mmdiff."):
    importlib.import_module(module.name)
from mmdiff.cli import main
for line in sys.argv[1].splitlines():
    sys.argv = ["mmdiff", *line.split("|")]
    try:
        main.main()
    except SystemExit as end:
        print("exit", end.code)
"""


def test_without_posix_pictures_and_sounds_are_answered_and_servers_say_why_not(
    root: Path, tmp_path: Path
) -> None:
    examples = root / "examples"
    lines = [
        f"ask|{examples / 'shapes.png'}|what color is the circle?",
        f"caption|{examples / 'one.png'}|--length|word",
        f"transcribe|{examples / 'question.flac'}",
        "serve",
        f"run-batch|-i|x|-o|{tmp_path / 'out'}",
        f"caption|{examples}|--out|{tmp_path / 'out'}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_POSIX, "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("\n")
    assert [line for line in said if line and line != "exit 0"] == [
        "red",
        "ring",
        "what color is the circle",
        "exit 2",
        "exit 2",
        "exit 2",
    ]
    refusals = [line for line in done.stderr.splitlines() if line.startswith("mmdiff: ")]
    assert len(refusals) == 3 and all(
        "needs Linux or macOS" in line and "WSL" in line for line in refusals
    )
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "meta",
        "banana",
        "mps" if not torch.backends.mps.is_available() else "hpu",
        "cuda:99",
        "x" * 9000,
    ):
        with pytest.raises(MMDiffError, match="cannot be used here.*try cpu") as refused:
            choose_device(name)
        assert len(str(refused.value)) < 260
    assert choose_device("cpu") == torch.device("cpu")


def test_mps_is_taken_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, random_tiny: Path
) -> None:
    """A stand-in for a Mac: what is made on "mps" is made on the CPU."""
    made = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: made(*size, **more))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("mps") == torch.device("mps") and choose_device(None) == torch.device(
        "cpu"
    )
    given: list[Any] = []
    monkeypatch.setattr(pipeline, "load_folder", lambda *args: given.append(args) or (None, None))
    monkeypatch.setattr(pipeline, "Pipeline", lambda *args: args)
    load(random_tiny, device="mps")
    load(random_tiny, device="mps", dtype="bfloat16")
    assert [(args[1].type, args[2]) for args in given] == [
        ("mps", torch.float32),
        ("mps", torch.bfloat16),
    ]


def test_versions_are_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmdiff.cli.main", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    first, second = done.stdout.splitlines()
    assert (
        re.fullmatch(r"mmdiff \d+\.\d+\.\d+\S*", first)
        and done.returncode == 0
        and done.stderr == ""
    )
    assert re.fullmatch(r"Python 3\.\d+\.\d+, torch 2\.\S+, transformers 5\.\S+", second)


@ON_POSIX
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_saved_files_have_the_mode_that_others_have(
    umask: int, mode: int, random_tiny: Path, tmp_path: Path
) -> None:
    loaded = load(random_tiny, device="cpu")
    linear = torch.nn.Linear(2, 2)
    before = os.umask(umask)
    try:
        save_folder(loaded.model, loaded.processor, tmp_path / "saved")
        loaded.model.save_pretrained(tmp_path / "shards", max_shard_size="1MB")
        save_checkpoint(tmp_path / "run", 1, linear, torch.optim.SGD(linear.parameters()))
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert sum(path.suffix == ".safetensors" for path in modes) >= 5
    assert {found for path, found in modes.items() if path.is_file()} == {mode}
    assert {found for path, found in modes.items() if path.is_dir()} == {0o777 & ~umask}


def test_what_is_missing_broken_or_old_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(
        MMDiffError,
        match=r"^x needs absent_xyz, which is not installed: pip install 'mmdiff\[av\]'$",
    ):
        require_extra("absent_xyz.part", "av", "x")
    for content, reason in [
        ("raise OSError('no libxyz.so.2\\nat 0x7')", "no libxyz.so.2"),
        ("import gone_xyz", "gone_xyz is missing"),
        ("raise RuntimeError('operator does not exist')", "operator does not exist"),
        ("from os import nothing_xyz", "cannot import name"),
    ]:
        name = f"broken_{abs(hash(content))}"
        (tmp_path / f"{name}.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(MMDiffError, match="cannot be imported") as refused:
            require_extra(name, "audio", "reading sound")
        assert reason in str(refused.value) and "0x7" not in str(refused.value)
    assert str(OldPackageError("transformers", "4.57.0", "5.2")) == (
        "mmdiff needs transformers 5.2 or later, and 4.57.0 is installed: pip install 'transformers>=5.2'"
    )


def test_a_transformers_below_the_floor_is_refused(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """As when another package pins it, or it was installed without what it depends on."""
    floor = next(line for line in project(root)["dependencies"] if line.startswith("transformers"))
    assert floor.startswith(f"transformers>={auto_config.OLDEST_TRANSFORMERS},")
    for version in ("4.57.1", "5.1.0", "5.2.0rc1"):
        monkeypatch.setattr(
            sys.modules["transformers"], "__version__", version
        )  # its __init__ may run twice
        with pytest.raises(
            MMDiffError,
            match=f"^mmdiff needs transformers 5.2 or later, and {version} is installed",
        ):
            runpy.run_path(auto_config.__file__)


def test_the_core_does_without_the_heavy_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are installed here, so they are hidden."""
    for name in (
        "bitsandbytes",
        "timm",
        "timm.models.vision_transformer",
        "open_clip",
        "open_clip.timm_model",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    vision = PRESETS["tiny"].vision
    assert vision is not None
    for library in ("timm", "open_clip"):
        with pytest.raises(
            MMDiffError, match=rf"needs {library}, .*pip install 'mmdiff\[towers\]'"
        ):
            BUILDERS[library](vision)
    for bits in ("8bit", "4bit"):
        with pytest.raises(
            MMDiffError, match=r"needs bitsandbytes, .*pip install 'mmdiff\[quantize\]'"
        ):
            quantize(torch.nn.Sequential(torch.nn.Linear(2, 2)), bits)
    BUILDERS["transformers"](vision)


def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_floors_are_below_what_was_tested_and_leave_room(root: Path) -> None:
    tested = {}
    for line in (root / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            tested[name] = version
    extras = project(root)["optional-dependencies"]
    every = [
        Requirement(line) for line in [*project(root)["dependencies"], *sum(extras.values(), [])]
    ]
    for requirement in every:
        if requirement.name == "mmdiff":
            assert requirement.extras <= extras.keys()
        else:
            assert requirement.specifier.contains(tested[requirement.name]), requirement
    core = {requirement.name: requirement.specifier for requirement in every}
    # vLLM 0.33 and its neighbours of the same months, and the images of CUDA 12.4 to 12.8
    others = {
        "torch": ("2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.14.0"),
        "transformers": ("5.2.0", "5.16.1", "5.20.2"),
        "pillow": ("11.1.0", "13.0.0"),
        "numpy": ("1.26.4", "2.0.2", "2.2.6"),
        "fastapi": ("0.133.0", "0.136.9"),
        "starlette": ("1.0.1",),
        "tokenizers": ("0.22.1", "0.23.2"),
        "pydantic": ("2.12.0",),
    }
    for name, versions in others.items():
        assert all(core[name].contains(Version(version)) for version in versions), name
    assert not {"timm", "open-clip-torch", "bitsandbytes", "torchvision"} & {
        Requirement(line).name for line in project(root)["dependencies"]
    }


def test_docker_leaves_out_what_an_image_has_no_use_for(root: Path) -> None:
    ignored = (root / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "**/__pycache__", "runs"} <= set(ignored)
    needed = {
        "mmdiff",
        "vision",
        "audio",
        "training",
        "eval",
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "hatch_build.py",
    }
    assert not needed & set(ignored) and "*" not in ignored


def test_the_summary_says_what_to_install(root: Path) -> None:
    reasons = [
        "Skipped: not installed: espeak-ng, flite",
        "Skipped: not installed: espeak-ng",
        "Skipped: there is no chromium; see .ci/run",
        "Skipped: the sample is not beside the repository",
    ]
    assert (
        programs.advice(reasons)
        == "3 tests skipped: install chromium, espeak-ng, flite to run them"
    )
    assert programs.advice(reasons[1:2]) == "1 test skipped: install espeak-ng to run them"
    assert programs.advice(reasons[3:]) is None


def test_on_a_bare_machine_no_program_is_found(root: Path, tmp_path: Path) -> None:
    """What `pytest --bare` does before the first test."""
    code = (
        "import pathlib, shutil, sys\nsys.path.insert(0, '.')\nfrom tests.helpers import programs\n"
        "programs.hide(pathlib.Path(sys.argv[1]))\n"
        "print(programs.missing(programs.PACKAGES) == [*programs.PACKAGES], shutil.which('git') is not None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["True", str(shutil.which("git") is not None)], done.stderr


def test_output_in_an_encoding_without_the_letters_is_no_traceback() -> None:
    code = "import sys; from mmdiff.cli import main; main._write_any_text(); print('Größe ▒ 円')"
    for encoding, wanted in [
        ("ascii", r"Gr\xf6\xdfe \u2592 \u5186"),
        ("cp1252", "Größe \\u2592 \\u5186"),
        ("utf-8", "Größe ▒ 円"),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            timeout=60,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.stdout.decode(encoding).strip() == wanted and done.stderr == b""
