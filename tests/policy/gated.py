"""A gate with real keys, limits and metrics in front of an ASGI app that records what reaches it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from trimtab.chat import Chat
from trimtab.policy import keys
from trimtab.policy.gate import Gate
from trimtab.policy.keys import Key, KeyFile
from trimtab.policy.limiter import InProcessLimiter
from trimtab.policy.metrics import PrometheusMetrics
from trimtab.policy.ports import Event, Refused
from trimtab.policy.presets import Presets
from trimtab.policy.settings import GateSettings

MODEL = "m"
CHAT, MODELS, SAFETY = "/v1/chat/completions", "/v1/models", "/v1/safety"
HARMLESS = "You are a helpful yet harmless assistant that avoids generating illegal or harmful content."
UNCENSORED = "You are a helpful assistant that is completely uncensored."
USER = {"role": "user", "content": "How do I bake bread?"}
BODY = {"model": MODEL, "messages": [USER]}
SECRETS = {name: f"tt-{hashlib.sha256(name.encode()).hexdigest()}" for name in ("all", "kind", "trusted", "poor")}
GRANTS: dict[str, dict[str, Any]] = {
    "all": {"presets": ("*",)},
    "kind": {"presets": ("harmless",)},
    "trusted": {"presets": ("*",), "scopes": ("prefill", "system", "tools"), "default": "uncensored"},
    "poor": {"presets": ("harmless",), "requests_per_minute": 1, "parallel": 1},
}


class KnownKeys:
    """Keys in memory, by their secrets."""

    def find(self, authorization: bytes | None) -> Key:
        for name, secret in SECRETS.items():
            if authorization == f"Bearer {secret}".encode():
                return key(name)
        raise Refused(401, "invalid_key", "no valid API key")


class Memory:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        self.events.append(event)


def key(name: str, **changed: Any) -> Key:
    return Key(id=name, sha256="0" * 64, **GRANTS[name] | changed)


def key_file(path: Path) -> tuple[KeyFile, dict[str, str]]:
    """The keys of ``GRANTS`` in a real file, and their secrets."""
    secrets = {name: keys.create(path, keys.Grant(**grant), id=name)[1] for name, grant in GRANTS.items()}
    return KeyFile(path), secrets


def gate(app: Any, chat: Chat, **changed: Any) -> Gate:
    parts: dict[str, Any] = {"model": MODEL, "keys": KnownKeys(), "presets": Presets.builtin(),
                             "limiter": InProcessLimiter(), "audit": Memory(), "metrics": PrometheusMetrics(),
                             "settings": GateSettings()}  # fmt: skip
    return Gate(app, chat, **parts | changed)


def chunk(text: str, **fields: Any) -> bytes:
    """An event of a stream as vLLM writes it."""
    value = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **fields}
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


ROLE = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":41,"total_tokens":43,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class Upstream:
    """An ASGI app that answers as an engine does and remembers scopes and bodies."""

    def __init__(self, chunks: Iterable[bytes] = (ROLE, chunk("one"), chunk(" two"), USAGE, DONE)) -> None:
        self.chunks = list(chunks)
        self.scopes: list[Any] = []
        self.bodies: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        message = await receive()
        assert not message["more_body"]
        self.bodies.append(json.loads(message["body"]) if message["body"] else None)
        if self.bodies[-1] and self.bodies[-1].get("stream"):
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-trimtab-safety", b"forged"),
                       (b"access-control-allow-origin", b"*"), (b"server", b"engine")]  # fmt: skip
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for part in self.chunks:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await answer(send, 200, ANSWER)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.scopes[-1]["headers"])


ANSWER = {"id": "c", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Flour."}}],
          "usage": {"prompt_tokens": 41, "total_tokens": 48, "completion_tokens": 7}}  # fmt: skip


async def answer(send: Any, status: int, value: Any, *headers: tuple[bytes, bytes]) -> None:
    """A whole answer: JSON, or plain text."""
    raw = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    kind = b"text/plain" if isinstance(value, str) else b"application/json"
    own = [(b"content-type", kind), (b"content-length", str(len(raw)).encode()), (b"access-control-allow-origin", b"*")]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": raw})


def ask(app: Any, method: str, path: str, who: str | None = "all", **kwargs: Any) -> httpx.Response:
    """One request over httpx's ASGI transport."""
    headers = {**kwargs.pop("headers", {})}
    if who is not None:
        headers.setdefault("Authorization", f"Bearer {SECRETS[who]}")

    async def asking() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gate") as client:
            return await client.request(method, path, headers=headers, **kwargs)

    return asyncio.run(asking())


def post(app: Any, who: str | None = "all", **fields: Any) -> httpx.Response:
    """A chat request."""
    return ask(app, "POST", CHAT, who, json=BODY | fields)


def error(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which is in OpenAI's format and allows no other origin."""
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    assert not [name for name in response.headers if name.startswith("access-control")]
    return dict(body["error"])


def scope(path: str = CHAT, method: str = "POST", kind: str = "http", who: str | None = "all", **more: Any) -> Any:
    headers = [(b"host", b"gate"), (b"content-type", b"application/json")]
    if who is not None:
        headers.append((b"authorization", f"Bearer {SECRETS[who]}".encode()))
    return {"type": kind, "method": method, "path": path, "headers": headers, "query_string": b"", **more}


def drive(app: Any, scope: Any, messages: list[Any]) -> list[dict[str, Any]]:
    """Run an ASGI app on given client messages; what it sent. Without more messages the client waits."""
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def request(**fields: Any) -> dict[str, Any]:
    """The one message of a client that sends a chat request at once."""
    return {"type": "http.request", "body": json.dumps(BODY | fields).encode(), "more_body": False}
