"""A real HTTP server for tests of the page and the clients: uvicorn, the gate, and behind it a scripted model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from trimtab.chat import Chat
from trimtab.policy import keys
from trimtab.policy.audit import NoAudit
from trimtab.policy.gate import Gate
from trimtab.policy.limiter import InProcessLimiter
from trimtab.policy.metrics import PrometheusMetrics
from trimtab.policy.presets import Presets

MODEL = "trimtab"
MARKUP = "<img src=x onerror=alert(1)><script>alert(2)</script> **Grüße** 🌊 & 你好"
START_S = 20


class Scripted:
    """An OpenAI-compatible ASGI app: it says which system prompt and prompt it got, or what the prompt asks of it."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        body = json.loads(message["body"] or b"{}")
        if not body.get("messages"):
            await _answer(send, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "trimtab"}]})
        elif body.get("stream"):
            await self._stream(body, receive, send)
        else:
            text = "".join(_words(body))
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            await _answer(send, _event(body, "chat.completion", [choice], usage=self._usage(body)))

    async def _stream(self, body: dict[str, Any], receive: Any, send: Any) -> None:
        left = asyncio.ensure_future(receive())
        await _start(send, b"text/event-stream")
        async for raw in _pieces(body, self._usage(body)):
            if left.done():
                return
            await send({"type": "http.response.body", "body": raw, "more_body": True})
        left.cancel()
        await send({"type": "http.response.body", "body": b""})

    def _usage(self, body: dict[str, Any]) -> dict[str, int]:
        num_prompt, num_words = len(self.chat.encode(self.chat.conversation_text(body["messages"]))), len(_words(body))
        return {"prompt_tokens": num_prompt, "completion_tokens": num_words, "total_tokens": num_prompt + num_words}


def _system(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def _prompt(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def _words(body: dict[str, Any]) -> list[str]:
    text = MARKUP if _prompt(body) == "markup" else f"“{_system(body)}” was asked: {_prompt(body)}"
    return [f"{word} " for word in text.split(" ")]


async def _pieces(body: dict[str, Any], usage: dict[str, int]) -> AsyncIterator[bytes]:
    """The parts of a stream; some prompts ask for one that is endless, cut short, or ends in an error (fail)."""
    words, endless = _words(body), _prompt(body) == "endless"
    for word in ["wave "] * 2000 if endless else words:
        yield _sse(_chunk(body, word))
        await asyncio.sleep(0.02 if endless else 0.002)
    if _prompt(body) == "fail":
        yield _sse({"error": {"message": "EngineDeadError", "type": "server_error", "param": None, "code": 500}})
    elif _prompt(body) != "cut short":
        yield _sse(_chunk(body, None))
        yield _sse(_event(body, "chat.completion.chunk", [], usage=usage))
        yield b"data: [DONE]\n\n"


def _sse(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def _chunk(body: dict[str, Any], word: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": word} if word else {}, "finish_reason": None if word else "stop"}
    return _event(body, "chat.completion.chunk", [choice])


def _event(body: dict[str, Any], kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": body["model"], "choices": choices, **more}


async def _start(send: Any, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})


async def _answer(send: Any, value: dict[str, Any]) -> None:
    await _start(send, b"application/json")
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an ASGI app on loopback until the block ends; its root address."""
    import uvicorn

    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + START_S
    while not server.started:
        assert time.monotonic() < until, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def gated(chat: Chat, key_file: Path) -> Gate:
    """The gate in front of the scripted model, with its own limits and metrics."""
    return Gate(
        Scripted(chat), chat, model=MODEL, keys=keys.KeyFile(key_file), presets=Presets.builtin(),
        limiter=InProcessLimiter(), audit=NoAudit(), metrics=PrometheusMetrics(),
    )  # fmt: skip
