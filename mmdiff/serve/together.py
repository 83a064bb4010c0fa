"""Many answers in the making at once: whoever is next joins between steps, whoever is finished leaves.

What can be denoised together is what has the same decoding settings; others take turns, a step each. An answer does not
depend on what it is made beside. Left out: whose turn it is to come in, deadlines, and sounds to be written down, which
`Pipeline.transcribe` makes in batches of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmdiff.config import DecodingConfig
from mmdiff.errors import MMDiffError
from mmdiff.pipeline import Answer, Pipeline
from mmdiff.processor import Messages
from mmdiff.sampler import Denoiser


@dataclass(frozen=True)
class Question:
    """A conversation to be answered, with changes to the model's decoding settings."""

    messages: Messages
    decoding: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass
class _Group:
    """Rows with the same settings, and whose they are by their names in the batch."""

    batch: Denoiser
    tags: dict[int, Hashable]


class Together:
    """Answers in the making."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self._groups: dict[DecodingConfig, _Group] = {}

    def __len__(self) -> int:
        return sum(len(group.tags) for group in self._groups.values())

    def add(self, questions: Sequence[tuple[Hashable, Question]]) -> dict[Hashable, MMDiffError]:
        """Begin with these, each with a tag of the caller's; gives those that cannot be begun, and why."""
        refused: dict[Hashable, MMDiffError] = {}
        alike: dict[DecodingConfig, list[tuple[Hashable, Question]]] = {}
        for tag, question in questions:
            try:
                alike.setdefault(self.pipeline.decoding(**question.decoding), []).append((tag, question))
            except MMDiffError as error:
                refused[tag] = error
        for settings, some in alike.items():
            refused |= self._begin(settings, some)
        return refused

    def step(self) -> list[tuple[Hashable, Answer]]:
        """One step for everybody; gives the answers that are finished."""
        finished: list[tuple[Hashable, Answer]] = []
        for settings, group in list(self._groups.items()):
            if group.batch.working:
                group.batch.step()
            left = group.batch.leave()
            answers = self.pipeline.answers(left) if left.names else []
            finished += [(group.tags.pop(name), answer) for name, answer in zip(left.names, answers, strict=True)]
            if not group.tags:
                del self._groups[settings]
        return finished

    def _begin(
        self, settings: DecodingConfig, questions: Sequence[tuple[Hashable, Question]]
    ) -> dict[Hashable, MMDiffError]:
        try:
            batch = self.pipeline.start([question.messages for _, question in questions],
                                        seeds=[question.seed for _, question in questions], **questions[0][1].decoding)
        except MMDiffError as error:
            if len(questions) == 1:
                return {questions[0][0]: error}
            refused: dict[Hashable, MMDiffError] = {}
            for each in questions:  # one of them does not fit, the others are not to suffer
                refused |= self._begin(settings, [each])
            return refused
        tags = [tag for tag, _ in questions]
        group = self._groups.get(settings)
        if group is None:
            self._groups[settings] = _Group(batch, dict(zip(batch.names, tags, strict=True)))
        else:
            group.tags.update(zip(group.batch.join(batch), tags, strict=True))
        return {}
