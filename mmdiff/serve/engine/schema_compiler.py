"""Compiles the JSON Schemas of requests in slices of time, and keeps what it compiled.

Compiling may take seconds, so it advances beside the steps of the answers that are running.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from cachetools import LRUCache

from mmdiff.generation import MAX_TOKENS
from mmdiff.pipeline import Pipeline
from mmdiff.serve.engine.jobs import AnswerJob
from mmdiff.serve.engine.messages import AnswerRequest
from mmdiff.serve.engine.time_slices import SlicedWork
from mmdiff.structured.constraint.compiled import CompiledSchema

KNOWN = 256  # compiled schemas, and refusals
CONCURRENT = 4  # schemas that are compiled in turn; others wait


@dataclass
class PendingSchema:
    """A schema that is being compiled, and the jobs that wait for it."""

    work: SlicedWork[CompiledSchema]
    jobs: list[AnswerJob] = field(default_factory=list)


class SchemaCompiler:
    """Compiled schemas by what they are compiled from: clients ask for the same ones again."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.pending: dict[str, PendingSchema] = {}
        self._results: LRUCache[str, CompiledSchema | Exception] = LRUCache(KNOWN)

    def submit(self, job: AnswerJob) -> bool:
        """Whether a job can begin at once; if not, `advance` yields it later."""
        if job.request.schema is None:
            return True
        key = self._key(job.request)
        if key in self._results:
            return True
        if key not in self.pending:
            compile_it = partial(
                self.pipeline.compile, job.request.schema, self._length(job.request)
            )
            self.pending[key] = PendingSchema(SlicedWork(compile_it))
        self.pending[key].jobs.append(job)
        return False

    def compiled(self, request: AnswerRequest) -> CompiledSchema:
        """The constraint of an answer; raises what its schema is refused with."""
        found = self._results[self._key(request)]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found

    def advance(self, seconds: float, interrupt: Callable[[], bool]) -> Iterator[list[AnswerJob]]:
        """Give the first in line a slice of time each; yields the jobs whose schema is compiled."""
        for key, pending in list(self.pending.items()):
            if all(job.cancelled for job in pending.jobs):
                pending.work.abandon()
                del self.pending[key]
        turns = list(self.pending.items())[:CONCURRENT]
        for key, pending in turns:
            if pending.work.advance(seconds / len(turns), interrupt):
                del self.pending[key]
                self._results[key] = pending.work.result()
                yield pending.jobs

    def _key(self, request: AnswerRequest) -> str:
        return json.dumps([request.schema, self._length(request)])

    def _length(self, request: AnswerRequest) -> int:
        """Tokens that a structured answer may have."""
        longest = self.pipeline.model.model_config.backbone.max_position_embeddings
        return min(request.limit or MAX_TOKENS, longest)
