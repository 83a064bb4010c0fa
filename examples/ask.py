"""Ask about pictures from Python: `python examples/ask.py [MODEL]`, `tiny` by default."""

import sys
from pathlib import Path

import mmdiff

PICTURES = Path(__file__).parent
QUESTION = "what color is the circle?"


def main() -> None:
    pipeline = mmdiff.load(sys.argv[1] if len(sys.argv) > 1 else "tiny")

    answer = pipeline.ask(PICTURES / "shapes.png", QUESTION)
    print(f"{QUESTION} {answer.text} (confidence {answer.confidence:.2f}, {answer.steps} steps)")

    # Several questions at once, each about its own picture; an answer does not depend on the
    # others.
    pictures = [PICTURES / "busy.png", PICTURES / "circles.png"]
    for several in pipeline.ask(
        pictures, ["what is at the bottom right?", "how many circles are there?"]
    ):
        print(several.text)

    for length in ("word", "short", "long"):
        print(f"{length}: {pipeline.caption(PICTURES / 'wide.png', length).text}")

    # The answer while it is denoised: None where a position is still open.
    for draft in pipeline.stream(PICTURES / "one.png", "what is the color of the shape?"):
        print(
            f"step {draft.step}:",
            "".join("▒" if token is None else token.text for token in draft.tokens),
        )


if __name__ == "__main__":
    main()
