"""A small real HTTP server that answers as judges do: rightly, slowly, wrongly, with 429, 500 or nonsense.

Tests run it in a thread and hand in a script; the benchmark runs ``python -m tests.judging.server ARGUMENTS`` as a
process of its own and reads ``/stats``.
"""

from __future__ import annotations

import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NUMBER = re.compile(r"Text number (\d+)\.")


@dataclass(frozen=True)
class Call:
    """A request that came in."""

    body: dict[str, Any]
    number: int
    """Which call of all, from 1."""
    attempt: int
    """Which call for this prompt, from 1."""
    key: str
    """What the client sent as its key."""

    @property
    def prompt(self) -> str:
        (message,) = self.body["messages"]
        return str(message["content"])


@dataclass(frozen=True)
class Answer:
    """What goes back."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "application/json"})
    after_s: float = 0.0


NONSENSE = {
    "a page": Answer(b"<html>try later</html>", headers={"content-type": "text/html"}),
    "half a JSON": Answer(b'{"choices": ['),
    "no JSON object": Answer(b'"yes"'),
    "no choices": Answer(b'{"id": "x"}'),
    "empty choices": Answer(b'{"choices": []}'),
    "no message": Answer(b'{"choices": [{"index": 0}]}'),
    "a number": Answer(json.dumps({"choices": [{"index": 0, "message": {"content": 7}}]}).encode()),
}
"""What is no chat completion, though the status says that all is well."""


def says(text: str | None, after_s: float = 0.0, **message: Any) -> Answer:
    """A chat completion with this text."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102}
    whole = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
    return Answer(json.dumps(whole).encode(), after_s=after_s)


def fails(status: int, **headers: str) -> Answer:
    """An error as OpenAI's API words it; header names with ``_`` for ``-``."""
    body = {"error": {"message": f"failed with {status}", "type": "error", "param": None, "code": None}}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(json.dumps(body).encode(), status, {"content-type": "application/json", **named})


Script = Callable[[Call], Answer]


class JudgeServer(ThreadingHTTPServer):
    """Answers ``/v1/chat/completions`` by a script. A context manager that runs it in a thread."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.calls: list[Call] = []
        self.num_answered = self.in_flight = self.most_in_flight = 0
        self.first_at: float | None = None
        self.last_at: float | None = None
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def begin(self, body: dict[str, Any], key: str) -> Call:
        with self._lock:
            prompt = str(body["messages"][0]["content"])
            self._seen[prompt] += 1
            call = Call(body, len(self.calls) + 1, self._seen[prompt], key)
            self.calls.append(call)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            self.first_at = self.first_at or time.monotonic()
        return call

    def end(self, answer: Answer) -> None:
        with self._lock:
            self.in_flight -= 1
            self.num_answered += answer.status == 200
            self.last_at = time.monotonic()

    def stats(self) -> dict[str, Any]:
        """Calls, completions, and the seconds from the first call to the last answer."""
        seconds = self.last_at - self.first_at if self.first_at and self.last_at else 0.0
        return {"calls": len(self.calls), "answered": self.num_answered, "seconds": seconds,
                "most_in_flight": self.most_in_flight}  # fmt: skip

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up waiting is no error of the server's."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def __enter__(self) -> JudgeServer:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: JudgeServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        call = self.server.begin(body, self.headers.get("authorization", "").removeprefix("Bearer "))
        answer = self.server.script(call)
        time.sleep(answer.after_s)
        self.server.end(answer)
        self._send(answer)

    def do_GET(self) -> None:
        self._send(Answer(json.dumps(self.server.stats()).encode()))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in (answer.headers | {"content-length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


def expected(number: int) -> str:
    """The benchmark server's verdict on the text of this number."""
    return "yes" if number % 3 == 0 else "no"


def unreliable(latency_s: float, share_429: float, share_500: float, seed: int) -> Script:
    """A script that answers after a time, and refuses or breaks at random."""
    draw, lock = random.Random(seed), threading.Lock()

    def script(call: Call) -> Answer:
        with lock:
            drawn = draw.random()
        if drawn < share_429:
            return fails(429, retry_after="1")
        if drawn < share_429 + share_500:
            return fails(500)
        found = NUMBER.search(call.prompt)
        return says(expected(int(found[1])) if found else "what?", after_s=latency_s)

    return script


def main() -> None:
    """Serve until standard input ends; the address is the first line of standard output."""
    with JudgeServer(unreliable(**json.loads(sys.argv[1]))) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
