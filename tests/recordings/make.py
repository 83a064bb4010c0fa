"""Make the recordings beside this file again: `python tests/recordings/make.py`. It needs flite.

A test sentence, and questions about the first test pictures of easy-VQA; the voice, slt, is heard
in no training.
"""

import json
from pathlib import Path

import numpy as np
import soundfile

from mmdiff.audio.audio_io import SAMPLE_RATE
from mmdiff.training.tiny import easy_vqa
from mmdiff.training.tiny.sentences import spoken
from mmdiff.training.tiny.voices import Voice, say

FOLDER = Path(__file__).parent
SLT = Voice("flite", "slt")
NUM_QUESTIONS = 8


def write(name: str, text: str) -> None:
    soundfile.write(FOLDER / name, say(text, SLT, np.random.default_rng(0)), SAMPLE_RATE)


def main() -> None:
    write("sentence.flac", "how many red circles are in the picture")
    asked = []
    for number, picture in enumerate(easy_vqa.load("test")[:NUM_QUESTIONS]):
        question, answer = picture.questions[number % len(picture.questions)]
        write(f"question-{number}.flac", spoken(question))
        asked.append({"file": f"question-{number}.flac", "question": question, "answer": answer})
    (FOLDER / "questions.json").write_text(json.dumps(asked, indent=1) + "\n")


if __name__ == "__main__":
    main()
