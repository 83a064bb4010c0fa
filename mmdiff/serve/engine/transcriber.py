"""Transcribes recordings and spoken questions, a segment at a time between the steps of answers.

Voice activity detection runs in a thread of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
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
    """Where there is speech in each of a job's tracks, or why that could not be found out."""

    id: str
    windows: Sequence[Sequence[Window]] | Exception


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
        tracks = job.tracks

        def find() -> None:
            try:
                windows: Any = [speech_windows(samples) for samples in tracks]
            except Exception as error:  # raised in the loop, which fails the job
                windows = error
            self.found_speech(SpeechWindows(job.id, windows))

        self.vad_thread.submit(find)

    def begin(self, job: SpeechJob, windows: Sequence[Sequence[Window]] | Exception) -> None:
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
        self, job: SpeechJob, windows: Sequence[Sequence[Window]] | Exception
    ) -> Iterator[tuple[Segment, str]]:
        if isinstance(windows, Exception):
            raise windows
        recognizer, read = self.pipeline.recognizer, self.pipeline.reader
        tracks, options = job.tracks, RecognitionOptions()
        if isinstance(job, AnswerJob):
            yield from recognize(recognizer, tracks[0], windows[0], options, read)
            return
        frames = sum(map(encoder_frames, itertools.chain(*windows)))
        self.emit(SpeechFound(job.id, len(tracks[0]) / SAMPLE_RATE, frames))
        request = job.request
        options = RecognitionOptions(request.language, request.prompt, request.temperature)
        for number, samples in enumerate(tracks):
            for segment, spoken in recognize(recognizer, samples, windows[number], options, read):
                if job.separate:
                    segment = replace(segment, channel=number)
                yield segment, spoken
