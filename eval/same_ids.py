"""Whether two versions of this code give the same answers: tokens and steps as JSON, compared.

Runs on its own and uses `mmdiff.load` alone, so that it also runs in a checkout of an older commit:

    python eval/same_ids.py ids --questions 200 > new.json     # and the same in the other one
    python eval/same_ids.py compare old.json new.json
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

COLOURS = ("red", "blue", "green", "yellow", "black")
SHAPES = ("circle", "square", "triangle", "star")
QUESTIONS = (
    "what color is the {shape}?",
    "is there a {colour} {shape}?",
    "how many {shape}s are there?",
    "what is in the image?",
)


def cases(count: int) -> list[tuple[Any, str]]:
    """Images of two shapes, with a question each, the same on every machine."""
    from PIL import Image, ImageDraw

    draws, made = random.Random(0), []
    for _ in range(count):
        image = Image.new("RGB", (96, 96), "white")
        pen = ImageDraw.Draw(image)
        for left in (8, 52):
            top, colour = draws.randint(8, 50), draws.choice(COLOURS)
            paint = draws.choice((pen.ellipse, pen.rectangle))
            paint((left, top, left + 34, top + 34), fill=colour)
        words = {"shape": draws.choice(SHAPES), "colour": draws.choice(COLOURS)}
        made.append((image, draws.choice(QUESTIONS).format(**words)))
    return made


def answers(
    model: str, count: int, settings: dict[str, Any], dtype: str = "float32"
) -> list[dict[str, Any]]:
    """Tokens of each answer and of a caption, and the steps that committed them."""
    import mmdiff

    pipeline = mmdiff.load(model, device="cpu", dtype=dtype)
    made = []
    for seed, (image, question) in enumerate(cases(count)):
        # Answers to questions are short; captions take several steps.
        for answer in (
            pipeline.ask(image, question, seed=seed, **settings),
            pipeline.caption(image, length="long", seed=seed, **settings),
        ):
            tokens = [[token.text, token.step] for token in answer.tokens]
            made.append({"question": question, "text": answer.text, "tokens": tokens})
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    ids = commands.add_parser("ids", help="print the answers")
    ids.add_argument("--model", default="tiny", help="a folder, or a shipped model")
    ids.add_argument("--questions", type=int, default=200)
    ids.add_argument("--settings", type=json.loads, default={}, help="decoding, as JSON")
    ids.add_argument("--dtype", default="float32", help="or bfloat16")
    compare = commands.add_parser("compare", help="exit with 1 where two lists differ")
    compare.add_argument("files", nargs=2, type=Path)
    given = parser.parse_args()
    if given.command == "ids":
        json.dump(answers(given.model, given.questions, given.settings, given.dtype), sys.stdout)
        return 0
    one, other = map(_read, given.files)
    differ = [
        number for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]
    ]
    print(f"{len(one) - len(differ)} of {len(one)} equal; others: {differ[:20]}")
    return int(bool(differ))


def _read(file: Path) -> Any:
    return json.loads(file.read_text())


if __name__ == "__main__":
    sys.exit(main())
