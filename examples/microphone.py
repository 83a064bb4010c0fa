"""Ask about an image aloud: `python examples/microphone.py IMAGE [SECONDS]`, four seconds by
default.

Needs `pip install sounddevice`, and on Linux PortAudio (Debian: `apt-get install libportaudio2`).
"""

import sys

import sounddevice

import mmdiff
from mmdiff.errors import MMDiffError

RATE = 16_000  # samples in a second


def main() -> None:
    image = sys.argv[1]
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 4.0
    pipeline = mmdiff.load("tiny")
    print("speak now")
    samples = sounddevice.rec(
        int(seconds * RATE), samplerate=RATE, channels=1, dtype="float32", blocking=True
    )
    try:
        answer = pipeline.ask(image, speech=samples[:, 0], sample_rate=RATE)
    except MMDiffError as error:  # there was no speech, for example
        sys.exit(str(error))
    print(f"{answer.heard}? {answer.text}")


if __name__ == "__main__":
    main()
