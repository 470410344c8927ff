"""Prometheus metrics of one process. Their names and labels stand here, for whoever else reports them.

Labels have few values: presets, key ids, statuses and the closed list of reasons; nothing that a caller writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.policy.ports import Event

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

REQUESTS, DENIALS, TOKENS = "trimtab_requests_total", "trimtab_denials_total", "trimtab_tokens_total"
REQUEST_SECONDS, FIRST_TOKEN_SECONDS = "trimtab_request_seconds", "trimtab_first_token_seconds"
IN_FLIGHT = "trimtab_in_flight"
LABELS = {
    REQUESTS: ("preset", "key_id", "status"), DENIALS: ("reason",), TOKENS: ("kind", "preset", "key_id"),
    REQUEST_SECONDS: (), FIRST_TOKEN_SECONDS: (), IN_FLIGHT: (),
}  # fmt: skip
HELP = {
    REQUESTS: "Requests that were answered or refused.", DENIALS: "Refused requests by reason.",
    TOKENS: "Tokens of prompts and answers.", REQUEST_SECONDS: "Seconds from a request to the end of its answer.",
    FIRST_TOKEN_SECONDS: "Seconds from a request to the first part of its answer.",
    IN_FLIGHT: "Requests that the engine has.",
}  # fmt: skip
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 120.0, 300.0)
"""Upper bounds of the histograms' buckets."""
ALLOWED = "allowed"


class PrometheusMetrics:
    """Counters, histograms and a gauge in a registry of ``prometheus_client``."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """
        Args:
            registry: none: a new one.
        """
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = registry = registry or CollectorRegistry()
        self._requests, self._denials, self._tokens = (
            Counter(name, HELP[name], LABELS[name], registry=registry) for name in (REQUESTS, DENIALS, TOKENS)
        )
        self._request_seconds, self._first_token_seconds = (
            Histogram(name, HELP[name], LABELS[name], registry=registry, buckets=SECONDS)
            for name in (REQUEST_SECONDS, FIRST_TOKEN_SECONDS)
        )
        self._in_flight = Gauge(IN_FLIGHT, HELP[IN_FLIGHT], registry=registry)

    def started(self, key_id: str, preset: str) -> None:
        """A request goes to the engine."""
        self._in_flight.inc()

    def ended(self, event: Event) -> None:
        """A request was answered or refused; one that the engine had is allowed, and under a preset."""
        self._requests.labels(event.preset, event.key_id, str(event.status)).inc()
        if event.decision != ALLOWED:
            self._denials.labels(event.decision).inc()
        if event.decision != ALLOWED or not event.preset:
            return
        self._in_flight.dec()
        self._request_seconds.observe(event.seconds)
        if event.first_token_s is not None:
            self._first_token_seconds.observe(event.first_token_s)
        for kind, count in (("prompt", event.prompt_tokens), ("completion", event.completion_tokens)):
            self._tokens.labels(kind, event.preset, event.key_id).inc(count)

    def exposition(self) -> bytes:
        """The metrics as text, as a scraper reads them."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
