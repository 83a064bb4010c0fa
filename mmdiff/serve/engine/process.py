"""The engine's process: one loop that steps every answer in the house, and lets rows join and leave
between steps.

Requests come in as frames (ipc.py) and leave as events. Rows with the same settings share a batch.
A row past its deadline is decided at once, and one that nobody waits for goes before the next step.
Transcripts advance by a segment in turn with the steps; where somebody speaks is found in a thread
of its own. The process ends when the server's does.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from cachetools import LRUCache

from mmdiff.audio.audio_io import SAMPLE_RATE
from mmdiff.audio.whisper_decoder import Window
from mmdiff.config import DecodingConfig
from mmdiff.decoding.sampler import Batch, Sampler
from mmdiff.errors import ContextError, MMDiffError, NoSpeechError
from mmdiff.pipeline import CAPTION_PROMPTS, CAPTION_ROOM, MAX_TOKENS, Pipeline, Token, load
from mmdiff.serve.engine import ipc
from mmdiff.serve.engine.conversations import with_media, with_outline
from mmdiff.serve.engine.detokenizer import (
    StreamingText,
    draft,
    last_draft,
    settled_text,
    structure_told,
)
from mmdiff.serve.engine.time_slices import SlicedWork
from mmdiff.structured.constraint.compiled import CompiledSchema
from mmdiff.structured.schema.errors import ScaffoldError
from mmdiff.transcript import Segment, Transcript
from mmdiff.transcription import RecognitionOptions, encoder_frames, recognize, speech_windows

BEAT = 0.5  # seconds between signs of life
COMPILED = 4  # schemas that are compiled in turn; others wait
SHARE = 1 / 3  # of the time of steps, that compiling may take beside them
IDLE_SLICE = 0.02  # seconds of compiling, while there is nothing to step
KNOWN = 256  # compiled schemas, and refusals


@dataclass
class Job:
    """A request for answers, and those of its rows that are not finished."""

    name: str
    request: ipc.IpcMessage
    arrays: Sequence[ipc.Array]
    until: float  # on the monotonic clock
    left: int = 1
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False

    @property
    def late(self) -> bool:
        return time.monotonic() > self.until


@dataclass
class RunningSequence:
    """One answer of a job."""

    job: Job
    number: int
    telling: StreamingText
    hurried: bool = False
    first: float | None = None  # when its first tokens were decided, on the monotonic clock


@dataclass
class Group:
    """Rows that are denoised together, by their names there."""

    batch: Sampler
    rows: dict[int, RunningSequence] = field(default_factory=dict)


@dataclass
class Compiling:
    """A schema that is being compiled, and who waits for it."""

    work: SlicedWork[CompiledSchema]
    jobs: list[Job] = field(default_factory=list)


@dataclass
class Writing:
    """A transcript on its way."""

    job: Job
    found: Iterator[tuple[Segment, str]]
    segments: list[Segment] = field(
        default_factory=list
    )  # of a question, which is for the engine itself


class Engine:
    """Answers what comes out of a socket, into it."""

    def __init__(self, pipeline: Pipeline, sock: socket.socket) -> None:
        self.pipeline, self.sock = pipeline, sock
        self.inbox: queue.SimpleQueue[tuple[ipc.IpcMessage, Any]] = queue.SimpleQueue()
        self.jobs: dict[str, Job] = {}
        self.groups: dict[DecodingConfig, Group] = {}
        self.writings: list[Writing] = []
        self.listener = ThreadPoolExecutor(1)
        self.turned, self.steps = time.monotonic(), 0  # when the loop last came round
        self.scaffolds: LRUCache[str, CompiledSchema | Exception] = LRUCache(KNOWN)
        self.compiling: dict[str, Compiling] = {}
        self._telling = threading.Lock()

    def run(self) -> None:
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()
        while True:
            self.turned = time.monotonic()
            self._take_in()
            for settings, group in list(self.groups.items()):
                self._guarded(
                    partial(self._step, settings, group), [row.job for row in group.rows.values()]
                )
            for writing in list(self.writings):
                self._guarded(partial(self._write, writing), [writing.job])
            busy = bool(self.groups or self.writings)
            self._compile(SHARE * (time.monotonic() - self.turned) if busy else IDLE_SLICE)

    def tell(self, event: str, **values: Any) -> None:
        with self._telling:
            ipc.send(self.sock, {"event": event, **values})

    def _read(self) -> None:
        try:
            while True:
                self.inbox.put(ipc.receive(self.sock))
        except (EOFError, OSError):
            os._exit(0)  # the server is gone, and nobody is left to tell

    def _beat(self) -> None:
        """Signs of life, also during a long step; they say for how long the loop has not come
        round."""
        store = self.pipeline.store
        while True:
            self.tell(
                "beat",
                steps=self.steps,
                store_bytes=store.num_bytes,
                store_hits=store.hits,
                store_misses=store.misses,
                busy=time.monotonic() - self.turned,
            )
            time.sleep(BEAT)

    def _take_in(self) -> None:
        """All messages that wait; if there is nothing to do, wait for one."""
        idle, new = not (self.groups or self.writings or self.compiling), list[Job]()
        while True:
            try:
                message, arrays = self.inbox.get(block=idle, timeout=BEAT)
            except queue.Empty:
                break
            idle, op = False, message["op"]
            if op == "cancel":
                self._cancel(message["id"])
                continue
            if op == "heard":
                if (job := self.jobs.get(message["id"])) is not None:
                    self.writings.append(Writing(job, self._written(job, arrays)))
                continue
            job = self.jobs[message["id"]] = Job(
                message["id"],
                message,
                arrays,
                time.monotonic() + message["seconds"],
                message.get("n", 1),
            )
            if op == "transcribe":
                self.tell("started", id=job.name, prompt_tokens=0)
                self._listen(job, arrays[0])
            elif message.get("spoken"):
                self._listen(job, self._question(job))
            elif self._compiled(job):
                new.append(job)
        self._begin(new)

    def _begin(self, jobs: Sequence[Job]) -> None:
        for alike in _alike([job for job in jobs if not job.gone]):
            try:
                self._start(alike)
            except (
                Exception
            ):  # one of them does not fit, and is told so; the others begin without it
                for job in alike:
                    self._guarded(partial(self._start, [job]), [job])

    def _guarded(self, work: Callable[[], None], jobs: Sequence[Job]) -> None:
        """A job that fails takes those with it that share its pass, and nobody else."""
        try:
            work()
        except MMDiffError as error:
            code = (
                "context_length_exceeded" if isinstance(error, ContextError) else "invalid_request"
            )
            schema = isinstance(error, ScaffoldError)
            self._fail(jobs, 400, code, str(error), "response_format" if schema else None)
        except Exception:
            traceback.print_exc()
            self._fail(jobs, 500, "internal_error", "the engine could not answer this")

    def _fail(
        self, jobs: Sequence[Job], status: int, code: str, message: str, param: str | None = None
    ) -> None:
        for job in {job.name: job for job in jobs}.values():
            self._cancel(job.name)
            self.tell("failed", id=job.name, status=status, code=code, message=message, param=param)

    def _cancel(self, name: str) -> None:
        job = self.jobs.pop(name, None)
        if job is None:
            return
        job.gone = True
        self.writings = [writing for writing in self.writings if writing.job is not job]
        for settings, group in list(self.groups.items()):
            names = [row_name for row_name, row in group.rows.items() if row.job is job]
            if names:
                for row_name in names:
                    del group.rows[row_name]
                group.batch.pop_finished(abort=names)
            if not group.rows:
                del self.groups[settings]

    # Answers

    def _start(self, jobs: Sequence[Job]) -> None:
        """Begin answers with the same settings in one batch, and let it join those that are at
        work."""
        decoding = jobs[0].request["decoding"]
        settings = self.pipeline.decoding(**decoding)
        rows = [(job, number) for job in jobs for number in range(job.left)]
        conversations = {job.name: with_media(job.request["messages"], job.arrays) for job in jobs}
        structured = "schema" in jobs[0].request
        if structured:
            given: dict[str, Any] = {"scaffolds": [self._scaffold(job.request) for job, _ in rows]}
            conversations = {
                job.name: with_outline(conversations[job.name], job.request["schema"])
                for job in jobs
            }
        else:
            given = {"limits": [job.request["limit"] or settings.gen_length for job, _ in rows]}
        batch = self.pipeline.start(
            [conversations[job.name] for job, _ in rows],
            **decoding,
            **given,
            seeds=[(job.request["seed"] + number) % 2**63 for job, number in rows],
        )
        assert isinstance(batch.predict, Batch)
        settings = batch.decoding
        lengths = batch.predict.prompt_length_B.tolist()
        group, names = self.groups.get(settings), batch.names
        if group is None:
            group = self.groups[settings] = Group(batch)
        else:
            names = group.batch.join(batch)
        for (job, number), name, length in zip(rows, names, lengths, strict=True):
            group.rows[name] = RunningSequence(job, number, StreamingText(job.request["stop"]))
            if number == 0:
                job.arrays = ()
                self.tell(
                    "started",
                    id=job.name,
                    prompt_tokens=length,
                    heard=job.request.get("heard"),
                    heard_confidence=job.request.get("heard_confidence"),
                )

    def _scaffold(self, request: ipc.IpcMessage) -> CompiledSchema:
        """What an answer must be; raises what its schema is refused with."""
        found = self.scaffolds[self._schema_key(request)]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found

    def _schema_key(self, request: ipc.IpcMessage) -> str:
        return json.dumps([request["schema"], self._room(request)])

    def _room(self, request: ipc.IpcMessage) -> int:
        return min(
            request["limit"] or MAX_TOKENS,
            self.pipeline.model.model_config.backbone.max_position_embeddings,
        )

    def _compiled(self, job: Job) -> bool:
        """Whether there is nothing to compile first; clients ask for the same schema again and
        again."""
        if "schema" not in job.request or (key := self._schema_key(job.request)) in self.scaffolds:
            return True
        if key not in self.compiling:
            compile_it = partial(
                self.pipeline.compile, job.request["schema"], self._room(job.request)
            )
            self.compiling[key] = Compiling(SlicedWork(compile_it))
        self.compiling[key].jobs.append(job)
        return False

    def _compile(self, seconds: float) -> None:
        """Give those first in line a slice each, and begin the answers whose schema is there."""
        for key, compiling in list(self.compiling.items()):
            if all(job.gone for job in compiling.jobs):
                compiling.work.abandon()
                del self.compiling[key]
        turns = list(self.compiling.items())[:COMPILED]
        for key, compiling in turns:
            if compiling.work.advance(seconds / len(turns), lambda: not self.inbox.empty()):
                del self.compiling[key]
                self.scaffolds[key] = compiling.work.result()
                self._begin(compiling.jobs)

    def _step(self, settings: DecodingConfig, group: Group) -> None:
        late = {name for name, row in group.rows.items() if row.job.late}
        for name in late:
            group.rows[name].hurried = True
        try:
            group.batch.step(expired=late)
        except Exception:
            self.groups.pop(settings, None)
            raise
        self.steps += 1
        now = time.monotonic()
        for row in group.rows.values():
            row.first = row.first or now
        self._finish(group)
        stopped = self._tell_progress(group)
        if stopped:
            self._finish(group, stopped)
        if not group.rows:
            self.groups.pop(settings, None)

    def _tell_progress(self, group: Group) -> list[int]:
        """Tell those who want to know what is settled; gives the names of rows that reached a stop
        string."""
        stopped = []
        for place, name in enumerate(group.batch.names):
            row = group.rows[name]
            request = row.job.request
            if not (request["stream"] or request["stop"]):
                continue
            new = row.telling.push(settled_text(self.pipeline, group.batch, place))
            if row.telling.stopped:
                stopped.append(name)
            if request["stream"] and new:
                self.tell("text", id=row.job.name, row=row.number, text=new)
            if request["drafts"] and not row.telling.stopped:
                self.tell(
                    "draft",
                    id=row.job.name,
                    row=row.number,
                    draft=draft(self.pipeline, group.batch, place, len(row.telling.told)),
                )
        return stopped

    def _finish(self, group: Group, stopped: Sequence[int] = ()) -> None:
        """Let go of finished rows, and of those that reached a stop string."""
        steps = dict(zip(group.batch.names, group.batch.steps_B.tolist(), strict=True))
        finished = group.batch.pop_finished(abort=stopped)
        if not finished.names:
            return
        answers, lengths = self.pipeline.answers(finished), finished.canvas.length_B.tolist()
        constraints = dict(zip(finished.names, finished.constraints, strict=True))
        for name, answer, length in zip(finished.names, answers, lengths, strict=True):
            row = group.rows.pop(name)
            new = "" if name in stopped else row.telling.finish(answer.text)
            if row.job.request["drafts"] and not row.telling.stopped:
                self.tell(
                    "draft",
                    id=row.job.name,
                    row=row.number,
                    draft=last_draft(
                        answer, steps[name], group.batch.decoding, len(row.telling.told) - len(new)
                    ),
                )
            tokens = (
                _spoken(answer.tokens, row.telling.told) if row.telling.stopped else answer.tokens
            )
            sure = (
                min((token.confidence for token in tokens), default=1.0)
                if answer.structured is None
                else answer.confidence
            )
            whole = constraints[name] is not None  # it fits its schema, and so has an end
            full = len(tokens) >= length and not row.telling.stopped and not whole
            block = group.batch.decoding.block_length
            self.tell(
                "row",
                id=row.job.name,
                row=row.number,
                rest=new,
                text=row.telling.told,
                finish="length" if full or row.hurried else "stop",
                tokens=max(1, len(tokens)),
                steps=steps[name],
                passes=answer.passes,
                confidence=round(sure, 4),
                blocks=-(-max(1, len(tokens)) // block),
                late=row.hurried,
                first=round((row.first or time.monotonic()) - row.job.arrived, 4),
                **(
                    {}
                    if answer.structured is None
                    else {"structure": structure_told(answer.structured)}
                ),
            )
            row.job.left -= 1
            if row.job.left == 0:
                self.jobs.pop(row.job.name, None)
                self.tell("done", id=row.job.name)

    # Transcripts

    def _listen(self, job: Job, samples: ipc.Array) -> None:
        """Find where somebody speaks, while the others are answered."""

        def find() -> None:
            try:
                spans: Any = speech_windows(samples)
            except Exception as error:  # raised where the job is, or nobody would be told
                spans = error
            self.inbox.put(({"op": "heard", "id": job.name}, spans))

        self.listener.submit(find)

    def _question(self, job: Job) -> ipc.Array:
        """The samples of a question that is spoken: the last audio of the conversation."""
        number: int = [
            part["array"]
            for part in job.request["messages"][-1]["content"]
            if part["type"] == "audio"
        ][-1]
        return job.arrays[number]

    def _written(
        self, job: Job, windows: Sequence[Window] | Exception
    ) -> Iterator[tuple[Segment, str]]:
        if isinstance(windows, Exception):
            raise windows
        spoken = job.request.get("spoken")
        samples = self._question(job) if spoken else job.arrays[0]
        if not spoken:
            self.tell(
                "found",
                id=job.name,
                duration=len(samples) / SAMPLE_RATE,
                prompt_tokens=sum(encoder_frames(window) for window in windows),
            )
        options = RecognitionOptions(**job.request.get("options", {}))
        yield from recognize(
            self.pipeline.recognizer, samples, windows, options, self.pipeline.reader
        )

    def _heard(self, job: Job, segments: Sequence[Segment]) -> None:
        """Put the words of a spoken question in its place, and begin the answer."""
        said = Transcript.of(segments, 0.0)
        if not said.text:
            raise NoSpeechError(
                "no speech was found in the spoken question; say it again, nearer to the microphone"
            )
        last = job.request["messages"][-1]
        content = list(last["content"])
        place = max(number for number, part in enumerate(content) if part["type"] == "audio")
        content[place] = {"type": "text", "text": said.text}
        job.request["messages"][-1] = {**last, "content": content}
        job.request["heard"], job.request["heard_confidence"] = said.text, round(said.confidence, 4)
        if self._compiled(job):
            self._begin([job])

    def _write(self, writing: Writing) -> None:
        found = None if writing.job.late else next(writing.found, None)
        if writing.job.request.get("spoken"):
            if found is not None:
                writing.segments.append(found[0])
                return
            self.writings.remove(writing)
            self._heard(writing.job, writing.segments)
            return
        if found is not None:
            segment, language = found
            self.tell("segment", id=writing.job.name, segment=asdict(segment), language=language)
            return
        self.writings.remove(writing)
        self.jobs.pop(writing.job.name, None)
        self.tell("done", id=writing.job.name, late=writing.job.late)


def _spoken(tokens: Sequence[Token], told: str) -> Sequence[Token]:
    """The tokens at the beginning that say what was told; an answer that reached a stop string has
    no more."""
    text = ""
    for count, token in enumerate(tokens):
        if len(text.strip()) >= len(told):
            return tokens[:count]
        text += token.text
    return tokens


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs by their settings."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        room = (
            job.request["limit"] if "schema" in job.request else None
        )  # scaffolds' canvases have its length
        key = [job.request["decoding"], "schema" in job.request, room]
        groups.setdefault(json.dumps(key, sort_keys=True), []).append(job)
    return list(groups.values())


def _speech(pipeline: Pipeline) -> dict[str, Any]:
    """What the server must know of the speech model, or why there is none; one that was named has
    to be there."""
    try:
        return {
            "speech_model": pipeline.recognizer.name,
            "languages": list(pipeline.recognizer.languages),
        }
    except MMDiffError as error:
        if pipeline.speech_model is not None:
            raise
        return {"speech_model": None, "languages": [], "no_speech_model": str(error)}


def about(pipeline: Pipeline) -> dict[str, Any]:
    """What the server must know of a model."""
    config = pipeline.model.model_config
    return {
        "max_model_len": config.backbone.max_position_embeddings,
        "gen_length": config.decoding.gen_length,
        "pictures": config.vision is not None,
        "sounds": config.audio is not None,
        **_speech(pipeline),
        "temperature": config.decoding.temperature,
        "captions": {
            length: [prompt, CAPTION_ROOM[length]] for length, prompt in CAPTION_PROMPTS.items()
        },
    }


def shorten(pipeline: Pipeline, most: int) -> None:
    """Have the model use no more positions than so many.

    Raises:
        MMDiffError: it has fewer.
    """
    config = pipeline.model.model_config
    if most > (there := config.backbone.max_position_embeddings):
        raise MMDiffError(
            f"--max-model-len {most} is more than the {there} positions of the model: lower it, or leave "
            "it out"
        )
    backbone = dataclasses.replace(config.backbone, max_position_embeddings=most)
    pipeline.model.model_config = dataclasses.replace(config, backbone=backbone)


def main(argv: Sequence[str]) -> None:
    """`python -m mmdiff.serve.engine.process FD OPTIONS`, as the server starts it."""
    for name in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # meant for the server, which ends this process when it is drained
        signal.signal(name, signal.SIG_IGN)
    sock = socket.socket(fileno=int(argv[0]))
    options = json.loads(argv[1])
    if threads := options.pop("threads"):
        torch.set_num_threads(threads)
    most = options.pop("max_model_len")
    try:
        pipeline = load(options.pop("model"), **options)
        if most is not None:
            shorten(pipeline, most)
        known = about(pipeline)
    except MMDiffError as error:
        ipc.send(sock, {"event": "unloadable", "message": str(error)})
        sys.exit(2)
    pipeline.chat(
        [{"role": "user", "content": "hello"}], gen_length=1, steps=1, block_length=1
    )  # what is slow once
    engine = Engine(pipeline, sock)
    gc.collect()
    gc.freeze()  # what is there to stay is not looked through again
    engine.tell("ready", **known)
    engine.run()


if __name__ == "__main__":
    main(sys.argv[1:])
