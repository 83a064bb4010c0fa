"""The list of small changes fits the code: `tests/mutation/run.py` can start."""

import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parent / "mutation" / "run.py"


def test_every_change_fits_the_code() -> None:
    done = subprocess.run([sys.executable, RUN, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
