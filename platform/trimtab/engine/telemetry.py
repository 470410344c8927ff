"""What a running engine shows of itself: a progress line, and gauges for Ray's Prometheus endpoint."""

from __future__ import annotations

import contextlib
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.console import POLL_S, Progress, polling
from trimtab.engine.parts import Parts

SCRAPE_EVERY_S, LIST_EVERY_S = 30.0, 5.0
HITS, QUERIES = "vllm_prefix_cache_hits", "vllm_prefix_cache_queries"


@contextlib.contextmanager
def watching(label: str, parts: Parts, total: int, model: str) -> Iterator[None]:
    """Show committed rows, tokens/s, the share of prompt tokens from the cache and failed rows while the block runs."""
    with Progress(label, total, "rows") as progress:
        watch = Watch(label, parts, model)
        every_s = POLL_S if isinstance(parts.folder, Path) else LIST_EVERY_S
        with polling(lambda: progress.update(min(parts.num_rows, total), watch.note()), every_s):
            yield


class Watch:
    """Reads the committed files and the engines' own counters, and keeps the gauges."""

    def __init__(self, label: str, parts: Parts, model: str) -> None:
        from ray.util.metrics import Gauge

        self._parts, self._model = parts, model
        self._gauges = {name: _gauge(Gauge, name, text, label) for name, text in GAUGES.items()}
        self._first: tuple[float, int] | None = None
        self._scraped = 0.0
        self._cached: float | None = None

    def note(self) -> str:
        """The text behind the progress line."""
        self._parts.look()
        now, parts = time.monotonic(), self._parts
        if self._first is None and parts.num_rows:
            self._first = now, parts.num_tokens
        rate = self._rate(now)
        if now - self._scraped > SCRAPE_EVERY_S:
            self._scraped, self._cached = now, cached_share(self._model)
        values = {"rows": parts.num_rows, "failed_rows": parts.num_errors, "generated_tokens": parts.num_tokens}
        for name, value in (*values.items(), ("tokens_per_s", rate or 0.0)):
            self._gauges[name].set(value)
        cached = f"{self._cached:.0%} of prompt tokens cached" if self._cached is not None else ""
        failed = f"{parts.num_errors} failed" if parts.num_errors else ""
        return ", ".join(text for text in (f"{rate:.0f} tokens/s" if rate else "", cached, failed) if text)

    def _rate(self, now: float) -> float | None:
        if self._first is None or self._parts.num_tokens <= self._first[1]:
            return None
        return (self._parts.num_tokens - self._first[1]) / (now - self._first[0])


GAUGES = {
    "rows": "Rows of the plan that are committed.",
    "failed_rows": "Committed rows that carry an engine's error.",
    "generated_tokens": "Tokens of the committed rows.",
    "tokens_per_s": "Generated tokens a second since the first commit of this run.",
}


def _gauge(kind: Any, name: str, text: str, label: str) -> Any:
    gauge = kind(f"trimtab_{name}", description=text, tag_keys=("stage",))
    gauge.set_default_tags({"stage": label})
    return gauge


def cached_share(model: str) -> float | None:
    """Share of prompt tokens that vLLM's prefix cache gave, over all engines of a model; None where nothing says so.

    vLLM's counters are on each node's Prometheus endpoint, where Ray exports them.
    """
    hits = queries = 0.0
    for text in _exported():
        for name, labels, value in _samples(text):
            if labels.get("model_name") == model:
                hits += value if HITS in name else 0.0
                queries += value if QUERIES in name else 0.0
    return hits / queries if queries else None


def _exported() -> Iterator[str]:
    """The Prometheus text of every node that can be reached."""
    import ray

    for node in ray.nodes():
        if node["Alive"] and node.get("MetricsExportPort"):
            url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
                yield answer.read().decode()


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """The cache's samples: parsing the thousands of others that Ray exports would take the engine's time."""
    from prometheus_client.parser import text_string_to_metric_families

    ours = "".join(f"{line}\n" for line in text.splitlines() if "prefix_cache" in line)
    for family in text_string_to_metric_families(ours):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield sample.name, sample.labels, sample.value
