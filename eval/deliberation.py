"""Deliberation: does the diffusion model put Whisper's transcripts right, with the audio in view?

    python -m mmdiff.eval.deliberation --limit 80

Whisper-LLaDA (arXiv 2509.16622) opens what is doubted of a transcript and denoises it. Here
Whisper's draft of sentences by validation voices, clean and in noise, goes through
`Pipeline.refine`; "the likelier reading" is what `Pipeline.transcribe` does. Measured are the wrong
words of each.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable

import numpy as np

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples
from mmdiff.audio.vad import Span
from mmdiff.eval.evidence import EvidenceRow, summary
from mmdiff.eval.speech import RATIOS, SENTENCES, word_errors
from mmdiff.pipeline import Pipeline, load
from mmdiff.speech import RefineMode
from mmdiff.training.tiny.scenes import VALID_SEEDS
from mmdiff.training.tiny.sentences import KINDS
from mmdiff.training.tiny.voices import FORMANT, Voice, noisy, say

VOICES = (
    Voice("flite", "rms"),
    Voice("flite", "awb"),
    Voice("flite", "kal16"),
    *FORMANT["valid"][:2],
)


def drafted(pipeline: Pipeline, samples: Samples) -> str:
    """Whisper's words alone."""
    found = pipeline.recognizer.transcribe(samples, (Span(0, len(samples)),))
    return " ".join(segment.text for segment, _ in found)


def refined(
    pipeline: Pipeline, samples: Samples, draft: str, share: float, mode: RefineMode
) -> str:
    """The draft in the words of the model, of which some are opened."""
    plain = " ".join(re.findall(r"[\w']+", draft.lower()))
    if not plain:
        return draft
    made = pipeline.refine(samples, plain, sample_rate=SAMPLE_RATE, share=share, mode=mode)
    return made.text


def measure(pipeline: Pipeline, limit: int) -> dict[str, list[EvidenceRow]]:
    """Rows of wrong words, by what was done with the draft."""
    ways: dict[str, Callable[[Samples, str], str]] = {
        "draft": lambda samples, draft: draft,
        "refine, share 0.15": lambda samples, draft: refined(
            pipeline, samples, draft, 0.15, "low_confidence"
        ),
        "refine, share 0.3": lambda samples, draft: refined(
            pipeline, samples, draft, 0.3, "low_confidence"
        ),
        "refine, in 4 chunks": lambda samples, draft: refined(
            pipeline, samples, draft, 0.3, "chunks"
        ),
        "the likelier reading": lambda samples, draft: (
            pipeline.transcribe(samples, sample_rate=SAMPLE_RATE).text
        ),
    }
    rows: dict[str, list[EvidenceRow]] = {}
    for name in ways:
        rows[name] = []
    for number in range(limit):
        rng = np.random.default_rng((VALID_SEEDS.start + number, 11))
        text = KINDS[SENTENCES[number % len(SENTENCES)]](rng)
        ratio = RATIOS[number // 3 % len(RATIOS)]
        samples = say(text, VOICES[number % len(VOICES)], rng)
        if ratio is not None:
            samples = noisy(samples, ratio, rng)
        draft = drafted(pipeline, samples)
        for name, way in ways.items():
            made = way(samples, draft)
            if ratio is None:
                kind = "clean"
            else:
                kind = f"{ratio} dB"
            rows[name].append(
                EvidenceRow(
                    name, str(number), str(number), kind, text, made, *word_errors([text], [made])
                )
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=80, help="sentences")
    parser.add_argument("--model", default="tiny")
    given = parser.parse_args()
    for name, rows in measure(load(given.model), given.limit).items():
        scored = summary(rows, errors=True)
        kinds = {}
        for kind, each in scored["kinds"].items():
            kinds[kind] = round(each["score"], 4)
        print(
            json.dumps(
                {
                    "way": name,
                    "wrong": scored["count"],
                    "of": scored["of"],
                    "score": round(scored["score"], 4),
                    "interval": scored["interval"],
                    **kinds,
                }
            )
        )


if __name__ == "__main__":
    main()
