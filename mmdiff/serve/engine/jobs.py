"""Requests in the engine, and the sequences that are denoised for them."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdiff.decoding.sampler import Sampler
from mmdiff.errors import NoSpeechError
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.detokenizer import StreamingText
from mmdiff.serve.engine.messages import AnswerRequest, EngineRequest, TranscribeRequest
from mmdiff.transcript import Transcript


@dataclass
class Job:
    """A request until it is done, failed or cancelled."""

    request: EngineRequest
    arrays: Sequence[ipc.Array]
    deadline: float = field(init=False)  # on the monotonic clock
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.deadline = self.arrived + self.request.seconds

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline


@dataclass
class TranscriptionJob(Job):
    """A request for a transcript."""

    request: TranscribeRequest

    @property
    def separate(self) -> bool:
        """Whether channels are transcribed each on its own."""
        return self.arrays[0].ndim == 2

    @property
    def tracks(self) -> list[ipc.Array]:
        return list(np.atleast_2d(self.arrays[0]))


@dataclass
class AnswerJob(Job):
    """A request for answers."""

    request: AnswerRequest
    messages: list[dict[str, Any]] = field(init=False)
    unfinished: int = field(init=False)  # answers
    heard: str | None = None  # a spoken question in words
    heard_confidence: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.messages = list(self.request.messages)
        self.unfinished = self.request.n

    @property
    def tracks(self) -> list[ipc.Array]:
        """A spoken question: the last audio of the conversation."""
        return [self.arrays[self._last_content()[self._question()]["array"]]]

    def put_words(self, question: Transcript) -> None:
        """Replace a spoken question by its words.

        Raises:
            NoSpeechError: there are none.
        """
        if not question.text:
            raise NoSpeechError(
                "no speech was found in the spoken question; say it again, nearer to the microphone"
            )
        content = list(self._last_content())
        content[self._question()] = {"type": "text", "text": question.text}
        self.messages[-1] = {**self.messages[-1], "content": content}
        self.heard, self.heard_confidence = question.text, round(question.confidence, 4)

    def _last_content(self) -> Sequence[dict[str, Any]]:
        content: Sequence[dict[str, Any]] = self.messages[-1]["content"]
        return content

    def _question(self) -> int:
        parts = enumerate(self._last_content())
        return max(number for number, part in parts if part["type"] == "audio")


@dataclass
class RunningSequence:
    """One answer of a job, while it is denoised."""

    job: AnswerJob
    index: int
    text: StreamingText
    expired: bool = False  # its deadline has passed
    first_commit: float | None = None  # on the monotonic clock


@dataclass
class Group:
    """Sequences that are denoised together, by their names in the batch."""

    batch: Sampler
    rows: dict[int, RunningSequence] = field(default_factory=dict)


def group_by_settings(jobs: Sequence[AnswerJob]) -> list[list[AnswerJob]]:
    """The jobs that can start in one batch."""
    groups: dict[Hashable, list[AnswerJob]] = {}
    for job in jobs:
        structured = job.request.schema is not None
        length = job.request.limit if structured else None  # of a structured answer's canvas
        groups.setdefault((job.request.decoding, structured, length), []).append(job)
    return list(groups.values())
