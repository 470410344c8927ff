"""The gate's metrics through Ray, which adds the replica's name and exposes them on each node (``ray_trimtab_…``)."""

from __future__ import annotations

from trimtab.policy.metrics import (
    ALLOWED,
    DENIALS,
    FIRST_TOKEN_SECONDS,
    HELP,
    IN_FLIGHT,
    LABELS,
    REQUEST_SECONDS,
    REQUESTS,
    SECONDS,
    TOKENS,
)
from trimtab.policy.ports import Event


class ServeMetrics:
    """The metrics of ``trimtab.policy.metrics`` by ``ray.serve.metrics``; only inside a replica."""

    def __init__(self) -> None:
        from ray.serve.metrics import Counter, Gauge, Histogram

        self._requests, self._denials, self._tokens = (
            Counter(name, HELP[name], LABELS[name]) for name in (REQUESTS, DENIALS, TOKENS)
        )
        self._request_seconds, self._first_token_seconds = (
            Histogram(name, HELP[name], list(SECONDS), LABELS[name]) for name in (REQUEST_SECONDS, FIRST_TOKEN_SECONDS)
        )
        self._in_flight = Gauge(IN_FLIGHT, HELP[IN_FLIGHT])

    def in_flight(self, number: int) -> None:
        """So many requests are in this replica now."""
        self._in_flight.set(number)

    def started(self, key_id: str, preset: str) -> None:
        """A request goes to the engine; the replica's bound says how many there are."""

    def ended(self, event: Event) -> None:
        """A request was answered or refused; one that the engine had is allowed, and under a preset."""
        self._requests.inc(1, {"preset": event.preset, "key_id": event.key_id, "status": str(event.status)})
        if event.decision != ALLOWED:
            self._denials.inc(1, {"reason": event.decision})
        if event.decision != ALLOWED or not event.preset:
            return
        self._request_seconds.observe(event.seconds)
        if event.first_token_s is not None:
            self._first_token_seconds.observe(event.first_token_s)
        for kind, count in (("prompt", event.prompt_tokens), ("completion", event.completion_tokens)):
            if count:
                self._tokens.inc(count, {"kind": kind, "preset": event.preset, "key_id": event.key_id})
