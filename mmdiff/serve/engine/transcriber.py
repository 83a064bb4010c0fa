"""Transcribes recordings and spoken questions, a segment at a time between the steps of answers.

Voice activity detection runs in a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mmdiff.audio.audio_io import SAMPLE_RATE
from mmdiff.audio.whisper_decoder import Window
from mmdiff.pipeline import Pipeline
from mmdiff.serve.engine.jobs import AnswerJob, TranscriptionJob
from mmdiff.serve.engine.messages import RequestEvent, SegmentTranscribed, SpeechFound
from mmdiff.transcript import Segment
from mmdiff.transcription import RecognitionOptions, encoder_frames, recognize, speech_windows

SpeechJob = TranscriptionJob | AnswerJob


@dataclass(frozen=True)
class SpeechWindows:
    """Where there is speech in a job's audio, or why that could not be found out."""

    id: str
    windows: Sequence[Window] | Exception


@dataclass
class Transcription:
    """A transcript in the making."""

    job: SpeechJob
    found: Iterator[tuple[Segment, str]]
    segments: list[Segment] = field(default_factory=list)  # of a spoken question


class Transcriber:
    """The transcripts in the making."""

    def __init__(
        self,
        pipeline: Pipeline,
        emit: Callable[[RequestEvent], None],
        found_speech: Callable[[SpeechWindows], None],
    ) -> None:
        """
        Args:
            found_speech: called in another thread.
        """
        self.pipeline = pipeline
        self.emit, self.found_speech = emit, found_speech
        self.running: list[Transcription] = []
        self.vad_thread = ThreadPoolExecutor(1)

    def submit(self, job: SpeechJob) -> None:
        """Have the speech in a job's audio found, while others are answered."""
        samples = job.audio

        def find() -> None:
            try:
                windows: Any = speech_windows(samples)
            except Exception as error:  # raised in the loop, which fails the job
                windows = error
            self.found_speech(SpeechWindows(job.id, windows))

        self.vad_thread.submit(find)

    def begin(self, job: SpeechJob, windows: Sequence[Window] | Exception) -> None:
        self.running.append(Transcription(job, self._segments(job, windows)))

    def cancel(self, job: SpeechJob) -> None:
        self.running = [each for each in self.running if each.job is not job]

    def step(self, transcription: Transcription) -> bool:
        """Transcribe the next segment; whether there was none."""
        job = transcription.job
        found = None if job.late else next(transcription.found, None)
        if found is None:
            self.running.remove(transcription)
            return True
        segment, language = found
        if isinstance(job, AnswerJob):
            transcription.segments.append(segment)
        else:
            self.emit(SegmentTranscribed(job.id, segment, language))
        return False

    def _segments(
        self, job: SpeechJob, windows: Sequence[Window] | Exception
    ) -> Iterator[tuple[Segment, str]]:
        if isinstance(windows, Exception):
            raise windows
        samples, options = job.audio, RecognitionOptions()
        if isinstance(job, TranscriptionJob):
            frames = sum(encoder_frames(window) for window in windows)
            self.emit(SpeechFound(job.id, len(samples) / SAMPLE_RATE, frames))
            request = job.request
            options = RecognitionOptions(request.language, request.prompt, request.temperature)
        yield from recognize(
            self.pipeline.recognizer, samples, windows, options, self.pipeline.reader
        )
