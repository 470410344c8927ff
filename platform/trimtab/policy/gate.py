"""The gate as plain ASGI middleware: it stands in front of any OpenAI-compatible ASGI app and knows no Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from trimtab.chat import Chat
from trimtab.config import InputError
from trimtab.policy.body import MAX_BODY_BYTES, parse_body, rewrite
from trimtab.safety import SafetyConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
ROUTES = {CHAT: "POST", MODELS: "GET"}
PASSED_HEADERS = (b"accept", b"host", b"x-request-id", b"traceparent")


class Gate:
    """Lets the two routes and the listed body fields through, and sets the system turn of each request."""

    def __init__(self, app: App, chat: Chat, model: str | None = None) -> None:
        self.app = app
        self.chat = chat
        self.model = model
        """The one model name that is served; none: the app behind decides."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] not in ROUTES:
            await _refuse(send, 404, f"no route {scope['path'][:80]}", "path")
        elif scope["method"] != ROUTES[scope["path"]]:
            await _refuse(send, 405, f"use {ROUTES[scope['path']]}", "method")
        elif scope["path"] == MODELS:
            await self.app(_narrowed(scope, b""), _once(b""), send)
        else:
            await self._chat(scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            raw = await _read(receive)
            if raw is None:
                return
            body, safety = rewrite(parse_body(raw), self.chat)
            if self.model is not None and body.get("model", self.model) != self.model:
                await _refuse(send, 404, f"model: no model {str(body['model'])[:80]!r}; use {self.model}", "model")
                return
        except InputError as error:
            await _refuse(send, 400, str(error), str(error).split(":", 1)[0])
            return
        written = json.dumps(body).encode()
        await self.app(_narrowed(scope, written), _once(written, receive), _with_headers(send, safety))


async def _read(receive: Receive) -> bytes | None:
    """The whole body, or None where the client has gone.

    Raises:
        InputError: it is too large.
    """
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY_BYTES:
            raise InputError("body", f"over {MAX_BODY_BYTES} bytes", "is too large", f"send at most {MAX_BODY_BYTES}")
        if not message.get("more_body"):
            return body


def _narrowed(scope: Scope, body: bytes) -> Scope:
    """The scope with few headers, those of the rewritten body, and no query."""
    headers = [(name, value) for name, value in scope["headers"] if name in PASSED_HEADERS]
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    return {**scope, "headers": headers, "query_string": b""}


def _once(body: bytes, after: Receive | None = None) -> Receive:
    """A receive that gives this body once, then what the client sends (its disconnect)."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given and after is not None:
            return await after()
        if given:
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _with_headers(send: Send, safety: SafetyConfig) -> Send:
    """Say in the response which configuration was applied, and its prompt's hash."""
    digest = hashlib.sha256(safety.render().encode()).hexdigest()[:16]
    ours = [(b"x-trimtab-safety", safety.preset.encode()), (b"x-trimtab-safety-hash", digest.encode())]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *ours]}
        await send(message)

    return wrapped


async def _refuse(send: Send, status: int, text: str, param: str) -> None:
    """An error in OpenAI's format."""
    error = {"message": text, "type": "invalid_request_error", "param": param, "code": None}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
