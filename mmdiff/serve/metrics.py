"""/metrics: what the server counts anyway, in Prometheus's text form, read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mmdiff.serve.exchange import House


class Numbers:
    """A collector over a house; accepted = completed + failed + cancelled + in flight, at any moment."""

    def __init__(self, house: House) -> None:
        self.house = house

    def collect(self) -> Iterator[Metric]:
        door, service = self.house.admission, self.house.service
        yield CounterMetricFamily("mmdiff_requests_accepted", "Requests that were given a place", value=door.accepted)
        for end in ("completed", "failed", "cancelled"):
            yield CounterMetricFamily(f"mmdiff_requests_{end}", f"Accepted requests that ended as {end}",
                                      value=door.ended[end])
            yield CounterMetricFamily(f"mmdiff_requests_{end}_seconds", "Their time from the door to the end, in all",
                                      value=door.seconds[end])
        rejected = CounterMetricFamily("mmdiff_requests_rejected", "Requests that were given no place", labels=["code"])
        for code, count in sorted(door.rejected.items()):
            rejected.add_metric([code], count)
        yield rejected
        yield GaugeMetricFamily("mmdiff_requests_in_flight", "Requests with a place", value=door.inside)
        yield GaugeMetricFamily("mmdiff_requests_running", "Requests at the engine", value=door.running)
        yield GaugeMetricFamily("mmdiff_requests_waiting", "Requests before it", value=door.inside - door.running)
        yield GaugeMetricFamily("mmdiff_rows_running", "Rows being denoised", value=door.rows.count - door.rows.free)
        for name, count in self.house.tokens.items():
            yield CounterMetricFamily(f"mmdiff_{name}" if name == "steps" else f"mmdiff_{name}_tokens",
                                      "Of finished answers", value=count)
        yield CounterMetricFamily("mmdiff_engine_steps", "Steps of batches", value=service.counts["steps"])
        yield GaugeMetricFamily("mmdiff_engine_up", "Whether the engine answers", value=int(service.ready))
        yield CounterMetricFamily("mmdiff_engine_restarts", "Engines that died", value=service.restarts)
        yield CounterMetricFamily("mmdiff_decoder_restarts", "Decoders that died", value=self.house.decoders.restarts)
        yield GaugeMetricFamily("mmdiff_store_bytes", "Of pictures and prompts kept for later",
                                value=service.counts["store_bytes"])
        for name in ("hits", "misses"):
            yield CounterMetricFamily(f"mmdiff_store_{name}", "Of the store", value=service.counts[f"store_{name}"])


def text(house: House) -> bytes:
    registry = CollectorRegistry()
    registry.register(Numbers(house))
    return generate_latest(registry)
