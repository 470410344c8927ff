"""A chat request's body: the JSON object, the fields that may stand in it, and each one's type and range.

An explicit list of fields passes and nothing else: many fields of vLLM's chat body can bypass or leak
a configuration (``continue_final_message``, ``chat_template``, ``logit_bias``, ``echo`` …). A message names the field
and never repeats a value: somebody may have pasted a key into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NoReturn

from trimtab.policy.ports import Refused
from trimtab.policy.settings import GateSettings

FIELDS = frozenset({
    "model", "messages", "safety", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "stream",
    "stream_options", "seed", "frequency_penalty", "presence_penalty", "user",
})  # fmt: skip
TOOL_FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_USER_CHARS = 256
MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")


@dataclass(frozen=True)
class Asked:
    """What a body asks for, every field checked for itself."""

    messages: list[Any]
    model: str | None = None
    safety: Any = None
    sampling: dict[str, Any] = field(default_factory=dict)
    """Fields that the engine gets as they are."""
    tools: dict[str, Any] = field(default_factory=dict)
    """``tools``, ``tool_choice`` and ``parallel_tool_calls``, where given."""
    texts: dict[str, Any] = field(default_factory=dict)
    """Texts that are no part of the prompt: ``stop`` and ``user``."""
    max_tokens: int | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    """Whether the caller wants the usage of a stream."""


def bad(name: str, problem: str, remedy: str, reason: str = "bad_request") -> Refused:
    """A 400 that names the field."""
    return Refused(400, reason, f"{name}: {problem}; {remedy}", name)


def parse_body(raw: bytes, settings: GateSettings) -> Asked:
    """What a body asks for.

    Raises:
        Refused: it is no JSON object, is nested too deep, names a field twice or one that doesn't pass, or a value has
            another type or is out of range.
    """
    body = {name: value for name, value in _object(raw, settings.max_depth).items() if value is not None}
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "is not a list of messages", "send at least a user turn")
    if len(messages) > settings.max_messages:
        raise bad("messages", "are too many", f"send at most {settings.max_messages}")
    for name, check in CHECKS.items():
        if name in body:
            check(name, body[name])
    _check_range("n", body.get("n", 1), settings.max_n)
    tools = {name: body[name] for name in sorted(TOOL_FIELDS) if name in body}
    if "tools" not in tools and tools:
        raise bad(next(iter(tools)), "is given without tools", "send tools as well")
    stream = body.get("stream", False)
    if "stream_options" in body and not stream:
        raise bad("stream_options", "is given without stream", "send stream: true as well")
    return Asked(
        messages, body.get("model"), body.get("safety"), {name: body[name] for name in SAMPLING if name in body}, tools,
        {name: body[name] for name in ("stop", "user") if name in body}, _max_tokens(body, settings), body.get("n", 1),
        stream, body.get("stream_options", {}).get("include_usage", False),
    )  # fmt: skip


def _object(raw: bytes, max_depth: int) -> dict[str, Any]:
    try:
        text = raw.decode()
        body = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise bad("body", "is not a JSON object in UTF-8", "send an object with model and messages") from error
    if not isinstance(body, dict):
        raise bad("body", "is not a JSON object", "send an object with model and messages")
    unknown = sorted(set(body) - FIELDS - TOOL_FIELDS)
    if unknown:
        raise bad(shown(unknown[0]), "this field does not pass", f"use only {', '.join(sorted(FIELDS | TOOL_FIELDS))}")
    if not is_flat(body, max_depth):
        raise bad("body", "is nested too deep", f"nest at most {max_depth} objects and lists")
    return body


def shown(name: str) -> str:
    """A field's name in a message: itself where it looks like one."""
    return name if _FIELD.fullmatch(name) else "body"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(shown(twice), "is given twice", "send it once")
    return found


def _no_constant(name: str) -> NoReturn:
    raise bad("body", f"{name} is no JSON number", "send a finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _no_constant("a number that large")


def is_flat(value: Any, max_depth: int) -> bool:
    """Whether objects and lists are nested no deeper than this."""
    level = [value]
    for _ in range(max_depth):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return True
    return False


def _max_tokens(body: dict[str, Any], settings: GateSettings) -> int | None:
    given = [name for name in ("max_tokens", "max_completion_tokens") if name in body]
    for name in given:
        _check_range(name, body[name], settings.max_tokens)
    if len({body[name] for name in given}) > 1:
        raise bad("max_tokens", "and max_completion_tokens differ", "send one of them")
    return body[given[0]] if given else None


def _check_range(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise bad(name, "is out of range", f"use 1 to {most}")


def _number(low: float, high: float) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise bad(name, "is out of range", f"use a number from {low:g} to {high:g}")

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise bad(name, "is not true or false", "send true or false")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > MAX_USER_CHARS:
        raise bad(name, "is no short text", f"send a string of at most {MAX_USER_CHARS} characters")


def _seed(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise bad(name, "is no whole number of 64 bits", "send a whole number")


def _stop(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not 0 <= len(texts) <= MAX_STOPS:
        raise bad(name, "is no text and no short list of texts", f"send a string, or at most {MAX_STOPS}")
    if not all(isinstance(text, str) and 1 <= len(text) <= MAX_STOP_CHARS for text in texts):
        raise bad(name, "has what is no short text", f"send strings of 1 to {MAX_STOP_CHARS} characters")


def _stream_options(name: str, value: Any) -> None:
    if not isinstance(value, dict) or not set(value) <= {"include_usage"}:
        raise bad(name, "is no object of include_usage", 'send {"include_usage": true}')
    _flag(f"{name}.include_usage", value.get("include_usage", False))


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise bad(name, "is no list of tools", f"send 1 to {MAX_TOOLS}")
    for number, tool in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(tool, dict) or set(tool) != {"type", "function"} or tool["type"] != "function":
            raise bad(place, "is no function", 'send {"type": "function", "function": {...}}')
        function = tool["function"]
        known = {"name", "description", "parameters", "strict"}
        if not isinstance(function, dict) or not set(function) <= known:
            raise bad(f"{place}.function", "has other fields", f"use only {', '.join(sorted(known))}")
        _function(place, function)


def _function(place: str, function: dict[str, Any]) -> None:
    if not isinstance(function.get("name"), str) or not NAME.fullmatch(function["name"]):
        raise bad(f"{place}.function.name", "is no name", "use letters, digits, _, . and -, at most 64")
    if not isinstance(function.get("description", ""), str) or not isinstance(function.get("parameters", {}), dict):
        raise bad(
            f"{place}.function", "description is no text or parameters no object", "send a text and a JSON schema"
        )
    _flag(f"{place}.function.strict", function.get("strict", False))


def _tool_choice(name: str, value: Any) -> None:
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return
    function = value.get("function") if isinstance(value, dict) and set(value) == {"type", "function"} else None
    name_of = function.get("name") if isinstance(function, dict) and set(function) == {"name"} else None
    if not isinstance(name_of, str) or value.get("type") != "function" or not NAME.fullmatch(name_of):
        raise bad(name, "is no choice", 'send "none", "auto", "required" or a function\'s name')


SAMPLING = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed")
CHECKS: dict[str, Callable[[str, Any], None]] = {
    "model": _text, "temperature": _number(0, 2), "top_p": _number(1e-6, 1), "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2), "seed": _seed, "stop": _stop, "stream": _flag,
    "stream_options": _stream_options, "user": _text, "tools": _tools, "tool_choice": _tool_choice,
    "parallel_tool_calls": _flag,
}  # fmt: skip
