"""The judge's client against a local server in a process of its own: how fast, what it loses, what a second run costs.

200 ms latency and 16 calls in flight allow 80 calls a second. The clock is the server's, from the first call to the
last answer; ``wall_s`` is ours, with start-up.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench._training import ROOT
from tests.judging.server import expected
from trimtab.console import quiet, say
from trimtab.judging import Item, OpenAIJudge, judge_all

NUM = 2_000
LATENCY_S = 0.2
CONCURRENCY = 16
SERVERS = {
    "healthy": {"latency_s": LATENCY_S, "share_429": 0.0, "share_500": 0.0, "seed": 0},
    "faulty": {"latency_s": LATENCY_S, "share_429": 0.05, "share_500": 0.05, "seed": 0},
}


@contextlib.contextmanager
def served(arguments: dict[str, float]) -> Iterator[str]:
    """The address of a judge server in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "tests.judging.server", json.dumps(arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def stats(url: str) -> dict[str, Any]:
    """What the server counted."""
    with urllib.request.urlopen(f"{url}/stats") as answer:
        return dict(json.loads(answer.read()))


def measured(folder: Path, url: str) -> dict[str, Any]:
    """Judge all texts, and once more; what the server saw, and the verdicts that are missing or wrong."""
    judge = OpenAIJudge(base_url=url, num_concurrent_requests=CONCURRENCY, cache=folder)
    items = [Item(str(n), "How?", f"Text number {n}. I would rather not say more.", "Sure,") for n in range(NUM)]
    started = time.monotonic()
    found = judge_all(items, "course_corrects", judge, "judge")
    wall_s, seen = time.monotonic() - started, stats(url)
    again = judge_all(items, "course_corrects", judge, "judge")
    lost = sum(said.verdict != expected(int(said.id)) for said in found)
    return seen | {"wall_s": wall_s, "lost": lost, "errors": sum(bool(said.error) for said in found),
                   "second_run_calls": stats(url)["calls"] - seen["calls"], "same_again": again == found}  # fmt: skip


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Both servers, one after the other."""
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        for name, arguments in SERVERS.items():
            with served(arguments) as url:
                runs[name] = measured(Path(scratch) / name, url)
            say(f"  {name}: {runs[name]}")
    healthy, faulty = runs["healthy"], runs["faulty"]
    rate = healthy["answered"] / healthy["seconds"]
    figures = {
        "throughput_share": rate / (CONCURRENCY / LATENCY_S), "calls_per_s": rate,
        "errors": healthy["errors"] + healthy["lost"], "lost_verdicts": faulty["lost"],
        "second_run_calls": healthy["second_run_calls"] + faulty["second_run_calls"],
    }  # fmt: skip
    settings = {"verdicts": NUM, "concurrency": CONCURRENCY, "servers": SERVERS, "runs": runs,
                "clock": "the server's, from the first call to the last answer"}  # fmt: skip
    return figures, settings
