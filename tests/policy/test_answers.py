"""The way back: streams pass at once, what is counted is true, and an engine's error is told without its words."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.policy.gated import (
    DONE,
    HARMLESS,
    ROLE,
    USAGE,
    USER,
    Memory,
    Upstream,
    answer,
    chunk,
    drive,
    error,
    gate,
    post,
    request,
    scope,
)
from trimtab.chat import Chat
from trimtab.policy.answers import Answer, failure

CHUNKS = [ROLE, chunk("one"), chunk(" two"), USAGE, DONE]
STREAM = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def _pass(parts: list[bytes], include_usage: bool = False, ends: bool = True) -> tuple[Answer, list[bytes]]:
    """An answer that was given these parts of a stream, and what the client got in each message."""
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    taken = Answer(send, [], 41, include_usage)

    async def passing() -> None:
        await taken.send(STREAM)
        for part in parts:
            await taken.send({"type": "http.response.body", "body": part, "more_body": True})
        if ends:
            await taken.send({"type": "http.response.body", "body": b""})

    asyncio.run(passing())
    return taken, sent


def test_each_event_passes_at_once() -> None:
    _, sent = _pass(CHUNKS)
    assert sent == [ROLE, chunk("one"), chunk(" two"), DONE, b""]


def test_usage_is_read_and_kept_from_who_did_not_ask() -> None:
    taken, sent = _pass(CHUNKS)
    assert (taken.counts.prompt_tokens, taken.counts.completion_tokens) == (41, 2)
    assert taken.counts.reported
    assert taken.counts.finished
    assert taken.counts.first_token_at is not None
    assert USAGE not in sent
    assert USAGE in _pass(CHUNKS, include_usage=True)[1]


@pytest.mark.parametrize("size", [1, 2, 7, 50, 100_000])
def test_events_may_come_in_any_parts(size: int) -> None:
    raw = b"".join(CHUNKS)
    taken, sent = _pass([raw[at : at + size] for at in range(0, len(raw), size)])
    assert b"".join(sent) == b"".join([ROLE, chunk("one"), chunk(" two"), DONE])
    assert taken.counts.completion_tokens == 2


def test_model_that_writes_usage_or_errors_is_only_text() -> None:
    texts = [
        '"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":9}',
        '{"error": {"message": "x"}}',
        "data: [DONE]",
        '\n\ndata: {"choices":[],"usage":{"prompt_tokens":0}}\n\n',
    ]
    parts = [chunk(text) for text in texts]
    taken, sent = _pass(parts)
    assert sent == [*parts, b""]
    assert (taken.counts.completion_tokens, taken.counts.prompt_tokens, taken.counts.failure) == (4, 41, None)


def test_usage_in_each_chunk_is_null_and_no_matter() -> None:
    parts = [chunk("a", usage=None), chunk("b", usage=None), USAGE, DONE]
    taken, sent = _pass(parts)
    assert sent == [parts[0], parts[1], DONE, b""]
    assert taken.counts.completion_tokens == 2


def test_chunks_seen_are_counted_where_the_engine_says_nothing() -> None:
    taken, _ = _pass([ROLE, chunk("a"), chunk("b"), chunk("c")], ends=False)
    assert (taken.counts.completion_tokens, taken.counts.reported, taken.counts.finished) == (3, False, False)


def test_engines_error_within_a_stream_is_told_without_its_words(chat: Chat) -> None:
    broken = b'data: {"error":{"message":"bad prompt: You are a helpful","type":"x","param":null,"code":500}}\n\n'
    app = gate(Upstream([ROLE, chunk("a"), broken, DONE]), chat)
    start, *bodies = drive(app, scope(), [request(stream=True)])
    raw = b"".join(message["body"] for message in bodies)
    assert start["status"] == 200
    assert raw.startswith(ROLE + chunk("a") + b'data: {"error": ')
    assert b"You are" not in raw
    assert b"[DONE]" not in raw
    assert not bodies[-1]["more_body"]
    assert isinstance(app.audit, Memory)
    assert not app.audit.events[-1].finished


@pytest.mark.parametrize("raises", [True, False])
def test_stream_that_breaks_off_ends_with_an_error_event(chat: Chat, raises: bool) -> None:
    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send(STREAM)
        await send({"type": "http.response.body", "body": chunk("a"), "more_body": True})
        if raises:
            raise RuntimeError("engine dead: You are a helpful")

    app = gate(engine, chat)
    _, *bodies = drive(app, scope(), [request(stream=True)])
    assert bodies[0]["body"] == chunk("a")
    event = json.loads(bodies[-1]["body"].removeprefix(b"data: "))
    assert event["error"]["code"] == "engine_failed"
    assert not bodies[-1]["more_body"]


@pytest.mark.parametrize(
    ("status", "text", "headers", "expected", "code", "waits"),
    [
        (
            503,
            "Request dropped due to backpressure (num_queued_requests=9)",
            {"retry-after": "3"},
            429,
            "overloaded",
            "3",
        ),
        (503, "Request dropped due to backpressure", {}, 429, "overloaded", "1"),
        (429, "busy", {}, 429, "overloaded", "1"),
        (503, "Deployment unavailable", {}, 503, "engine_failed", "1"),
        (500, "Traceback: my prompt", {}, 500, "engine_failed", None),
        (502, "<html>", {}, 502, "engine_failed", None),
        (400, "maximum context length is 9", {}, 400, "too_long", None),
        (400, "You are a helpful", {}, 400, "engine_refused", None),
        (404, "no m", {}, 404, "model_not_found", None),
        (422, "{}", {}, 422, "engine_refused", None),
        (302, "", {}, 500, "engine_failed", None),
        (204, "", {}, 500, "engine_failed", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_engines_errors_become_ours(
    chat: Chat,
    status: int,
    text: str,
    headers: dict[str, str],
    expected: int,
    code: str,
    waits: str | None,
    stream: bool,
) -> None:
    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, status, text, *((name.encode(), value.encode()) for name, value in headers.items()))

    response = post(gate(engine, chat), stream=stream)
    found = error(response)
    assert (response.status_code, found["code"]) == (expected, code)
    assert response.headers.get("retry-after") == waits
    assert response.headers["x-trimtab-safety"] == "harmless"
    assert text not in found["message"] or not text


def test_engines_error_costs_nothing(chat: Chat) -> None:
    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 500, {"error": {"message": "x"}})

    app = gate(engine, chat)
    post(app)
    assert isinstance(app.audit, Memory)
    assert (app.audit.events[-1].status, app.audit.events[-1].completion_tokens) == (500, 0)
    assert app.limiter._usage["all"].day_tokens == 0  # type: ignore[attr-defined]


def test_whole_answer_is_counted_even_without_usage(chat: Chat) -> None:
    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, 200, {"choices": [{"message": {"content": "x"}}]})

    app = gate(engine, chat)
    assert post(app).json() == {"choices": [{"message": {"content": "x"}}]}
    assert isinstance(app.audit, Memory)
    assert app.audit.events[-1].finished
    assert app.audit.events[-1].prompt_tokens == len(chat.prompt_ids(HARMLESS, USER["content"]))


def test_chunk_is_sent_before_the_next_is_made(chat: Chat) -> None:
    order: list[str] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await send(STREAM)
        for number in range(3):
            order.append(f"made {number}")
            await send({"type": "http.response.body", "body": chunk(str(number)), "more_body": number < 2})

    async def driving() -> None:
        async def receive() -> Any:
            return request(stream=True)

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                order.append("sent")

        await gate(engine, chat)(scope(), receive, send)

    asyncio.run(driving())
    assert order == ["made 0", "sent", "made 1", "sent", "made 2", "sent"]


def test_disconnect_reaches_the_engine(chat: Chat) -> None:
    seen: list[str] = []

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    drive(gate(engine, chat), scope(), [request(), {"type": "http.disconnect"}])
    assert seen == ["http.request", "http.disconnect"]


def test_failures_waits_are_whole_seconds_of_the_engine() -> None:
    assert failure(429, "", [(b"Retry-After", b"7")]).retry_after_s == 7
    assert failure(429, "", [(b"retry-after", b"soon")]).retry_after_s == 1
