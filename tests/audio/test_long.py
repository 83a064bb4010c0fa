"""Minutes of speech: bounded memory, progress, times that grow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, re, sys
import numpy as np
import mmdiff
from mmdiff.audio.audio_io import load_audio

pipeline = mmdiff.load("tiny", device="cpu")
talk = np.pad(load_audio(sys.argv[1]), (0, 16_000))
before = int(re.search(r"VmRSS:\\s*(\\d+)", open("/proc/self/status").read())[1])
shares = []
seconds = int(sys.argv[2])
made = pipeline.transcribe(np.tile(talk, seconds * 16_000 // len(talk)), sample_rate=16_000, progress=shares.append)
most = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"shares": shares, "times": [(s.start, s.end) for s in made.segments], "text": made.text,
                  "duration": made.duration, "mebibytes": (most - before) / 1024}))
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"
)
@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.long)])
def test_minutes_take_little_memory(root: Path, seconds: int) -> None:
    command = [sys.executable, "-c", CODE, str(root / "examples" / "talk.flac"), str(seconds)]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert done["duration"] > seconds - 10 and done["times"][-1][1] > seconds - 20
    assert done["times"] == sorted(done["times"]) and all(
        end - start <= 10 for start, end in done["times"]
    )
    assert (
        done["shares"] == sorted(done["shares"])
        and done["shares"][-1] == 1.0
        and len(done["shares"]) > 10
    )
    assert done["text"].count("kitchen lights") > seconds / 12
    assert done["mebibytes"] < 600
