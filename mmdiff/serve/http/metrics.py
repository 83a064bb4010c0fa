"""/metrics: counts and latencies in Prometheus's text format, in the manner of vLLM's, with a
bounded set of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mmdiff.serve.engine.client import StreamEvent
from mmdiff.serve.engine.messages import (
    AnswerFinished,
    SegmentTranscribed,
    SpeechFound,
    Started,
)

if TYPE_CHECKING:
    from mmdiff.serve.http.state import AppState

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
MODEL = "/v1/models/"  # what follows is anything


class Times(NamedTuple):
    """Histograms of one route, in seconds from a request's body being read."""

    queue: Histogram
    first_commit: Histogram
    whole: Histogram


class Metrics:
    """What is counted as it happens; the rest is read from where it is known (`Collector`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.routes: frozenset[str] = frozenset()  # paths that may be labels
        self.tokens = {"prompt": 0, "completion": 0, "steps": 0}
        self.http = Counter(
            "mmdiff_http_requests",
            "Answers by route and status; 499: the client left",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._queue = self._histogram(
            "mmdiff_request_queue_time_seconds", "Until the engine was free"
        )
        self._first = self._histogram(
            "mmdiff_time_to_first_commit_seconds", "Until tokens were decided"
        )
        self._whole = self._histogram(
            "mmdiff_e2e_request_latency_seconds", "Until the answer was finished"
        )

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["route"], buckets=SECONDS, registry=self.registry)

    def route(self, path: str) -> str:
        """The route's own path; "other" for whatever else clients ask for."""
        if path in self.routes:
            return path
        return f"{MODEL}{{name}}" if path.startswith(MODEL) else "other"

    def times(self, path: str) -> Times:
        route = self.route(path)
        return Times(
            self._queue.labels(route), self._first.labels(route), self._whole.labels(route)
        )

    def answered(self, method: str, path: str, status: int | None) -> None:
        method = method if method in METHODS else "other"
        self.http.labels(method, self.route(path), str(status or 499)).inc()

    def count_tokens(self, event: StreamEvent) -> None:
        """What an engine's event says of tokens, whatever the request."""
        match event:
            case Started() | SpeechFound():
                self.tokens["prompt"] += event.prompt_tokens
            case AnswerFinished():
                self.tokens["completion"] += event.tokens
                self.tokens["steps"] += event.steps
            case SegmentTranscribed():
                self.tokens["completion"] += len(event.segment.token_ids)


class Collector:
    """What the application's parts count anyway; accepted = completed + failed + cancelled + in
    flight, at any moment."""

    def __init__(self, state: AppState) -> None:
        self.state = state

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield from self._tokens()
        yield from self._engine()

    def _requests(self) -> Iterator[Metric]:
        limiter = self.state.limiter
        yield CounterMetricFamily(
            "mmdiff_requests_accepted", "Requests that were given a slot", value=limiter.accepted
        )
        ends = {
            "completed": "answered, or refused for what the client sent (4xx)",
            "failed": "ended by the server (5xx)",
            "cancelled": "left by their clients",
        }
        for end, text in ends.items():
            yield CounterMetricFamily(
                f"mmdiff_requests_{end}",
                f"Accepted requests that were {text}",
                value=limiter.ended[end],
            )
        rejected = CounterMetricFamily(
            "mmdiff_requests_rejected", "Requests that were given no slot", labels=["code"]
        )
        for code, count in sorted(limiter.rejected.items()):
            rejected.add_metric([code], count)
        yield rejected
        yield GaugeMetricFamily(
            "mmdiff_requests_in_flight", "Requests with a slot", value=limiter.in_flight
        )
        yield GaugeMetricFamily(
            "mmdiff_requests_running", "Requests at the engine", value=limiter.running
        )
        yield GaugeMetricFamily(
            "mmdiff_requests_waiting",
            "Requests before it",
            value=limiter.in_flight - limiter.running,
        )
        yield GaugeMetricFamily(
            "mmdiff_rows_running",
            "Sequences being denoised",
            value=limiter.capacity.count - limiter.capacity.free,
        )

    def _tokens(self) -> Iterator[Metric]:
        tokens = self.state.metrics.tokens
        yield CounterMetricFamily(
            "mmdiff_prompt_tokens",
            "Of prompts, with their images and audio",
            value=tokens["prompt"],
        )
        yield CounterMetricFamily(
            "mmdiff_completion_tokens",
            "Of finished answers and transcripts",
            value=tokens["completion"],
        )
        yield CounterMetricFamily("mmdiff_steps", "Of finished answers", value=tokens["steps"])

    def _engine(self) -> Iterator[Metric]:
        engine, beat = self.state.engine, self.state.engine.heartbeat
        yield CounterMetricFamily("mmdiff_engine_steps", "Steps of batches", value=beat.steps)
        yield GaugeMetricFamily(
            "mmdiff_engine_up", "Whether the engine answers", value=int(engine.ready)
        )
        yield CounterMetricFamily(
            "mmdiff_engine_restarts", "Engines that died", value=engine.restarts
        )
        yield CounterMetricFamily(
            "mmdiff_decoder_restarts",
            "Media workers that died",
            value=self.state.media.restarts,
        )
        yield GaugeMetricFamily(
            "mmdiff_store_bytes", "Of images and prompts kept for later", value=beat.store_bytes
        )
        yield CounterMetricFamily("mmdiff_store_hits", "Of the store", value=beat.store_hits)
        yield CounterMetricFamily("mmdiff_store_misses", "Of the store", value=beat.store_misses)


def text(state: AppState) -> bytes:
    return generate_latest(state.metrics.registry)
