"""What comes in beside the body: which headers are clear, which pass on to the engine, and the request's id."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote
from uuid import uuid4

from trimtab.policy.body import bad
from trimtab.policy.ports import Refused, Scope

PASSED = (b"accept", b"host", b"traceparent", b"tracestate", b"baggage")
"""Beside the request's id: what an engine or OpenTelemetry needs."""
ONCE = (b"authorization", b"content-length", b"content-type", b"transfer-encoding", b"content-encoding")
MAX_HEADER_BYTES = 2048
MIN_SECRET_CHARS = 8
"""A shorter piece of a key gives nothing of it away."""
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_JSON = re.compile(rb"application/json(?:\s*;\s*charset=\"?utf-8\"?)?", re.IGNORECASE)


def check_headers(scope: Scope) -> None:
    """Raise where two parties could read the headers in two ways.

    Raises:
        Refused: 400 or 411; the message names the header.
    """
    names = [name.lower() for name, _ in scope["headers"]]
    for name in ONCE:
        if names.count(name) > 1:
            raise bad(name.decode(), "is given twice", "send it once", "bad_header")
    if (
        b"transfer-encoding" in names
    ):  # a server may add the trailers of a chunked body to the headers, a key among them
        problem = "transfer-encoding: bodies come with their length; send content-length"
        raise Refused(411, "length_required", problem, "transfer-encoding")
    if any(b"\0" in value or b"\n" in value or b"\r" in value for _, value in scope["headers"]):
        raise bad("headers", "hold a line's end", "remove it", "bad_header")


def check_body_headers(scope: Scope, max_bytes: int) -> None:
    """Raise where the body isn't plain JSON, or says that it is too large.

    Raises:
        Refused: 400, 413 or 415.
    """
    kind, length = header(scope, b"content-type"), header(scope, b"content-length")
    if kind is None or not _JSON.fullmatch(kind.strip()):
        problem = "content-type: is not application/json; send it, in UTF-8"
        raise Refused(415, "content_type", problem, "content-type")
    if header(scope, b"content-encoding") not in (None, b"identity"):
        raise Refused(
            415, "content_type", "content-encoding: bodies are not compressed; send it plain", "content-encoding"
        )
    if length is not None and not (length.isdigit() and len(length) < 20):
        raise bad("content-length", "is no number", "send the body's length", "bad_header")
    if length is not None and int(length) > max_bytes:
        raise too_large(max_bytes)


def too_large(max_bytes: int) -> Refused:
    return Refused(413, "too_large", f"body: is too large; send at most {max_bytes} bytes", "body")


def header(scope: Scope, name: bytes) -> bytes | None:
    """A header's value; None: it isn't there."""
    return next((bytes(value) for key, value in scope["headers"] if key.lower() == name), None)


def request_id(scope: Scope) -> str:
    """The caller's id for this request where it is one and no part of its key, else a new one."""
    given = header(scope, b"x-request-id") or b""
    is_secret = len(given) >= MIN_SECRET_CHARS and given in (header(scope, b"authorization") or b"")
    return uuid4().hex[:24] if is_secret or not _ID.fullmatch(given) else given.decode()


def secret_of(scope: Scope) -> str:
    """The credentials of a request, which must not stand in any answer."""
    return (header(scope, b"authorization") or b"").decode(errors="replace").split(" ")[-1]


def narrowed(scope: Scope, path: str, request_id: str, body: bytes = b"") -> Scope:
    """The scope with few headers, those of the rewritten body, and no query."""
    headers = [(name.lower(), value) for name, value in _first(scope["headers"]) if len(value) <= MAX_HEADER_BYTES]
    headers.append((b"x-request-id", request_id.encode()))
    if body:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    whole = scope.get("root_path", "") + path
    return {**scope, "path": whole, "raw_path": quote(whole).encode(), "headers": headers, "query_string": b""}


def _first(headers: Iterable[tuple[bytes, bytes]]) -> Iterable[tuple[bytes, bytes]]:
    """The passed headers, the first of each."""
    seen: set[bytes] = set()
    for name, value in headers:
        if name.lower() in PASSED and name.lower() not in seen:
            seen.add(name.lower())
            yield name, value
