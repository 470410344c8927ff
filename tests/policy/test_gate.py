"""The gate in front of a real ASGI app that records what reaches it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest

from trimtab.chat import Chat
from trimtab.policy.body import MAX_BODY_BYTES
from trimtab.policy.gate import Gate

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
HARMLESS = "You are a helpful yet harmless assistant that avoids generating illegal or harmful content."
BODY = {"model": "m", "messages": [{"role": "user", "content": "How do I bake bread?"}]}
CHUNKS = (b"data: one\n\n", b"data: two\n\n", b"data: [DONE]\n\n")


class Upstream:
    """An ASGI app that answers in chunks and remembers scopes and bodies."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        message = await receive()
        self.bodies.append(message["body"])
        assert not message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for chunk in CHUNKS:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.scopes[-1]["headers"])


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
def gate(upstream: Upstream, chat: Chat) -> Gate:
    return Gate(upstream, chat)


def _ask(gate: Gate, method: str, path: str, **kwargs: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url="http://gate") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(ask())


def _error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    return dict(body["error"])


def test_chat_gets_one_system_turn_and_says_which(gate: Gate, upstream: Upstream) -> None:
    response = _ask(gate, "POST", CHAT, json=BODY)
    assert response.status_code == 200
    assert response.headers["x-trimtab-safety"] == "harmless"
    assert response.headers["x-trimtab-safety-hash"] == hashlib.sha256(HARMLESS.encode()).hexdigest()[:16]
    sent = json.loads(upstream.bodies[0])
    assert sent["messages"] == [{"role": "system", "content": HARMLESS}, *BODY["messages"]]
    assert set(sent) == {"model", "messages"}
    assert upstream.headers[b"content-length"] == str(len(upstream.bodies[0])).encode()
    assert upstream.headers[b"content-type"] == b"application/json"


def test_chosen_safety_is_applied(gate: Gate, upstream: Upstream) -> None:
    response = _ask(gate, "POST", CHAT, json=BODY | {"safety": "uncensored"})
    assert response.headers["x-trimtab-safety"] == "uncensored"
    assert "completely uncensored" in json.loads(upstream.bodies[0])["messages"][0]["content"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"safety": "off"}, "safety.preset"), ({"safety": {"system": "obey"}}, "safety"),
        ({"chat_template": "x"}, "chat_template"),
        ({"messages": []}, "messages"), ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "<|im_start|>"}]}, "messages[0].content"),
    ],
)  # fmt: skip
def test_refused_request_never_reaches_the_model(
    gate: Gate, upstream: Upstream, fields: dict[str, Any], param: str
) -> None:
    response = _ask(gate, "POST", CHAT, json=BODY | fields)
    assert response.status_code == 400
    error = _error(response)
    assert error["param"] == param
    assert error["message"].startswith(f"{param}: ")
    assert upstream.scopes == []
    assert "x-trimtab-safety" not in response.headers


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff", b"[" * 50_000, b"x" * (MAX_BODY_BYTES + 1)])
def test_body_that_is_no_object_is_refused(gate: Gate, upstream: Upstream, content: bytes) -> None:
    response = _ask(gate, "POST", CHAT, content=content)
    assert (response.status_code, _error(response)["param"]) == (400, "body")
    assert upstream.scopes == []


@pytest.mark.parametrize(
    "path",
    [
        "/", "/v1", "/v1/chat/completions/", "/v1/completions", "/v1/embeddings", "/v1/models/m", "/tokenize", "/docs",
        "/v1/responses", "/metrics", "/health", "/openapi.json", "//v1/models", "/V1/models",
        "/v1/chat/completions/render",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_there_are_only_two_routes(gate: Gate, upstream: Upstream, method: str, path: str) -> None:
    response = _ask(gate, method, path, json=BODY)
    assert response.status_code == 404
    assert _error(response)["param"] == "path"
    assert upstream.scopes == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", CHAT), ("OPTIONS", CHAT), ("PUT", CHAT), ("DELETE", CHAT), ("POST", MODELS), ("OPTIONS", MODELS)],
)  # fmt: skip
def test_other_methods_are_refused(gate: Gate, upstream: Upstream, method: str, path: str) -> None:
    response = _ask(gate, method, path, headers={"Origin": "http://evil", "Access-Control-Request-Method": "POST"})
    assert response.status_code == 405
    assert _error(response)["param"] == "method"
    assert upstream.scopes == []
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", MODELS), ("GET", "/docs")])
def test_no_answer_allows_other_origins(gate: Gate, method: str, path: str) -> None:
    response = _ask(gate, method, path, json=BODY, headers={"Origin": "http://evil"})
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("method", "path"), [("POST", CHAT), ("GET", MODELS)])
def test_query_and_odd_headers_stay_outside(gate: Gate, upstream: Upstream, method: str, path: str) -> None:
    odd = {"Authorization": "Bearer x", "X-Session": "1", "Cookie": "a=b", "Serve_multiplexed_model_id": "z",
           "X-Data-Parallel-Rank": "1", "X-Request-Id": "r1", "Content-Type": "text/plain"}  # fmt: skip
    response = _ask(gate, method, f"{path}?safety=uncensored&x=1", content=json.dumps(BODY), headers=odd)
    assert response.status_code == 200
    assert upstream.scopes[0]["query_string"] == b""
    allowed = {b"accept", b"host", b"x-request-id", b"traceparent", b"content-type", b"content-length"}
    assert set(upstream.headers) <= allowed
    assert upstream.headers[b"x-request-id"] == b"r1"
    assert upstream.headers.get(b"content-type", b"application/json") == b"application/json"


def test_body_of_a_get_is_not_forwarded(gate: Gate, upstream: Upstream) -> None:
    _ask(gate, "GET", MODELS, json=BODY)
    assert upstream.bodies == [b""]


def _scope(path: str = CHAT, method: str = "POST", kind: str = "http") -> dict[str, Any]:
    return {"type": kind, "method": method, "path": path, "headers": [(b"host", b"gate")], "query_string": b""}


def _drive(app: Any, scope: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Run an ASGI app on given client messages; what it sent."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def test_streamed_answer_passes_chunk_by_chunk(gate: Gate) -> None:
    raw = json.dumps(BODY | {"stream": True}).encode()
    parts = [raw[:10], raw[10:40], raw[40:]]
    messages = [{"type": "http.request", "body": part, "more_body": part != parts[-1]} for part in parts]
    start, *bodies = _drive(gate, _scope(), messages)
    assert (b"x-trimtab-safety", b"harmless") in start["headers"]
    assert (b"content-type", b"text/event-stream") in start["headers"]
    assert [message["body"] for message in bodies] == [*CHUNKS, b""]


def test_chunk_is_sent_before_the_next_is_made(chat: Chat) -> None:
    order: list[str] = []

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for number in range(3):
            order.append(f"made {number}")
            await send({"type": "http.response.body", "body": str(number).encode(), "more_body": number < 2})

    async def drive() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": json.dumps(BODY).encode()}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                order.append(f"sent {int(message['body'])}")

        await Gate(upstream, chat)(_scope(), receive, send)

    asyncio.run(drive())
    assert order == ["made 0", "sent 0", "made 1", "sent 1", "made 2", "sent 2"]


def test_disconnect_reaches_the_model(chat: Chat) -> None:
    seen: list[str] = []

    async def upstream(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    _drive(
        Gate(upstream, chat),
        _scope(),
        [{"type": "http.request", "body": json.dumps(BODY).encode()}, {"type": "http.disconnect"}],
    )
    assert seen == ["http.request", "http.disconnect"]


def test_client_that_leaves_while_sending_costs_nothing(gate: Gate, upstream: Upstream) -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    assert _drive(gate, _scope(), messages) == []
    assert upstream.scopes == []


def test_endless_body_is_cut_off_at_the_limit(gate: Gate, upstream: Upstream) -> None:
    chunk = {"type": "http.request", "body": b"x" * 100_000, "more_body": True}
    messages = [dict(chunk) for _ in range(9)]
    start, _ = _drive(gate, _scope(), messages)
    assert start["status"] == 400
    assert len(messages) == 6
    assert upstream.scopes == []


def test_websockets_are_closed_and_lifespan_passes(gate: Gate, upstream: Upstream) -> None:
    assert _drive(gate, _scope(kind="websocket"), []) == [{"type": "websocket.close", "code": 1008}]
    assert upstream.scopes == []

    async def lifespan(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": (await receive())["type"] + ".complete"})

    sent = _drive(Gate(lifespan, gate.chat), {"type": "lifespan"}, [{"type": "lifespan.startup"}])
    assert sent == [{"type": "lifespan.startup.complete"}]
