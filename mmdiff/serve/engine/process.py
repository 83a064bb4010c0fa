"""Engine process: continuous batching over denoising steps.

Requests come in as frames (messages.py over ipc.py) and leave as events. Sequences with the same
settings share a batch, and join and leave it between steps. A sequence past its deadline is decided
at once, and a cancelled one goes before the next step. Transcripts advance by a segment
(transcriber.py) and schemas by a slice of time (schema_compiler.py) between the steps. The process
ends when the server's does.
"""

from __future__ import annotations

import gc
import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch

from mmdiff.answers import Answer, Token
from mmdiff.config import DecodingConfig
from mmdiff.errors import ContextError, MMDiffError
from mmdiff.pipeline import Pipeline, load
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.conversations import with_media, with_outline
from mmdiff.serve.engine.detokenizer import (
    StreamingText,
    draft,
    last_draft,
    settled_text,
    structure_details,
)
from mmdiff.serve.engine.jobs import (
    AnswerJob,
    Group,
    Job,
    RunningSequence,
    TranscriptionJob,
    group_by_settings,
)
from mmdiff.serve.engine.messages import (
    AnswerFinished,
    AnswerRequest,
    CancelRequest,
    Done,
    DraftMade,
    Failed,
    FromEngine,
    Heartbeat,
    Ready,
    Started,
    TextAdded,
    ToEngine,
    TranscribeRequest,
    decode,
    encode,
)
from mmdiff.serve.engine.model_info import limit_positions, model_info
from mmdiff.serve.engine.schema_compiler import SchemaCompiler
from mmdiff.serve.engine.transcriber import SpeechWindows, Transcriber, Transcription
from mmdiff.structured.schema.errors import ScaffoldError
from mmdiff.transcript import Transcript

BEAT = 0.5  # seconds between heartbeats
SHARE = 1 / 3  # of the time of steps, that compiling may take beside them
IDLE_SLICE = 0.02  # seconds of compiling, while there is nothing to step
Incoming: TypeAlias = tuple[ToEngine | SpeechWindows, Sequence[ipc.Array]]


class Engine:
    """Answers the requests that come out of a socket, into it."""

    def __init__(self, pipeline: Pipeline, sock: socket.socket) -> None:
        self.pipeline, self.sock = pipeline, sock
        self.inbox: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self.jobs: dict[str, AnswerJob | TranscriptionJob] = {}
        self.groups: dict[DecodingConfig, Group] = {}
        self.compiler = SchemaCompiler(pipeline)
        self.transcriber = Transcriber(
            pipeline, self.emit, lambda windows: self.inbox.put((windows, ()))
        )
        self.last_turn, self.steps = time.monotonic(), 0  # when the loop last came round
        self._sending = threading.Lock()

    def run(self) -> None:
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()
        while True:
            self.last_turn = time.monotonic()
            self._receive_all()
            for settings, group in list(self.groups.items()):
                jobs = [row.job for row in group.rows.values()]
                self._guarded(partial(self._step, settings, group), jobs)
            for transcription in list(self.transcriber.running):
                self._guarded(partial(self._transcribe, transcription), [transcription.job])
            busy = bool(self.groups or self.transcriber.running)
            self._compile(SHARE * (time.monotonic() - self.last_turn) if busy else IDLE_SLICE)

    def emit(self, event: FromEngine) -> None:
        with self._sending:
            ipc.send(self.sock, encode(event))

    def _read(self) -> None:
        try:
            while True:
                header, arrays = ipc.receive(self.sock)
                self.inbox.put((decode(header), arrays))
        except (EOFError, OSError):
            os._exit(0)  # the server is gone

    def _beat(self) -> None:
        """Heartbeats, also during a long step."""
        store = self.pipeline.store
        while True:
            busy = time.monotonic() - self.last_turn
            self.emit(Heartbeat(self.steps, store.num_bytes, store.hits, store.misses, busy))
            time.sleep(BEAT)

    def _receive_all(self) -> None:
        """All messages that wait; if there is nothing to do, wait for one."""
        idle = not (self.groups or self.transcriber.running or self.compiler.pending)
        startable: list[AnswerJob] = []
        while True:
            try:
                message, arrays = self.inbox.get(block=idle, timeout=BEAT)
            except queue.Empty:
                break
            idle = False
            self._receive(message, arrays, startable)
        self._begin(startable)

    def _receive(
        self,
        message: ToEngine | SpeechWindows,
        arrays: Sequence[ipc.Array],
        startable: list[AnswerJob],
    ) -> None:
        match message:
            case CancelRequest():
                self._cancel(message.id)
            case SpeechWindows():
                if (waiting := self.jobs.get(message.id)) is not None:
                    self.transcriber.begin(waiting, message.windows)
            case TranscribeRequest():
                recording = self.jobs[message.id] = TranscriptionJob(message, arrays)
                self.emit(Started(message.id, prompt_tokens=0))
                self.transcriber.submit(recording)
            case AnswerRequest():
                job = self.jobs[message.id] = AnswerJob(message, arrays)
                if message.spoken:
                    self.transcriber.submit(job)
                elif self.compiler.submit(job):
                    startable.append(job)

    def _begin(self, jobs: Sequence[AnswerJob]) -> None:
        for alike in group_by_settings([job for job in jobs if not job.cancelled]):
            try:
                self._start(alike)
            except Exception:  # one of them does not fit and fails; the others begin without it
                for job in alike:
                    self._guarded(partial(self._start, [job]), [job])

    def _guarded(self, work: Callable[[], None], jobs: Sequence[Job]) -> None:
        """An error fails the jobs that share its pass, and no others."""
        try:
            work()
        except MMDiffError as error:
            too_long = isinstance(error, ContextError)
            code = "context_length_exceeded" if too_long else "invalid_request"
            param = "response_format" if isinstance(error, ScaffoldError) else None
            self._fail(jobs, 400, code, str(error), param)
        except Exception:
            traceback.print_exc()
            self._fail(jobs, 500, "internal_error", "the engine could not answer this")

    def _fail(
        self, jobs: Sequence[Job], status: int, code: str, message: str, param: str | None = None
    ) -> None:
        for id in dict.fromkeys(job.id for job in jobs):
            self._cancel(id)
            self.emit(Failed(id, status, code, message, param))

    def _cancel(self, id: str) -> None:
        job = self.jobs.pop(id, None)
        if job is None:
            return
        job.cancelled = True
        self.transcriber.cancel(job)
        for settings, group in list(self.groups.items()):
            names = [name for name, row in group.rows.items() if row.job is job]
            if names:
                for name in names:
                    del group.rows[name]
                group.batch.pop_finished(abort=names)
            if not group.rows:
                del self.groups[settings]

    def _start(self, jobs: Sequence[AnswerJob]) -> None:
        """Prefill prompts with the same settings as one batch, and join it to the running one."""
        settings, rows = jobs[0].request.decoding, _sequences(jobs)
        conversations = {job.id: _conversation(job) for job in jobs}
        if jobs[0].request.schema is not None:
            scaffolds = [self.compiler.compiled(row.job.request) for row in rows]
            given: dict[str, Any] = {"scaffolds": scaffolds}
        else:
            given = {"limits": [row.job.request.limit or settings.gen_length for row in rows]}
        batch = self.pipeline.start_batch(
            [conversations[row.job.id] for row in rows],
            settings,
            **given,
            seeds=[(row.job.request.seed + row.index) % 2**63 for row in rows],
        )
        settings = batch.decoding
        lengths = [each.prompt.length for each in batch.running]
        group, names = self.groups.get(settings), batch.names
        if group is None:
            group = self.groups[settings] = Group(batch)
        else:
            names = group.batch.add(batch)
        for row, name, length in zip(rows, names, lengths, strict=True):
            group.rows[name] = row
            if row.index == 0:
                job = row.job
                job.arrays = ()
                self.emit(Started(job.id, length, job.heard, job.heard_confidence))

    def _compile(self, seconds: float) -> None:
        """Compile for that long, and begin the answers whose schema is compiled."""
        for jobs in self.compiler.advance(seconds, lambda: not self.inbox.empty()):
            self._begin(jobs)

    def _transcribe(self, transcription: Transcription) -> None:
        if not self.transcriber.step(transcription):
            return
        job = transcription.job
        if isinstance(job, TranscriptionJob):
            self.jobs.pop(job.id, None)
            self.emit(Done(job.id, job.late))
            return
        job.put_words(Transcript.of(transcription.segments, 0.0))
        if self.compiler.submit(job):
            self._begin([job])

    def _step(self, settings: DecodingConfig, group: Group) -> None:
        late = {name for name, row in group.rows.items() if row.job.late}
        for name in late:
            group.rows[name].expired = True
        try:
            group.batch.step(expired=late)
        except Exception:
            self.groups.pop(settings, None)
            raise
        self.steps += 1
        now = time.monotonic()
        for row in group.rows.values():
            row.first_commit = row.first_commit or now
        self._finish(group)
        stopped = self._emit_progress(group)
        if stopped:
            self._finish(group, stopped)
        if not group.rows:
            self.groups.pop(settings, None)

    def _emit_progress(self, group: Group) -> list[int]:
        """Stream settled text and drafts; gives the names of sequences that reached a stop
        string."""
        stopped = []
        for position, name in enumerate(group.batch.names):
            row = group.rows[name]
            request = row.job.request
            if not (request.stream or request.stop):
                continue
            new = row.text.push(settled_text(self.pipeline, group.batch, position))
            if row.text.stopped:
                stopped.append(name)
            if request.stream and new:
                self.emit(TextAdded(request.id, row.index, new))
            if request.drafts and not row.text.stopped:
                offset = len(row.text.emitted)
                shown = draft(self.pipeline, group.batch, position, offset)
                self.emit(DraftMade(request.id, row.index, shown))
        return stopped

    def _finish(self, group: Group, stopped: Sequence[int] = ()) -> None:
        """Let go of finished sequences, and of those that reached a stop string."""
        steps = {each.name: each.steps for each in group.batch.running}
        finished = group.batch.pop_finished(abort=stopped)
        if not finished.names:
            return
        answers, lengths = self.pipeline.answers(finished), finished.canvas.length_B.tolist()
        constraints = dict(zip(finished.names, finished.constraints, strict=True))
        for name, answer, length in zip(finished.names, answers, lengths, strict=True):
            row = group.rows.pop(name)
            rest = "" if name in stopped else row.text.finish(answer.text)
            if row.job.request.drafts and not row.text.stopped:
                offset = len(row.text.emitted) - len(rest)
                shown = last_draft(answer, steps[name], group.batch.decoding, offset)
                self.emit(DraftMade(row.job.id, row.index, shown))
            # a constrained answer fits its schema, and so has an end wherever its canvas ends
            limit = length if constraints[name] is None else None
            block = group.batch.decoding.block_length
            self.emit(_finished(row, answer, steps[name], limit, block, rest))
            row.job.unfinished -= 1
            if row.job.unfinished == 0:
                self.jobs.pop(row.job.id, None)
                self.emit(Done(row.job.id))


def _sequences(jobs: Sequence[AnswerJob]) -> list[RunningSequence]:
    return [
        RunningSequence(job, index, StreamingText(job.request.stop))
        for job in jobs
        for index in range(job.unfinished)
    ]


def _conversation(job: AnswerJob) -> list[dict[str, Any]]:
    """What the pipeline gets."""
    messages = with_media(job.messages, job.arrays)
    schema = job.request.schema
    return messages if schema is None else with_outline(messages, schema)


def _finished(
    row: RunningSequence, answer: Answer, steps: int, limit: int | None, block: int, rest: str
) -> AnswerFinished:
    """
    Args:
        limit: positions at which an answer is cut off.
        block: positions of a block.
        rest: text that was not emitted before.
    """
    tokens, confidence = answer.tokens, answer.confidence
    structure = None
    if row.text.stopped:
        tokens = _tokens_of(tokens, row.text.emitted)
    if answer.structured is not None:
        structure = structure_details(answer.structured)
    else:
        confidence = min((token.confidence for token in tokens), default=1.0)
    full = limit is not None and len(tokens) >= limit and not row.text.stopped
    first_commit = row.first_commit or time.monotonic()
    return AnswerFinished(
        id=row.job.id,
        index=row.index,
        rest=rest,
        text=row.text.emitted,
        finish_reason="length" if full or row.expired else "stop",
        tokens=max(1, len(tokens)),
        steps=steps,
        passes=answer.passes,
        confidence=round(confidence, 4),
        blocks=-(-max(1, len(tokens)) // block),
        late=row.expired,
        first=round(first_commit - row.job.arrived, 4),
        structure=structure,
    )


def _tokens_of(tokens: tuple[Token, ...], emitted: str) -> tuple[Token, ...]:
    """The first tokens, which hold the emitted text; an answer that reached a stop string has no
    more."""
    text = ""
    for count, token in enumerate(tokens):
        if len(text.strip()) >= len(emitted):
            return tokens[:count]
        text += token.text
    return tokens


def load_engine(sock: socket.socket, options: dict[str, Any]) -> Engine:
    """An engine that is ready for requests, and says so.

    Args:
        options: arguments of `load`, and "threads" and "max_model_len".

    Raises:
        MMDiffError: the model cannot be loaded.
    """
    if threads := options.pop("threads"):
        torch.set_num_threads(threads)
    max_model_len = options.pop("max_model_len")
    pipeline = load(options.pop("model"), **options)
    if max_model_len is not None:
        limit_positions(pipeline, max_model_len)
    ready = Ready(model_info(pipeline))
    # what is slow the first time
    pipeline.chat([{"role": "user", "content": "hello"}], gen_length=1, steps=1, block_length=1)
    engine = Engine(pipeline, sock)
    gc.collect()
    gc.freeze()  # what is there to stay is not looked through again
    engine.emit(ready)
    return engine
