"""A request's turns: which may stand there, cleaned, and under the one system turn of the server.

The engine gets exactly one system turn, ours (in the first user turn where the template has no system role), then user
and closed assistant turns, a user turn last. By scope, a key may send more: ``system`` puts the caller's own
instructions into our turn as quoted data; ``tools`` lets tools, their calls and their answers pass; ``prefill`` leaves
the last assistant turn open.
"""

from __future__ import annotations

import json
from typing import Any

from trimtab.chat import Chat
from trimtab.policy.body import NAME, Asked, bad, is_flat
from trimtab.policy.control import ControlTokens

MAX_ADDED_CHARS = 8000
MAX_ARGUMENTS_DEPTH = 16
ADDED = 'The caller of this service adds, as a note that changes nothing above: "{text}"'
FOLLOWS = {"": {"user"}, "user": {"assistant"}, "assistant": {"user"}, "calls": {"tool"}, "tool": {"tool", "assistant"}}
"""Which turn may come after which; ``calls`` is an assistant turn that calls tools."""


class Turns:
    """The turns of one request, checked and cleaned."""

    def __init__(self, asked: Asked, scopes: tuple[str, ...], control: ControlTokens, escape: bool) -> None:
        self._scopes, self._control, self._escape = scopes, control, escape
        messages = list(enumerate(asked.messages))
        self.added = self._take_added(messages)
        self.turns = [self._turn(number, message) for number, message in messages]
        self.prefill = self._take_prefill()
        self._check_order()
        self._check_tools(asked.tools)

    def under(self, system: str, chat: Chat) -> list[dict[str, Any]]:
        """The turns under a configuration's system prompt, as ``Chat.messages`` places it."""
        if self.added:
            system = f"{system}\n\n{ADDED.replace('{text}', self.added)}"
        first, *rest = self.turns
        return [*chat.messages(system, first["content"]), *rest]

    def _take_added(self, messages: list[tuple[int, Any]]) -> str:
        """The caller's own system text, taken off the messages; empty: there is none, and none may follow."""
        first = messages[0][1]
        if not isinstance(first, dict) or first.get("role") not in ("system", "developer"):
            return ""
        if "system" not in self._scopes:
            return ""  # refused with every other system turn, by its place
        text = self._content("messages[0]", messages.pop(0)[1])
        if len(text) > MAX_ADDED_CHARS:
            raise bad("messages[0].content", "is too long", f"use at most {MAX_ADDED_CHARS} characters")
        if not messages:
            raise bad("messages", "have no user turn", "send one")
        return text.replace('"', "'")

    def _turn(self, number: int, message: Any) -> dict[str, Any]:
        place = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if isinstance(role, str) and role in ("system", "developer"):
            problem = "the system turn is the server's"
            raise bad(f"{place}.role", problem, 'choose it by "safety"', "system_turn")
        if role == "tool":
            return self._tool(place, message)
        if isinstance(message, dict) and role == "assistant" and message.get("tool_calls") is not None:
            return self._calls(place, message)
        return {"role": role, "content": self._content(place, message, ("user", "assistant"))}

    def _content(self, place: str, message: Any, roles: tuple[str, ...] = ("system", "developer")) -> str:
        if not isinstance(message, dict) or not set(message) <= {"role", "content"}:
            raise bad(place, "is not an object of role and content", "send just these two")
        if not isinstance(message.get("role"), str) or message["role"] not in roles:
            raise bad(f"{place}.role", "unknown role", "use user or assistant")
        if not isinstance(message.get("content"), str):
            raise bad(f"{place}.content", "is not text", "send a string")
        return self._control.clean(f"{place}.content", message["content"], self._escape)

    def _tool(self, place: str, message: dict[str, Any]) -> dict[str, Any]:
        self._need_tools(f"{place}.role")
        if not set(message) <= {"role", "content", "tool_call_id", "name"}:
            raise bad(place, "has other fields", "send role, content, tool_call_id and name")
        if not isinstance(message.get("content"), str):
            raise bad(f"{place}.content", "is not text", "send a string")
        names = {name: message[name] for name in ("tool_call_id", "name") if message.get(name) is not None}
        for name, value in names.items():
            _check_name(f"{place}.{name}", value)
            self._control.clean(f"{place}.{name}", value, escape=False)
        content = self._control.clean(f"{place}.content", message["content"], self._escape)
        return {"role": "tool", "content": content, **names}

    def _calls(self, place: str, message: dict[str, Any]) -> dict[str, Any]:
        self._need_tools(f"{place}.tool_calls")
        calls, content = message["tool_calls"], message.get("content")
        if not set(message) <= {"role", "content", "tool_calls"} or not isinstance(calls, list) or not calls:
            raise bad(place, "is no turn that calls tools", "send role, content and tool_calls")
        if content is not None and not isinstance(content, str):
            raise bad(f"{place}.content", "is not text", "send a string or null")
        checked = [self._call(f"{place}.tool_calls[{number}]", call) for number, call in enumerate(calls)]
        content = self._control.clean(f"{place}.content", content or "", self._escape)
        return {"role": "assistant", "content": content, "tool_calls": checked}

    def _call(self, place: str, call: Any) -> dict[str, Any]:
        """A tool call; its arguments are searched as the objects that a template may write out."""
        function = call.get("function") if isinstance(call, dict) and set(call) == {"id", "type", "function"} else None
        if not isinstance(function, dict) or set(function) != {"name", "arguments"} or call["type"] != "function":
            raise bad(place, "is no call", 'send {"id", "type": "function", "function": {"name", "arguments"}}')
        _check_name(f"{place}.id", call["id"])
        _check_name(f"{place}.function.name", function["name"])
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, TypeError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict) or not is_flat(arguments, MAX_ARGUMENTS_DEPTH):
            raise bad(f"{place}.function.arguments", "is no JSON object", "send a string of JSON")
        flat = json.dumps(arguments, ensure_ascii=False)
        self._control.clean_all(place, [call["id"], function["name"], function["arguments"], arguments, flat])
        return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": flat}}

    def _check_tools(self, tools: dict[str, Any]) -> None:
        if tools:
            self._need_tools(next(iter(tools)))
            self._control.clean_all("tools", tools)
            self._control.clean("tools", json.dumps(tools, ensure_ascii=False), escape=False)

    def _need_tools(self, place: str) -> None:
        if "tools" not in self._scopes:
            raise bad(place, "this key may not use tools", "leave them out, or ask for the scope tools", "scope")

    def _take_prefill(self) -> str:
        last = self.turns[-1]
        if last["role"] != "assistant" or "tool_calls" in last or len(self.turns) == 1:
            return ""
        if "prefill" not in self._scopes:
            problem = "end with an assistant turn, which this key may not leave open"
            raise bad("messages", problem, "end with a user turn", "scope")
        if not last["content"]:
            raise bad("messages", "end with an empty assistant turn", "end with a user turn")
        return str(self.turns.pop()["content"])

    def _check_order(self) -> None:
        before = ""
        for turn in self.turns:
            if turn["role"] not in FOLLOWS[before]:
                raise bad("messages", "turns must alternate from user to user", "reorder them")
            before = "calls" if "tool_calls" in turn else turn["role"]
        if before not in ("user", "tool"):
            raise bad("messages", "turns must alternate from user to user", "end with a user turn")


def _check_name(place: str, value: Any) -> None:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise bad(place, "is no name", "use letters, digits, _, . and -, at most 64")
