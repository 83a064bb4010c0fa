"""Have flite read the example audio beside this file: `python examples/make_audio.py [FOLDER]`.

The voice is slt, which no model here is trained on. On Debian: `apt-get install flite`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

PAUSE = 1.2  # seconds between sentences
SENTENCES = {
    "question.flac": ["what color is the circle"],
    "talk.flac": ["please turn on the kitchen lights", "is there a red triangle at the top"],
}


def say(sentence: str) -> tuple[np.ndarray, int]:
    """Samples and how many there are in a second."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", "slt", "-t", sentence, "-o", file.name], check=True)
        samples, rate = soundfile.read(file.name)
    return samples, rate


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for name, sentences in SENTENCES.items():
        read = [say(sentence) for sentence in sentences]
        rate = read[0][1]
        parts = [part for samples, _ in read for part in (np.zeros(int(PAUSE * rate)), samples)]
        soundfile.write(folder / name, np.concatenate([*parts[1:], np.zeros(rate // 5)]), rate)


if __name__ == "__main__":
    main()
