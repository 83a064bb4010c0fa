"""Public reports about installing and other machines, tried on mmdiff: each a small case of our
own."""

import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from mmdiff.decoding import sampler
from mmdiff.errors import MMDiffError, OldPackageError, require_extra, require_posix
from mmdiff.modeling.checkpoint import save_folder
from mmdiff.modeling.device import choose_device
from mmdiff.pipeline import load
from tests.helpers import programs


def requirements(root: Path, extra: str | None = None) -> dict[str, Requirement]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return {Requirement(line).name: Requirement(line) for line in lines}


@pytest.mark.parametrize(
    "module",
    [
        # https://github.com/intel/dffml/issues/1289, https://github.com/chenjj/CORScanner/issues/2
        "fcntl",
        # https://github.com/prometheus/client_python/issues/27,
        # https://github.com/PyPSA/PyPSA/issues/9
        "resource",
    ],
)
def test_a_posix_module_that_is_missing_is_a_sentence(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MMDiffError, match=rf"needs Linux or macOS .*{module}.* WSL"):
        require_posix("serving")


@pytest.mark.parametrize(
    "folder", ["mmdiff", "mmdiff/serve", "vision", "audio", "training", "eval"]
)
def test_no_posix_module_is_imported_with_a_file(root: Path, folder: str) -> None:
    """https://github.com/agentscope-ai/agentscope/issues/36,
    https://github.com/artur-deluca/landscapeviz/issues/8"""
    named = re.compile(
        r"^(?:import|from) (?:fcntl|resource|pwd|grp|termios|tty|pty|syslog)\b", re.MULTILINE
    )
    assert [
        file.name for file in (root / folder).glob("*.py") if named.search(file.read_text("utf-8"))
    ] == []


@pytest.mark.parametrize("name", ["SIGALRM", "SIGHUP", "SIGUSR1", "SIGKILL"])
def test_no_posix_signal_is_read_when_a_file_is_imported(root: Path, name: str) -> None:
    """https://github.com/SWE-agent/SWE-agent/issues/75,
    https://github.com/bakdata/kpops/issues/24"""
    files = [
        file
        for folder in ("mmdiff", "mmdiff/serve", "eval", "training")
        for file in (root / folder).glob("*.py")
    ]
    at_import = re.compile(rf"^[A-Z_a-z]+ ?=.*signal\.{name}", re.MULTILINE)
    assert [file.name for file in files if at_import.search(file.read_text("utf-8"))] == []


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(
    "again",
    [
        # https://github.com/safetensors/safetensors/issues/782
        # https://github.com/huggingface/sentence-transformers/issues/4010
        False,
        # https://github.com/safetensors/safetensors/pull/789 (an existing file is written over)
        True,
    ],
)
def test_saved_weights_can_be_read_by_others(
    again: bool, random_tiny: Path, tmp_path: Path
) -> None:
    loaded = load(random_tiny, device="cpu")
    before = os.umask(0o022)
    try:
        for _ in range(1 + again):
            save_folder(loaded.model, loaded.processor, tmp_path)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        # https://github.com/bastibe/python-soundfile/issues/468,
        # https://github.com/speaches-ai/speaches/issues/21
        ("OSError('the library sndfile is not here')", "the library sndfile is not here"),
        # https://github.com/pytorch/audio/issues/3335, https://github.com/pytorch/audio/issues/62
        ("OSError('undefined symbol: _Z1x')", "undefined symbol"),
        # https://github.com/meta-llama/llama-cookbook/issues/710,
        # https://github.com/huggingface/diffusers/issues/9109
        ("RuntimeError('operator x::y does not exist')", "operator x::y does not exist"),
    ],
)
def test_what_is_installed_but_broken_is_not_called_missing(
    error: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{len(reason)}_{len(error)}"
    (tmp_path / f"{name}.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MMDiffError, match="installed but cannot be imported") as refused:
        require_extra(name, "audio", "reading sound")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    "package",
    [
        # https://github.com/johnsmith0031/alpaca_lora_4bit/issues/85,
        # https://github.com/huggingface/open-r1/issues/108
        "bitsandbytes",
        "torchvision",  # https://github.com/emova-ollm/EMOVA/issues/5
        "timm",
        "open-clip-torch",
    ],
)
def test_the_core_needs_nothing_that_clashes(root: Path, package: str) -> None:
    assert package not in requirements(root)


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("torch", "2.6.0"),  # https://github.com/torch-spyre/sendnn-inference/issues/145
        ("torch", "2.9.0"),  # https://github.com/vllm-project/vllm-ascend/issues/9225
        ("torch", "2.10.0"),  # https://github.com/vllm-project/vllm-ascend/issues/8286
        ("torch", "2.8.0"),  # https://github.com/vllm-project/vllm-ascend/issues/3266
        ("transformers", "5.5.3"),  # https://github.com/vllm-project/vllm-ascend/issues/9225
    ],
)
def test_it_installs_beside_last_years_packages(root: Path, package: str, version: str) -> None:
    assert requirements(root)[package].specifier.contains(version)


def test_the_command_line_works_with_the_newest_click(root: Path) -> None:
    """https://github.com/modelcontextprotocol/python-sdk/issues/688,
    https://github.com/ewels/rich-click/issues/223"""
    assert not requirements(root)["typer"].specifier.contains("0.15.3")


@pytest.mark.parametrize(
    "device",
    [
        "mps",  # https://github.com/tyfeld/MMaDA-Parallel/issues/3
        "meta",
    ],
)
def test_a_device_that_is_not_here_is_a_short_sentence(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is here")
    with pytest.raises(MMDiffError, match=f"'{device}' cannot be used here") as refused:
        choose_device(device)
    assert len(str(refused.value)) < 250


def test_a_draw_is_exact_without_float64_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/pytorch/pytorch/issues/122602: float64 is for the CPU where a device has
    none."""

    class OnMps:
        """Logits that say they are on such a device."""

        def __init__(self, logits: torch.Tensor) -> None:
            self.logits, self.shape, self.device = logits, logits.shape, torch.device("mps")

        def index_fill(self, *args: Any) -> "OnMps":
            return self

        def to(self, device: torch.device | str) -> torch.Tensor:
            assert torch.device(device).type == "cpu"
            return self.logits

    made = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda value, device=None: made(value))
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self)
    draws = [(torch.Generator().manual_seed(3), 4)]
    ids = sampler.sample(OnMps(torch.zeros(4, 9)), 0, 1.0, draws)  # type: ignore[arg-type]
    assert ids.shape == (4,)


@pytest.mark.parametrize("version", ["99.0.0", "5.0.0"])
def test_a_tokenizer_of_a_newer_release_says_which(
    version: str, random_tiny: Path, tmp_path: Path
) -> None:
    """https://github.com/m87-labs/moondream/issues/242,
    https://github.com/allenai/open-instruct/issues/738"""
    for file in random_tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["model"]["type"] = "Unheard"
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_version": version}))
    wanted = "pip install 'transformers>=99.0.0'" if version == "99.0.0" else "fetch it again"
    with pytest.raises(MMDiffError, match=re.escape(wanted)):
        load(tmp_path, device="cpu")


def test_an_old_transformers_is_named() -> None:
    """https://github.com/unslothai/unsloth/issues/3415"""
    assert "mmdiff needs transformers 5.2 or later, and 4.57.1 is installed" in str(
        OldPackageError("transformers", "4.57.1", "5.2")
    )


@pytest.mark.parametrize(
    "text",
    [
        "\u2588",  # https://github.com/Aider-AI/aider/issues/1408
        "\u2192",  # https://github.com/Aider-AI/aider/issues/4582
    ],
)
def test_a_letter_that_the_terminal_lacks_is_escaped(text: str) -> None:
    code = "from mmdiff.cli import main; main._write_any_text(); print(__import__('sys').argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, text],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )
    assert done.stdout.decode("ascii").strip() == ascii(text).strip("'")


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """https://github.com/marieai/marie-ai/issues/94,
    https://github.com/2noise/ChatTTS/issues/133"""
    from mmdiff.eval.speed import compile_layers

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(MMDiffError, match=r"C\+\+ compiler .* not installed"):
        compile_layers(_OnCpu())  # type: ignore[arg-type]


class _OnCpu:
    device = torch.device("cpu")


def test_tests_that_want_a_program_name_it() -> None:
    """https://github.com/stemdeckapp/stemdeck/issues/581,
    https://github.com/riffusion/riffusion-hobby/issues/39"""
    assert programs.advice(["Skipped: not installed: flite", "Skipped: not installed: npm"]) == (
        "2 tests skipped: install flite, npm to run them"
    )


def test_there_is_a_version_option() -> None:
    """https://github.com/amietn/vcsi/issues/11"""
    from typer.testing import CliRunner

    from mmdiff.cli.main import app

    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0 and result.stdout.startswith("mmdiff ")


def test_links_that_git_made_text_files_are_explained(root: Path) -> None:
    """https://github.com/git-for-windows/git/issues/117; what a build says is tested in
    test_packaging.py"""
    assert "core.symlinks true" in (root / "hatch_build.py").read_text("utf-8")
    assert "core.symlinks true" in (root / "docs" / "install.md").read_text("utf-8")
