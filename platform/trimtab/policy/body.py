"""A chat request's body: what may stand in it, and how it is rewritten under a safety configuration.

An explicit list of fields passes and nothing else: many fields of vLLM's chat body can bypass or leak
a configuration (``continue_final_message``, ``chat_template``, ``logit_bias``, ``echo`` …).
"""

from __future__ import annotations

import json
from math import isfinite
from typing import Any, NoReturn

from trimtab.chat import Chat
from trimtab.config import InputError
from trimtab.safety import SafetyConfig, parse_safety

FIELDS = frozenset({
    "model", "messages", "safety", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stream",
    "stream_options", "seed", "frequency_penalty", "presence_penalty", "user",
})  # fmt: skip
MAX_BODY_BYTES = 256 * 1024
MAX_TOKENS = 4096
ROLES = ("user", "assistant")


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        InputError: it is too large, no JSON object, or names a field twice or one that doesn't pass.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise InputError("body", f"{len(raw)} bytes", "is too large", f"send at most {MAX_BODY_BYTES}")
    try:
        body = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("body", "", "is not a JSON object", "send Content-Type: application/json") from error
    if not isinstance(body, dict):
        raise InputError("body", type(body).__name__, "is not a JSON object", "send an object with model and messages")
    unknown = sorted(set(body) - FIELDS)
    if unknown:
        raise InputError(unknown[0], "given", "this field does not pass", f"use only {', '.join(sorted(FIELDS))}")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(name[:40], "given twice", "is ambiguous", "send it once")
        found[name] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise InputError("body", name, "is no JSON number", "send a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _no_constant(text)


def rewrite(body: dict[str, Any], chat: Chat) -> tuple[dict[str, Any], SafetyConfig]:
    """The body for the engine: exactly one system turn, ours, then the caller's turns, a user turn last.

    Raises:
        InputError: the safety setting, a message or a limit doesn't fit; the message names the field.
    """
    safety = parse_safety(body.get("safety"))
    messages = _check_messages(body.get("messages"), chat)
    for name in ("max_tokens", "max_completion_tokens"):
        _check_limit(name, body.get(name))
    chat.refuse_control_tokens("safety.persona", safety.persona or "")
    chat.refuse_control_tokens("safety", safety.render())
    kept = {name: value for name, value in body.items() if name != "safety"}
    return kept | {"messages": _under(safety, messages, chat)}, safety


def _under(safety: SafetyConfig, messages: list[dict[str, str]], chat: Chat) -> list[dict[str, str]]:
    """The configuration's system turn, as ``Chat.messages`` places it, and the caller's turns."""
    first, *rest = messages
    return [*chat.messages(safety.render(), first["content"]), *rest]


def _check_messages(messages: Any, chat: Chat) -> list[dict[str, str]]:
    if not isinstance(messages, list) or not messages:
        raise InputError("messages", type(messages).__name__, "is not a list of messages", "send at least a user turn")
    checked = [_check_message(number, message, chat) for number, message in enumerate(messages)]
    roles = [message["role"] for message in checked]
    if roles != [ROLES[number % 2] for number in range(len(roles))] or roles[-1] != "user":
        raise InputError("messages", ", ".join(roles), "turns must alternate from user to user", "reorder them")
    return checked


def _check_message(number: int, message: Any, chat: Chat) -> dict[str, str]:
    field = f"messages[{number}]"
    if not isinstance(message, dict) or not set(message) <= {"role", "content"}:
        raise InputError(field, "given", "is not an object of role and content", "send just these two")
    role, content = message.get("role"), message.get("content")
    if role in ("system", "developer"):
        raise InputError(f"{field}.role", role, "the system turn is the server's", 'choose it by "safety"')
    if role not in ROLES:
        raise InputError(f"{field}.role", role, "unknown role", "use user or assistant")
    if not isinstance(content, str):
        raise InputError(f"{field}.content", type(content).__name__, "is not text", "send a string")
    chat.refuse_control_tokens(f"{field}.content", content)
    return {"role": role, "content": content}


def _check_limit(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise InputError(name, value, "is out of range", f"use 1 to {MAX_TOKENS}")
