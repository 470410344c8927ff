"""How long the gate holds a request: with it and without it in front of a stub, called in this process by turns."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from tests import tiny
from trimtab.chat import Chat
from trimtab.policy import keys
from trimtab.policy.audit import AuditFile
from trimtab.policy.gate import CHAT, Gate
from trimtab.policy.keys import Grant, KeyFile
from trimtab.policy.limiter import InProcessLimiter
from trimtab.policy.metrics import PrometheusMetrics
from trimtab.policy.presets import Presets
from trimtab.policy.settings import GateSettings
from trimtab.registry import home

MODEL = "trimtab"
PROMPT_TOKENS = 256
CALLS, WARM_UP = 500, 50
NUM_KEYS = 10
LIMITS = {"requests_per_minute": 6000, "tokens_per_minute": 500_000, "parallel": 64, "tokens_per_day": 50_000_000}
HARMLESS = "You are a helpful yet harmless assistant that avoids generating illegal or harmful content."
ANSWER = json.dumps({
    "id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Flour."}}],
    "usage": {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + 2, "completion_tokens": 2},
}).encode()  # fmt: skip


async def stub(scope: Any, receive: Any, send: Any) -> None:
    """An engine that answers at once."""
    await receive()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def added_latency_ms() -> dict[str, Any]:
    """Median and 99th percentile of what the gate adds to a request with a prompt of 256 tokens, in milliseconds.

    A request ends for its caller with the answer's last byte; ``held_median`` is until the gate has done with it: the
    count is settled and written down behind the answer. ``counted_median`` is where the prompt's tokens must be counted
    before, since their bound could refuse the request: here by a context of twice the prompt.
    Keys, limits, the audit file and metrics are on. The tokenizer is that of the embedded model where it is on this
    machine, else the tests' tiny one.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chat, model = _chat(folder)
        prompt = _prompt(chat)
        found = _added(*_gate(chat, folder, GateSettings()), prompt)
        found["counted_median"] = _added(*_gate(chat, folder, GateSettings(context_tokens=2 * PROMPT_TOKENS)), prompt)[
            "median"
        ]
    return {**found, "calls": CALLS, "prompt_tokens": len(chat.prompt_ids(HARMLESS, prompt)), "tokenizer": model,
            "limits": LIMITS}  # fmt: skip


def _added(gate: Gate, secret: str, prompt: str) -> dict[str, Any]:
    raw = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 16}).encode()
    direct, gated = asyncio.run(_measure(gate, raw, secret))
    bare = [median(times) for times in zip(*direct, strict=True)]
    answered, held = (sorted(times) for times in zip(*gated, strict=True))
    return {
        "median": round((median(answered) - bare[0]) * 1000, 3),
        "p99": round((answered[int(0.99 * len(answered))] - bare[0]) * 1000, 3),
        "held_median": round((median(held) - bare[1]) * 1000, 3),
    }


Times = tuple[float, float]
"""Seconds until the answer's last byte, and until the app has returned."""


async def _measure(gate: Gate, raw: bytes, secret: str) -> tuple[list[Times], list[Times]]:
    """Each call without and with the gate, by turns."""
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": [
        (b"host", b"gate"), (b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode()),
        (b"authorization", f"Bearer {secret}".encode()),
    ]}  # fmt: skip
    direct, gated = [], []
    for number in range(WARM_UP + CALLS):
        times = [await _call(app, scope, raw) for app in (stub, gate)]
        if number >= WARM_UP:
            direct.append(times[0])
            gated.append(times[1])
    return direct, gated


async def _call(app: Any, scope: Any, raw: bytes) -> Times:
    statuses: list[int] = []
    ended = 0.0

    async def receive() -> Any:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Any) -> None:
        nonlocal ended
        ended = perf_counter()
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    started = perf_counter()
    await app(scope, receive, send)
    seconds = perf_counter() - started
    assert statuses == [200], statuses
    return ended - started, seconds


def _chat(folder: Path) -> tuple[Chat, str]:
    model = home() / "models" / "smollm2-135m"
    if (model / "tokenizer.json").is_file():
        return Chat.from_folder(str(model)), "smollm2-135m"
    tiny.save_tokenizer(folder / "model")
    return Chat.from_folder(str(folder / "model")), "tiny"


def _prompt(chat: Chat) -> str:
    """Requests of the shipped sample, one behind the other, up to the prompt's length under the configuration."""
    rows = [json.loads(line)["prompt"] for line in tiny.SAMPLE.read_text(encoding="utf-8").splitlines()]
    words = " ".join(rows).split(" ")
    num = 1
    while len(chat.prompt_ids(HARMLESS, " ".join(words[: num + 1]))) <= PROMPT_TOKENS:
        num += 1
    return " ".join(words[:num])


def _gate(chat: Chat, folder: Path, settings: GateSettings) -> tuple[Gate, str]:
    grant = Grant(presets=("*",), **LIMITS)
    secrets = [keys.create(folder / "keys.json", grant)[1] for _ in range(NUM_KEYS)]
    gate = Gate(
        stub, chat, model=MODEL, keys=KeyFile(folder / "keys.json"), presets=Presets.builtin(),
        limiter=InProcessLimiter(), audit=AuditFile(folder / "audit.jsonl"), metrics=PrometheusMetrics(),
        settings=settings,
    )  # fmt: skip
    return gate, secrets[-1]
