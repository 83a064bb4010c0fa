"""/metrics: counts and times in Prometheus's text form, in the manner of vLLM's, with a bounded set
of labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import Scope

from mmdiff.serve.engine import ipc

if TYPE_CHECKING:
    from mmdiff.serve.http.responses import AppState

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

    def times(self, scope: Scope) -> Times:
        route = self.route(scope["path"])
        return Times(
            self._queue.labels(route), self._first.labels(route), self._whole.labels(route)
        )

    def answered(self, method: str, path: str, status: int | None) -> None:
        method = method if method in METHODS else "other"
        self.http.labels(method, self.route(path), str(status or 499)).inc()

    def count_tokens(self, event: ipc.IpcMessage) -> None:
        """What an engine's event says of tokens, whatever was asked for."""
        self.tokens["prompt"] += event.get("prompt_tokens", 0)
        if event["event"] == "row":
            self.tokens["completion"] += event["tokens"]
            self.tokens["steps"] += event["steps"]
        elif event["event"] == "segment":
            self.tokens["completion"] += len(event["segment"]["token_ids"])


class Collector:
    """What a house knows anyway; accepted = completed + failed + cancelled + in flight, at any
    moment."""

    def __init__(self, house: AppState) -> None:
        self.house = house

    def collect(self) -> Iterator[Metric]:
        door, service, tokens = self.house.admission, self.house.service, self.house.metrics.tokens
        yield CounterMetricFamily(
            "mmdiff_requests_accepted", "Requests that were given a place", value=door.accepted
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
                value=door.ended[end],
            )
        rejected = CounterMetricFamily(
            "mmdiff_requests_rejected", "Requests that were given no place", labels=["code"]
        )
        for code, count in sorted(door.rejected.items()):
            rejected.add_metric([code], count)
        yield rejected
        yield GaugeMetricFamily(
            "mmdiff_requests_in_flight", "Requests with a place", value=door.inside
        )
        yield GaugeMetricFamily(
            "mmdiff_requests_running", "Requests at the engine", value=door.running
        )
        yield GaugeMetricFamily(
            "mmdiff_requests_waiting", "Requests before it", value=door.inside - door.running
        )
        yield GaugeMetricFamily(
            "mmdiff_rows_running", "Rows being denoised", value=door.rows.count - door.rows.free
        )
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
        yield CounterMetricFamily(
            "mmdiff_engine_steps", "Steps of batches", value=service.counts["steps"]
        )
        yield GaugeMetricFamily(
            "mmdiff_engine_up", "Whether the engine answers", value=int(service.ready)
        )
        yield CounterMetricFamily(
            "mmdiff_engine_restarts", "Engines that died", value=service.restarts
        )
        yield CounterMetricFamily(
            "mmdiff_decoder_restarts", "Decoders that died", value=self.house.decoders.restarts
        )
        yield GaugeMetricFamily(
            "mmdiff_store_bytes",
            "Of images and prompts kept for later",
            value=service.counts["store_bytes"],
        )
        for name in ("hits", "misses"):
            yield CounterMetricFamily(
                f"mmdiff_store_{name}", "Of the store", value=service.counts[f"store_{name}"]
            )


def text(house: AppState) -> bytes:
    return generate_latest(house.metrics.registry)
