"""The way back: the engine's answer on its way to the client, counted, and every refusal in OpenAI's error format.

A stream passes event by event, as soon as an event is whole. The engine is always asked for a stream's usage; the chunk
that has it goes on only to who asked for it. What the engine says of an error goes to nobody: it may quote our prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from time import monotonic
from typing import Any

from trimtab.policy.ports import Message, Refused, Send

KEPT_HEADERS = (b"content-type", b"content-length", b"cache-control")
MAX_KEPT_BYTES = 8 * 1024 * 1024
"""How much of an answer that is no stream is kept to read its usage."""
MAX_ERROR_BYTES = 64 * 1024
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SECRET = re.compile(r"[A-Za-z0-9_+/=~.-]{32,}")
"""What may be a key of ours or of another service, wherever somebody pasted it."""

Headers = list[tuple[bytes, bytes]]


async def refuse(send: Send, refused: Refused, headers: Iterable[tuple[bytes, bytes]] = (), secret: str = "") -> None:
    """Answer in OpenAI's error format.

    Args:
        secret: what must not stand in the answer: the credentials of this request.
    """
    body = _json(error_of(refused, secret))
    own: Headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_after_s is not None:
        own.append((b"retry-after", str(max(1, ceil(refused.retry_after_s))).encode()))
    if refused.status == 401:
        own.append((b"www-authenticate", b"Bearer"))
    if refused.status in (408, 411, 413):
        own.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


def error_of(refused: Refused, secret: str = "") -> dict[str, Any]:
    """The error object, without anything that may be a secret."""
    kind = TYPES.get(refused.status, "server_error" if refused.status >= 500 else "invalid_request_error")
    param = None if refused.param is None else _without(refused.param, secret)
    return {"error": {"message": _without(refused.message, secret), "type": kind, "param": param,
                      "code": refused.reason}}  # fmt: skip


def _without(text: str, secret: str) -> str:
    text = text.replace(secret, "…") if len(secret) >= 4 else text
    return _SECRET.sub("…", text)


async def answer_json(send: Send, value: Any, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    """Answer with a JSON value."""
    body = _json(value)
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
           (b"cache-control", b"no-store")]  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def failure(status: int, text: str, headers: Iterable[tuple[bytes, bytes]]) -> Refused:
    """The engine's error as one of ours: its status, and a message that quotes nothing of it."""
    waits = [value for name, value in headers if name.lower() == b"retry-after" and value.isdigit()]
    retry_after_s = float(waits[0]) if waits else 1.0
    if status == 429 or (status == 503 and "backpressure" in text.lower()):
        return Refused(429, "overloaded", "the engine has too much to do; come back", retry_after_s=retry_after_s)
    if status == 400 and "context length" in text:
        return Refused(400, "too_long", "messages: too long for the model's context; send less", "messages")
    if status == 404:
        return Refused(404, "model_not_found", "model: the engine doesn't have it", "model")
    if 400 <= status < 500:
        return Refused(status, "engine_refused", f"the engine refused the request ({status})")
    retry = retry_after_s if status == 503 else None
    return Refused(status if 500 <= status < 600 else 500, "engine_failed", "the engine failed", retry_after_s=retry)


@dataclass
class Counts:
    """What an answer came to."""

    status: int = 0
    """What the client was told; 0: nothing."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_at: float | None = None
    finished: bool = False
    """The whole answer passed."""
    reported: bool = False
    """The engine said how many tokens; else they are the chunks seen."""
    failure: Refused | None = None
    """What the engine's error was made into."""


class Answer:
    """The ``send`` that an engine gets."""

    def __init__(self, send: Send, headers: Headers, prompt_tokens: int, include_usage: bool) -> None:
        self._send, self._headers, self._include_usage = send, headers, include_usage
        self.counts = Counts(prompt_tokens=prompt_tokens)
        self._upstream: Headers = []
        self._status = 0
        self._is_stream = False
        self._ended = False
        self._kept = bytearray()

    @property
    def started(self) -> bool:
        """Whether the client has a status line."""
        return self.counts.status != 0

    async def send(self, message: Message) -> None:
        """Take a message of the engine's."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif message["type"] == "http.response.body":
            await self._body(bytes(message.get("body", b"")), bool(message.get("more_body")))

    async def broke_off(self, refused: Refused) -> None:
        """End an answer that the engine won't: by an error of its own, or by an event of the stream."""
        if self._ended:
            return
        self._ended, self.counts.failure = True, refused
        if not self.started:
            self.counts.status = refused.status
            await refuse(self._send, refused, self._headers)
        elif self._is_stream:
            event = b"data: " + _json(error_of(refused)) + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})

    async def _start(self, message: Message) -> None:
        self._status = int(message["status"])
        self._upstream = [(name.lower(), value) for name, value in message.get("headers", [])]
        if self._status != 200:
            return
        self._is_stream = any(
            name == b"content-type" and value.startswith(b"text/event-stream") for name, value in self._upstream
        )
        kept = [item for item in self._upstream if item[0] in KEPT_HEADERS]
        if self._is_stream:
            kept = [item for item in kept if item[0] != b"content-length"]
        self.counts.status = 200
        await self._send({"type": "http.response.start", "status": 200, "headers": [*kept, *self._headers]})

    async def _body(self, body: bytes, more: bool) -> None:
        if self._ended:
            return
        if self._status == 200:
            await (self._events(body, more) if self._is_stream else self._whole(body, more))
            return
        self._kept += body[: MAX_ERROR_BYTES - len(self._kept)]
        if not more:
            await self.broke_off(failure(self._status, self._kept.decode(errors="replace"), self._upstream))
            self.counts.finished = True

    async def _whole(self, body: bytes, more: bool) -> None:
        if body and self.counts.first_token_at is None:
            self.counts.first_token_at = monotonic()
        self._kept += body[: MAX_KEPT_BYTES - len(self._kept)]
        self.counts.finished = self._ended = not more
        try:
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        finally:
            if not more:
                self._read_usage(bytes(self._kept))

    async def _events(self, body: bytes, more: bool) -> None:
        """Whole events pass at once; the beginning of one waits for its end."""
        *events, rest = (bytes(self._kept) + body if self._kept else body).split(b"\n\n")
        self._kept[:] = rest
        passed = b"".join(event + b"\n\n" for event in events if self._passes(event))
        if not more:
            passed += rest  # an engine that ends within an event: the client sees what there is
            self.counts.finished = self.counts.failure is None
        if self.counts.failure is not None:
            passed += b"data: " + _json(error_of(self.counts.failure)) + b"\n\n"
            more = False
        self._ended = not more
        if passed or not more:
            await self._send({"type": "http.response.body", "body": passed, "more_body": more})

    def _passes(self, event: bytes) -> bool:
        """Count an event; whether the client gets it as it is."""
        if self.counts.failure is not None:
            return False
        if b'"error"' in event and b'"choices"' not in event:
            self.counts.failure = Refused(500, "engine_failed", "the engine failed")
            return False
        if b'"usage"' in event and b'"usage":null' not in event and self._read_usage(event.removeprefix(b"data:")):
            return self._include_usage
        if b'"choices"' in event and b'"role"' not in event:
            if self.counts.first_token_at is None:
                self.counts.first_token_at = monotonic()
            if not self.counts.reported:
                self.counts.completion_tokens += 1
        return True

    def _read_usage(self, raw: bytes) -> bool:
        """Take the engine's own counts; whether this was the chunk that has nothing else."""
        try:
            found = json.loads(raw)
            usage = found["usage"]
            prompt, completion = int(usage["prompt_tokens"]), int(usage.get("completion_tokens") or 0)
        except (ValueError, KeyError, TypeError):
            return False
        self.counts.prompt_tokens, self.counts.completion_tokens = prompt, completion
        self.counts.reported = True
        return bool(found.get("choices") == [])
