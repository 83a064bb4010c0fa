"""Ask about images from Python: `python examples/ask.py [MODEL]`, `tiny` by default."""

import sys
from pathlib import Path

import mmdiff

IMAGES = Path(__file__).parent
QUESTION = "what color is the circle?"


def main() -> None:
    pipeline = mmdiff.load(sys.argv[1] if len(sys.argv) > 1 else "tiny")

    answer = pipeline.ask(IMAGES / "shapes.png", QUESTION)
    print(f"{QUESTION} {answer.text} (confidence {answer.confidence:.2f}, {answer.steps} steps)")

    # Several questions at once, each about its own image; an answer does not depend on the
    # others.
    images = [IMAGES / "busy.png", IMAGES / "circles.png"]
    for several in pipeline.ask(
        images, ["what is at the bottom right?", "how many circles are there?"]
    ):
        print(several.text)

    for length in ("word", "short", "long"):
        print(f"{length}: {pipeline.caption(IMAGES / 'wide.png', length).text}")

    # The answer while it is denoised: None where a position is still open.
    for draft in pipeline.stream(IMAGES / "one.png", "what is the color of the shape?"):
        print(
            f"step {draft.step}:",
            "".join("▒" if token is None else token.text for token in draft.tokens),
        )


if __name__ == "__main__":
    main()
