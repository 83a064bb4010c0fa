"""Instruction texts that the model reads, for pipeline and training alike."""

from __future__ import annotations

from typing import Literal

CaptionLength = Literal["word", "short", "long"]
CAPTION_PROMPTS: dict[CaptionLength, str] = {
    "word": "Describe the picture in one word.",
    "short": "Describe the picture briefly.",
    "long": "Describe the picture in detail.",
}
CAPTION_ROOM: dict[CaptionLength, int] = {"word": 8, "short": 32, "long": 64}  # canvas positions
REFINE_PROMPT = "Correct the transcript of the audio."
EXTRACT_PROMPT = "Answer as JSON: {}"  # with an outline of the schema
FILL_PROMPT = "Fill in the blanks: {}"  # with the text
