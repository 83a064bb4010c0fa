"""The start of the engine process: why a model cannot be loaded is told in one sentence."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.messages import Unloadable, decode

# Runs at the start of Python: transformers looks older when its version is checked.
OLD_TRANSFORMERS = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "mmdiff.modeling.auto_config":
            import transformers
            transformers.__version__ = "4.57.1"
        return None

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
def test_an_old_package_is_told_without_a_traceback(tmp_path: Path, root: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(OLD_TRANSFORMERS)
    paths = os.pathsep.join([str(tmp_path), str(root), os.environ.get("PYTHONPATH", "")])
    ours, theirs = socket.socketpair()
    options = {"model": "tiny", "threads": 1, "max_model_len": None}
    with ours, theirs:
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "mmdiff.serve.engine",
                str(theirs.fileno()),
                json.dumps(options),
            ],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )
        message = decode(ipc.receive(ours)[0])
    assert message == Unloadable(
        "mmdiff needs transformers 5.2 or later, and 4.57.1 is installed: pip install "
        "'transformers>=5.2'"
    )
    assert ended.returncode == 2 and ended.stderr == ""
