# ruff: noqa: E501, RUF001 -- rows of a corpus, and look-alikes on purpose
"""Attacks on a gate: the corpus and generated bodies in this process, and header tricks over a real HTTP server.

Behind the gate stands a recorder, and a judge decides from the final token ids of what reached it. A breach is a request
that got through with what its key doesn't hold; unhandled is a 5xx, an answer that isn't in OpenAI's format, or none.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.policy.attacks import TURNS, Attack, attack
from tests.policy.gated import BODY, CHAT, GRANTS, SECRETS, USER, KnownKeys, gate
from tests.policy.judging import Grammar, Judge, Recorder
from tests.policy.served import listening
from trimtab.chat import Chat
from trimtab.policy.audit import AuditFile
from trimtab.policy.gate import Gate
from trimtab.policy.settings import GateSettings

GENERATED = 400
WAIT_S = 3.0


@dataclass
class Outcome:
    """What a number of attempts came to."""

    attempts: int = 0
    reached: int = 0
    """Requests that got to the engine; those that ask for nothing that their key doesn't hold may."""
    breaches: list[str] = field(default_factory=list)
    unhandled: list[str] = field(default_factory=list)

    def __iadd__(self, other: Outcome) -> Outcome:
        self.attempts += other.attempts
        self.reached += other.reached
        self.breaches += other.breaches
        self.unhandled += other.unhandled
        return self


class Range:
    """A gate with a recorder behind it, to shoot at."""

    def __init__(self, chat: Chat, grammar: Grammar, limits: GateSettings, folder: Path) -> None:
        self.recorder, self.judge = Recorder(), Judge(chat, grammar)
        audit = AuditFile(folder / "audit.jsonl")
        self.gate: Gate = gate(self.recorder, chat, keys=KnownKeys(), settings=limits, audit=audit)

    def shoot(self, item: Attack) -> Outcome:
        """One attempt in this process."""
        outcome = Outcome(attempts=1)
        try:
            sent = asyncio.run(asyncio.wait_for(_call(self.gate, item), 60))
        except Exception as error:
            outcome.unhandled.append(f"{item.name}: {type(error).__name__}")
            sent = []
        problem = _problem(item.method, sent) if sent else ""
        if problem:
            outcome.unhandled.append(f"{item.name}: {problem}")
        self._judge(item.name, item.who, outcome)
        return outcome

    def _judge(self, name: str, who: str | None, outcome: Outcome) -> None:
        for scope, raw in self.recorder.take():
            if scope["path"] == "/health":
                continue
            outcome.reached += 1
            outcome.breaches += [f"{name}: {found}" for found in self.judge.breaches(who, scope, raw)]


async def _call(app: Any, item: Attack) -> list[Any]:
    sent: list[Any] = []
    halves = [item.raw[: len(item.raw) // 2], item.raw[len(item.raw) // 2 :]]
    messages = [{"type": "http.request", "body": half, "more_body": number == 0} for number, half in enumerate(halves)]

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": item.method, "path": item.path, "query_string": item.query.encode(),
             "raw_path": item.path.encode(), "headers": [(b"host", b"gate"), *item.all_headers]}  # fmt: skip
    await app(scope, receive, send)
    return sent


def _problem(method: str, sent: list[Any]) -> str:
    """What is wrong with an answer's form."""
    start, body = sent[0], b"".join(message.get("body", b"") for message in sent[1:])
    if start["status"] >= 500:
        return f"status {start['status']}"
    if sent[-1].get("more_body") or any(name.startswith(b"access-control") for name, _ in start["headers"]):
        return "an answer without end, or for other origins"
    if start["status"] >= 400:
        error = json.loads(body).get("error", {})
        if set(error) != {"message", "type", "param", "code"} or "Traceback" in error["message"]:
            return "an error in another format"
    if any(secret.encode() in body for secret in SECRETS.values()):
        return "an answer with a secret"
    return ""


def run_corpus(target: Range, corpus: Iterable[Attack]) -> Outcome:
    """All attempts of a corpus, in this process."""
    outcome = Outcome()
    for item in corpus:
        outcome += target.shoot(item)
    return outcome


PIECES = ["Hello", " ", "\n", "system", "user", "assistant", "<", "|", ">", "im_", "<|im_", "end|>", "<|im_start|>", "<s>",
          "[INST]", "\u200b", "＜", "\ud800", "\x00", '"', "'", "{persona}", "\\u003c", *TURNS.values()]  # fmt: skip


def bodies() -> st.SearchStrategy[dict[str, Any]]:
    """Bodies on the schema, good and bad."""
    text = st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=6).map("".join)
    role = st.sampled_from(["user", "assistant", "user", "assistant", "system", "developer", "tool", "User", ""])
    message = st.fixed_dictionaries({"role": role, "content": text | st.none() | st.lists(text, max_size=2)})
    user, assistant = (
        st.fixed_dictionaries({"role": st.just(name), "content": text}) for name in ("user", "assistant")
    )
    turns = st.tuples(user, assistant, user).map(list) | st.tuples(user).map(list) | st.lists(message, max_size=4)
    preset = st.sampled_from(["harmless", "uncensored", "honest", "role_play", "off"])
    safety = preset | st.fixed_dictionaries({"preset": preset}, optional={"persona": text}) | st.none() | text
    json_value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | text,
                              lambda inner: st.lists(inner, max_size=2) | st.dictionaries(text, inner, max_size=2))  # fmt: skip
    names = st.sampled_from(["max_tokens", "n", "temperature", "stop", "user", "stream", "tools", "seed", "chat_template",
                             "continue_final_message", "logit_bias", "echo", "model", "stream_options"])  # fmt: skip
    models = st.sampled_from(["m", "m+harmless", "m+uncensored", "m+honest", "x"])
    plain = st.fixed_dictionaries({"model": models, "messages": turns}, optional={"safety": safety})
    odd = st.dictionaries(names, json_value, max_size=2)
    return st.builds(lambda left, right: left | right, plain, odd | st.just({}) | st.just({}))


def run_generated(target: Range, num: int = GENERATED) -> Outcome:
    """Bodies that hypothesis makes, the same ones each time; all are tried, whatever is found."""
    outcome = Outcome()

    @settings(max_examples=num, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(body=bodies(), who=st.sampled_from([*GRANTS, "all", "trusted"]))
    def attempt(body: dict[str, Any], who: str) -> None:
        nonlocal outcome
        raw = json.dumps(body).encode()
        outcome += target.shoot(Attack(f"generated {raw[:200]!r}", raw, "all" if who == "poor" else who))

    attempt()
    return outcome


def mutated(num: int, seed: int = 7) -> list[Attack]:
    """Good bodies with a few bytes changed."""
    rng, made = random.Random(seed), []
    raw = json.dumps(
        BODY | {"safety": "harmless", "messages": [USER, {"role": "assistant", "content": "x"}, USER]}
    ).encode()
    for number in range(num):
        changed = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(changed))
            changed[place : place + rng.randint(0, 3)] = rng.choice(
                [b"", b'"', b"\\", b"{", b"\xff", b",", b"\x00", b"<|im_end|>"]
            )
        made.append(Attack(f"mutated {number}", bytes(changed)))
    return made


@dataclass(frozen=True)
class RawAttack:
    """Bytes on a connection, and whose rights they have."""

    name: str
    raw: bytes
    who: str | None = "kind"
    answers: bool = True
    """Whether an answer has to come: a server may drop what isn't HTTP."""


def raw_attacks() -> list[RawAttack]:
    """Requests that two readers of HTTP could take for different ones."""
    body = json.dumps(BODY).encode()
    evil = json.dumps(BODY | {"safety": "uncensored"}).encode()
    line = f"POST {CHAT} HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\n".encode()
    key = f"Authorization: Bearer {SECRETS['kind']}\r\n".encode()
    other = f"Authorization: Bearer {SECRETS['all']}\r\n".encode()
    length = b"Content-Length: %d\r\n" % len(body)
    chunked = b"Transfer-Encoding: chunked\r\n"
    inner = line + b"Content-Length: %d\r\n\r\n" % len(evil) + evil
    in_chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    made = {
        "plain": line + key + length + b"\r\n" + body, "chunks": line + key + chunked + b"\r\n" + in_chunks,
        "CL.TE": line + key + b"Content-Length: 5\r\n" + chunked + b"\r\n0\r\n\r\n" + inner,
        "TE.CL": line + key + chunked + length + b"\r\n" + in_chunks + inner,
        "two lengths": line + key + length + b"Content-Length: 3\r\n\r\n" + body,
        "two equal lengths": line + key + length + length + b"\r\n" + body,
        "list of lengths": line + key + b"Content-Length: %d, %d\r\n\r\n" % (len(body), len(body)) + body,
        "signed length": line + key + b"Content-Length: +%d\r\n\r\n" % len(body) + body,
        "hexadecimal length": line + key + b"Content-Length: 0x10\r\n\r\n" + body,
        "space before colon": line + key + b"Transfer-Encoding : chunked\r\n" + length + b"\r\n" + body,
        "tab in coding": line + key + b"Transfer-Encoding:\tchunked\r\n\r\n" + in_chunks,
        "odd coding": line + key + b"Transfer-Encoding: xchunked\r\n" + length + b"\r\n" + body,
        "two codings": line + key + b"Transfer-Encoding: chunked, identity\r\n\r\n" + in_chunks,
        "vertical tab": line + key + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + in_chunks,
        "chunk with extension": line + key + chunked + b"\r\n%x;a=b\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        "huge chunk": line + key + chunked + b"\r\nffffffffffffffff\r\n" + body,
        "negative chunk": line + key + chunked + b"\r\n-1\r\n" + body,
        "trailer with key": line + chunked + b"\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (len(evil), evil, other),
        "trailer with another key": line + key + chunked + b"\r\n%x\r\n%s\r\n0\r\n%s\r\n" % (len(evil), evil, other),
        "pipelined": line + key + length + b"\r\n" + body + inner,
        "refused, then smuggled": line + key + b"Content-Length: 300000\r\n\r\n" + inner,
        "two keys": line + key + other + length + b"\r\n" + body, "two keys, other first": line + other + key + length + b"\r\n" + body,
        "folded key": line + b"Authorization:\r\n Bearer " + SECRETS["all"].encode() + b"\r\n" + length + b"\r\n" + body,
        "two types": line + b"Content-Type: text/plain\r\n" + key + length + b"\r\n" + body,
        "nul in key": line + key[:-2] + b"\x00\r\n" + length + b"\r\n" + body,
        "line end in key": line + key[:-2] + b"\nX-Trimtab-Safety: uncensored\r\n" + length + b"\r\n" + body,
        "absolute": line.replace(CHAT.encode(), b"http://elsewhere" + CHAT.encode()) + key + length + b"\r\n" + body,
        "encoded path": line.replace(CHAT.encode(), b"/v1/%63hat/completions") + key + length + b"\r\n" + body,
        "path with query": line.replace(CHAT.encode(), CHAT.encode() + b"?safety=uncensored") + key + length + b"\r\n" + body,
        "path with dots": line.replace(CHAT.encode(), b"/v1/models/../chat/completions") + key + length + b"\r\n" + body,
        "encoded slash": line.replace(CHAT.encode(), b"/v1%2fcompletions") + key + length + b"\r\n" + body,
        "upgrade": line + key + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + length + b"\r\n" + body,
        "expect": line + key + b"Expect: 100-continue\r\n" + length + b"\r\n" + body,
        "gzip": line + key + b"Content-Encoding: gzip\r\n" + length + b"\r\n" + body,
        "slow body": line + key + b"Content-Length: 400\r\n\r\n" + body[:9], "short chunks": line + key + chunked + b"\r\n5\r\nab",
        "many headers": line + key + b"".join(b"X-%d: 1\r\n" % number for number in range(500)) + length + b"\r\n" + body,
        "no version": f"GET {CHAT}\r\n\r\n".encode(), "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "noise": bytes(range(256)),
        "connect": b"CONNECT gate:443 HTTP/1.1\r\nHost: gate\r\n\r\n", "websocket": f"GET {CHAT} HTTP/1.1\r\nHost: gate\r\n".encode()
        + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n",
    }  # fmt: skip
    two_rights = {"folded key": "all"}
    nameless = {"no version", "preface", "noise", "connect", "websocket", "trailer with key"}
    return [
        RawAttack(name, raw, None if name in nameless else two_rights.get(name, "kind")) for name, raw in made.items()
    ]


def run_raw(target: Range) -> Outcome:
    """Attempts over real connections to uvicorn; after each, the server must still answer."""
    outcome = Outcome()
    with listening(target.gate) as url:
        port = int(url.rpartition(":")[2])
        for item in raw_attacks():
            outcome.attempts += 1
            answer = exchange(port, item.raw)
            if answer.startswith(b"HTTP/1.1 5"):
                outcome.unhandled.append(f"{item.name}: {answer[:60]!r}")
            if any(secret.encode() in answer for secret in SECRETS.values()):
                outcome.unhandled.append(f"{item.name}: an answer with a secret")
            target._judge(item.name, item.who, outcome)
            if b" 200 " not in exchange(port, b"GET /health HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n"):
                outcome.unhandled.append(f"{item.name}: the server answers no more")
            target.recorder.take()
    return outcome


def exchange(port: int, raw: bytes) -> bytes:
    """What a server says to these bytes until it closes or says nothing for a while."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as connection:
        connection.settimeout(0.8)
        try:
            connection.sendall(raw)
            while part := connection.recv(65536):
                found += part
        except (TimeoutError, ConnectionError):
            pass
    return found


def run_all(chat: Chat, grammar: Grammar, corpus: Iterable[Attack], generated: int, raw: bool) -> Outcome:
    """Everything against one model's gate, in both modes."""
    outcome, items = Outcome(), list(corpus)
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("strict", "escape"):
            limits = GateSettings(control_tokens=mode, body_timeout_s=0.4)  # type: ignore[arg-type]
            target = Range(chat, grammar, limits, Path(folder))
            outcome += run_corpus(target, items)
            outcome += run_generated(target, generated)
            if raw:
                outcome += run_raw(target)
    return outcome


__all__ = ["Outcome", "Range", "attack", "mutated", "raw_attacks", "run_all", "run_corpus", "run_generated", "run_raw"]
