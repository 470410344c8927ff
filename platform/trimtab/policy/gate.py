"""The gate as plain ASGI middleware: it stands in front of any OpenAI-compatible ASGI app and knows no Ray.

The order is fixed: the key (401), the route (404, 405), the body (400), the preset (403), the limits (429), then the
engine. What can't be decided is denied: a limiter that fails or hangs, and an audit that can't be written, are a 503.

A request that is let through is written down twice: before the engine gets it (status 0), since what isn't recorded
isn't allowed, and with its counts when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import traceback
from dataclasses import dataclass, field
from time import monotonic, time
from typing import Any

from trimtab.chat import Chat
from trimtab.policy import choosing, page
from trimtab.policy.answers import Answer, Headers, answer_json, refuse
from trimtab.policy.headers import (
    check_body_headers,
    check_headers,
    header,
    narrowed,
    request_id,
    secret_of,
    too_large,
)
from trimtab.policy.keys import Key, Keys
from trimtab.policy.ports import (
    App,
    Audit,
    Event,
    Limiter,
    Message,
    Metrics,
    Receive,
    Refused,
    Scope,
    Send,
    limiter_down,
)
from trimtab.policy.preparing import Prepared, Preparing
from trimtab.policy.presets import Presets
from trimtab.policy.settings import GateSettings

CHAT, MODELS, SAFETY, HEALTH = "/v1/chat/completions", "/v1/models", "/v1/safety", "/health"
ROUTES = {CHAT: "POST", MODELS: "GET", SAFETY: "GET"}
FIRST_CHECKED, CHECKED_EACH = 32, 64
"""Answers whose prompt is counted here as well, to compare: the first ones, then one in so many."""
LONG_BODY_BYTES = 32 * 1024
"""A longer body is rewritten in a thread: it would keep every other request waiting."""

logger = logging.getLogger("trimtab.policy")


@dataclass
class Exchange:
    """One request, as far as it has come."""

    id: str
    started: float = field(default_factory=monotonic)
    key_id: str = "-"
    prepared: Prepared | None = None
    ticket: str | None = None
    in_flight: bool = False
    answer: Answer | None = None
    left: bool = False
    """The client has gone."""

    @property
    def headers(self) -> Headers:
        """What an answer says of itself."""
        found = [(b"x-request-id", self.id.encode())]
        if self.in_flight and self.prepared is not None:
            found += [(b"x-trimtab-safety", self.prepared.preset.encode()),
                      (b"x-trimtab-safety-hash", self.prepared.safety_hash.encode())]  # fmt: skip
            found += [(b"x-trimtab-ignored", name.encode()) for name in self.prepared.ignored]
        return found

    def event(self, decision: str, status: int, finished: bool = True) -> Event:
        """What is written down of it now."""
        prepared, counts = self.prepared, self.answer.counts if self.answer else None
        first = counts.first_token_at if counts else None
        return Event(
            request_id=self.id, key_id=self.key_id, decision=decision, status=status,
            preset=prepared.preset if prepared else "", safety_hash=prepared.safety_hash if prepared else "",
            model=prepared.model if prepared else "",
            prompt_tokens=counts.prompt_tokens if counts else (prepared and prepared.prompt_tokens) or 0,
            completion_tokens=counts.completion_tokens if counts else 0, seconds=monotonic() - self.started,
            first_token_s=None if first is None else first - self.started, finished=finished,
        )  # fmt: skip


class Gate:
    """Lets a few routes and the listed body fields through, and sets the system turn of each request."""

    def __init__(
        self, app: App, chat: Chat, *, model: str, keys: Keys, presets: Presets, limiter: Limiter, audit: Audit,
        metrics: Metrics, settings: GateSettings | None = None,
    ) -> None:  # fmt: skip
        self.app = app
        self.model = model
        """The one model name that is served."""
        self.keys = keys
        self.presets = presets
        """May be replaced at any time; a request keeps those that it began with."""
        self.limiter, self.audit, self.metrics = limiter, audit, metrics
        self.settings = settings or GateSettings()
        self._preparing = Preparing(chat, model, self.settings)
        self._created = int(time())
        self._num_answers = 0
        self._settling: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._guarded(scope, receive, send)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose every failure is an answer."""
        exchange = Exchange(request_id(scope))
        try:
            await self._route(exchange, scope, receive, send)
        except Refused as refused:
            await self._deny(exchange, scope, send, refused)
        except Exception as error:
            _log(exchange, error)
            await self._deny(exchange, scope, send, Refused(500, "internal", f"an error; request {exchange.id}"))

    async def _route(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = _path(scope), scope["method"]
        if method in ("HEAD", "OPTIONS"):
            raise Refused(405, "method", f"method: use {ROUTES.get(path, 'GET')}", "method")
        if method == "GET" and path == HEALTH:
            await self.app(narrowed(scope, path, exchange.id), _once(b""), _bare(send))
            return
        found = page.find(path) if method == "GET" else None
        if found is not None:
            await _send_page(send, found)
            return
        check_headers(scope)
        key = self.keys.find(header(scope, b"authorization"))
        exchange.key_id = key.id
        if path not in ROUTES:
            raise Refused(404, "no_route", f"path: no such route; there are {', '.join(ROUTES)}", "path")
        if method != ROUTES[path]:
            raise Refused(405, "method", f"method: use {ROUTES[path]}", "method")
        if path == CHAT:
            await self._chat(exchange, key, scope, receive, send)
        else:
            await self._list(exchange, key, path, send)

    async def _list(self, exchange: Exchange, key: Key, path: str, send: Send) -> None:
        """The models or the presets that a key may use."""
        presets = self.presets
        self._write(exchange.event("allowed", 200))
        if path == MODELS:
            names = choosing.model_names(key, self.model, self.settings.adapters, presets)
            data: list[dict[str, Any]] = [
                {"id": name, "object": "model", "created": self._created, "owned_by": "trimtab"} for name in names
            ]
            await answer_json(send, {"object": "list", "data": data}, exchange.headers)
        else:
            found = {"object": "list", "default": choosing.default_of(key)}
            data = presets.describe(choosing.allowed(key, presets))
            await answer_json(send, found | {"data": data}, exchange.headers)

    async def _chat(self, exchange: Exchange, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        presets = self.presets
        raw = await self._read(scope, receive)
        if raw is None:
            return
        if len(raw) > LONG_BODY_BYTES:
            prepared = await asyncio.to_thread(self._preparing.prepare, raw, key, presets)
        else:
            prepared = self._preparing.prepare(raw, key, presets)
        exchange.prepared = prepared
        choosing.permit(key, prepared.preset)
        try:
            exchange.ticket = await self._admit(key, prepared.most_tokens)
            self._write(exchange.event("allowed", 0, finished=False))
            exchange.in_flight = True
            self.metrics.started(key.id, prepared.preset)
            await self._forward(exchange, prepared, scope, receive, send)
        finally:
            await self._end(exchange)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None: the client has gone.

        Raises:
            Refused: 400, 408, 413 or 415.
        """
        most = self.settings.max_body_bytes
        check_body_headers(scope, most)
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large(most)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused(408, "slow_body", "body: took too long to arrive; send it at once", "body") from None

    async def _admit(self, key: Key, tokens: int) -> str:
        try:
            async with asyncio.timeout(self.settings.limiter_timeout_s):
                return await self.limiter.admit(key, tokens)
        except Refused:
            raise
        except Exception as error:  # a limiter that is dead, in whatever way, denies
            logger.error("the limiter failed: %s", type(error).__name__)
            raise limiter_down() from error

    def _write(self, event: Event) -> None:
        try:
            self.audit.write(event)
        except Exception as error:  # what isn't recorded isn't allowed
            logger.error("the audit log can't be written: %s", type(error).__name__)
            raise Refused(503, "audit_down", "requests can't be recorded; come back", retry_after_s=5) from error

    async def _forward(
        self, exchange: Exchange, prepared: Prepared, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Ask the engine, and pass its answer."""

        async def sending(message: Message) -> None:
            try:
                await send(message)
            except OSError:  # how an ASGI server says that nobody is there any more
                exchange.left = True
                raise

        async def after() -> Message:
            message = await receive()
            exchange.left = exchange.left or message["type"] == "http.disconnect"
            return message

        answer = Answer(sending, exchange.headers, prepared.prompt_tokens or 0, prepared.include_usage)
        exchange.answer = answer
        inner = narrowed(scope, CHAT, exchange.id, prepared.body)
        try:
            await self.app(inner, _once(prepared.body, after), answer.send)
        except Exception as error:
            if not exchange.left:
                _log(exchange, error)
        if not exchange.left:
            await answer.broke_off(Refused(500, "engine_failed", f"the engine failed; request {exchange.id}"))

    async def _end(self, exchange: Exchange) -> None:
        """Give back what the request didn't take, and write down what it came to, whatever happened to it."""
        if exchange.ticket is None:
            return
        task = asyncio.ensure_future(self._settle(exchange))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def _settle(self, exchange: Exchange) -> None:
        answer, ticket = exchange.answer, exchange.ticket or ""
        await self._count_prompt(exchange)
        used = 0
        if answer is not None and (answer.counts.failure is None or answer.counts.status == 200):
            used = answer.counts.prompt_tokens + answer.counts.completion_tokens
        try:
            async with asyncio.timeout(self.settings.limiter_timeout_s):
                await self.limiter.settle(ticket, used)
        except Exception as error:  # the answer is out: a limiter that dies now denies the next request
            logger.error("the limiter failed to settle: %s", type(error).__name__)
        if answer is None:
            return
        event = exchange.event("allowed", answer.counts.status, answer.counts.finished)
        with contextlib.suppress(Refused):  # it is logged, and the next request is denied
            self._write(event)
        self.metrics.ended(event)

    async def _count_prompt(self, exchange: Exchange) -> None:
        """Count a prompt that the engine didn't, and the first and some others that it did.

        A difference is said loudly: the engine renders another prompt than the one that was checked.
        """
        answer, prepared = exchange.answer, exchange.prepared
        if answer is None or prepared is None or (answer.counts.failure and answer.counts.status != 200):
            return
        counts, num = answer.counts, prepared.prompt_tokens
        self._num_answers += 1
        if num is None and counts.reported and self._num_answers > FIRST_CHECKED and self._num_answers % CHECKED_EACH:
            return
        if num is None and len(prepared.prompt) > LONG_BODY_BYTES:
            num = await asyncio.to_thread(self._preparing.count, prepared.prompt)
        elif num is None:
            num = self._preparing.count(prepared.prompt)
        if not counts.reported:
            counts.prompt_tokens = num
        elif prepared.exact and counts.prompt_tokens != num:
            logger.error(
                "request %s: the engine's prompt has %d tokens, the checked one %d: it renders another template",
                exchange.id, counts.prompt_tokens, num,
            )  # fmt: skip

    async def _deny(self, exchange: Exchange, scope: Scope, send: Send, refused: Refused) -> None:
        """Answer with an error, unless the answer has begun; what was let through is written down by ``_end``."""
        if not exchange.in_flight:
            event = exchange.event(refused.reason, refused.status)
            try:
                self._write(event)
            except Refused as down:
                refused, event = down, exchange.event(down.reason, down.status)
            self.metrics.ended(event)
        if exchange.answer is None or not exchange.answer.started:
            await refuse(send, refused, [(b"x-request-id", exchange.id.encode())], secret_of(scope))


def _path(scope: Scope) -> str:
    """The path below the place where the server has put this app."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


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


def _bare(send: Send) -> Send:
    """An answer's status alone: health is no place for headers or texts from behind."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            await send({"type": "http.response.start", "status": message["status"],
                        "headers": [(b"content-length", b"0")]})  # fmt: skip
        elif message["type"] == "http.response.body" and not message.get("more_body"):
            await send({"type": "http.response.body", "body": b""})

    return sending


async def _send_page(send: Send, found: page.Page) -> None:
    length = str(len(found.body)).encode()
    headers = [(b"content-type", found.content_type), (b"content-length", length), *found.headers]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": found.body})


def _log(exchange: Exchange, error: Exception) -> None:
    """What happened and where; never the error's text, which may quote a prompt or a key."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
    logger.error("request %s: %s at %s", exchange.id, type(error).__name__, where)
