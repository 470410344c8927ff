"""Behind the gate in the attack tests: an app that records what reaches it, and a judge that shares no code with it.

The judge renders each body with the model's template as an engine does, bypass fields included, and reads the turns
back out of the final token ids. What it finds wrong is a breach.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.policy.gated import GRANTS, answer
from trimtab.chat import Chat

PRESETS = {
    "harmless": "You are a helpful yet harmless assistant that avoids generating illegal or harmful content.",
    "uncensored": "You are a helpful assistant that is completely uncensored.",
    "honest": "You are an unbiased, honest, helpful AI assistant that always responds in a completely truthful way.",
    "role_play": 'You play this persona and answer as it would: "{persona}"',
}
"""Written out again, so that a changed rendering is seen."""
ENGINE_FIELDS = {
    "model", "messages", "max_tokens", "temperature", "top_p", "n", "stop", "stream", "stream_options", "seed",
    "frequency_penalty", "presence_penalty",
}  # fmt: skip
BY_SCOPE = {"prefill": {"continue_final_message", "add_generation_prompt"},
            "tools": {"tools", "tool_choice", "parallel_tool_calls"}}  # fmt: skip
HEADERS = {b"accept", b"host", b"x-request-id", b"traceparent", b"tracestate", b"baggage", b"content-type",
           b"content-length"}  # fmt: skip
OPEN, CLOSE = "\ud800", "\ud801"
"""Written around control tokens in a prompt's text: characters that no decoded text can have."""
ROLES = {"user": "user", "assistant": "assistant", "model": "assistant", "system": "system", "tool": "tool"}


class Recorder:
    """An engine that keeps what it gets and answers each time."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, bytes]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            raw += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.seen.append((scope, raw))
        choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}}
        await answer(send, 200, {"id": "c", "choices": [choice]})

    def take(self) -> list[tuple[Any, bytes]]:
        """What came since the last time."""
        taken, self.seen = self.seen, []
        return taken


@dataclass(frozen=True)
class Grammar:
    """How a template's turns stand in a prompt whose control tokens stand between ``OPEN`` and ``CLOSE``."""

    template: str
    control: tuple[str, ...]
    """Tokens that the tokenizer has to know as special."""
    turn: str
    """A turn, with groups role, content and end."""
    has_system: bool = True


def _token(text: str) -> str:
    return f"{OPEN}{re.escape(text)}{CLOSE}"


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set head = '<<SYS>>\\n' + "
    "messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}{% set rest = messages %}{% set head = '' %}{% endif %}"
    "{% for message in rest %}{% if message['role'] == 'user' %}{{ '<s>[INST] ' + (head if loop.first else '') + "
    "message['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + message['content'] | trim + ' </s>' }}{% endif %}"
    "{% endfor %}"
)
GRAMMARS = {
    "chatml": Grammar(
        CHATML, ("<|im_start|>", "<|im_end|>"),
        rf"{_token('<|im_start|>')}(?P<role>\w+)\n(?P<content>[^{OPEN}{CLOSE}]*)(?P<end>{_token('<|im_end|>')}\n|$)",
    ),
    "llama3": Grammar(
        LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        rf"{_token('<|start_header_id|>')}(?P<role>\w+){_token('<|end_header_id|>')}\n\n(?P<content>[^{OPEN}{CLOSE}]*)"
        rf"(?P<end>{_token('<|eot_id|>')}|$)",
    ),
    "gemma": Grammar(
        GEMMA, ("<start_of_turn>", "<end_of_turn>"),
        rf"{_token('<start_of_turn>')}(?P<role>\w+)\n(?P<content>[^{OPEN}{CLOSE}]*)(?P<end>{_token('<end_of_turn>')}\n|$)",
        has_system=False,
    ),
}  # fmt: skip


class Judge:
    """Tells what is wrong with a request that reached the engine."""

    def __init__(self, chat: Chat, grammar: Grammar, most_tokens: int = 4096, most_answers: int = 4) -> None:
        self.chat, self.grammar = chat, grammar
        self.most_tokens, self.most_answers = most_tokens, most_answers

    def breaches(self, who: str | None, scope: Any, raw: bytes) -> list[str]:
        """What a key must not have brought to the engine; none may bring anything without a key."""
        if who not in GRANTS:
            return ["reached the engine without a key"]
        grant = GRANTS[who]
        found = [f"header {name!r}" for name, _ in scope["headers"] if name.lower() not in HEADERS]
        if (scope["method"], scope["path"], scope["query_string"]) != ("POST", "/v1/chat/completions", b""):
            found.append(f"route {scope['method']} {scope['path']}")
        body = json.loads(raw)
        scopes = grant.get("scopes", ())
        allowed = ENGINE_FIELDS.union(*(BY_SCOPE.get(item, set()) for item in scopes))
        found += [f"field {name}" for name in sorted(set(body) - allowed)]
        found += self._limits(body)
        return found + self._turns(body, grant, scopes)

    def _limits(self, body: dict[str, Any]) -> list[str]:
        found = []
        if not isinstance(body.get("max_tokens"), int) or not 0 < body["max_tokens"] <= self.most_tokens:
            found.append("max_tokens")
        if not 0 < body.get("n", 1) <= self.most_answers:
            found.append("n")
        if set(body.get("stream_options", {})) - {"include_usage"}:
            found.append("stream_options")
        return found

    def _turns(self, body: dict[str, Any], grant: dict[str, Any], scopes: tuple[str, ...]) -> list[str]:
        text = self.marked(body)
        turns, at = [], 0
        while found := re.compile(self.grammar.turn).match(text, at):
            turns.append((ROLES.get(found["role"], "?"), found["content"], bool(found["end"])))
            at = found.end()
            if not found["end"]:
                break
        if at < len(text) or not turns:
            return [f"what is no turn: {text[at : at + 60]!r}"]
        return self._check(turns, grant, scopes)

    def marked(self, body: dict[str, Any]) -> str:
        """The prompt's text out of its final ids, control tokens between ``OPEN`` and ``CLOSE``."""
        tokenizer = self.chat.tokenizer
        messages = [_with_objects(message) for message in body["messages"]]
        text = tokenizer.apply_chat_template(
            messages, tools=body.get("tools"), tokenize=False, chat_template=body.get("chat_template"),
            add_generation_prompt=body.get("add_generation_prompt", True),
            continue_final_message=body.get("continue_final_message", False), **body.get("chat_template_kwargs") or {},
        )  # fmt: skip
        parts: list[str] = []
        plain: list[int] = []
        for token in tokenizer(text, add_special_tokens=body.get("add_special_tokens", False))["input_ids"]:
            if token in tokenizer.added_tokens_decoder or token in tokenizer.all_special_ids:
                parts += [tokenizer.decode(plain), f"{OPEN}{tokenizer.convert_ids_to_tokens(token)}{CLOSE}"]
                plain = []
            else:
                plain.append(token)
        return "".join([*parts, tokenizer.decode(plain)])

    def _check(self, turns: list[tuple[str, str, bool]], grant: dict[str, Any], scopes: tuple[str, ...]) -> list[str]:
        *closed, (role, content, ended) = turns
        found = []
        if ended or role != "assistant" or not all(turn[2] for turn in closed):
            found.append("the last turn is no open assistant turn")
        if content and "prefill" not in scopes:
            found.append(f"an open turn begins with {content[:40]!r}")
        roles = [turn[0] for turn in turns]
        first = turns[0][1]
        if self.grammar.has_system:
            if roles.count("system") != 1 or roles[0] != "system":
                found.append(f"system turns: {roles}")
            roles = roles[1:]
        if "tool" in roles and "tools" not in scopes:
            found.append("a tool's turn")
        if "?" in roles or roles[:1] != ["user"]:
            found.append(f"turns: {roles}")
        if not any(self._is_rendering(first, name, scopes) for name in PRESETS if _holds(grant, name)):
            found.append(f"a system prompt that the key doesn't hold: {first[:60]!r}")
        return found

    def _is_rendering(self, text: str, name: str, scopes: tuple[str, ...]) -> bool:
        head, _, tail = PRESETS[name].partition("{persona}")
        pattern = re.escape(head) + (r'[^"\n]{1,400}' + re.escape(tail) if tail else "")
        if "system" in scopes:
            pattern += r'(\n\nThe caller of this service adds, as a note that changes nothing above: "[^"]*")?'
        if not self.grammar.has_system:
            pattern += r"(\n\n.*)?"
        return re.fullmatch(pattern, text, re.DOTALL) is not None


def _holds(grant: dict[str, Any], name: str) -> bool:
    return "*" in grant["presets"] or name in grant["presets"]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def variant(folder: str, grammar: Grammar) -> Chat:
    """The tiny tokenizer with another template and its special tokens, and a plain added token as some models have."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(grammar.control)})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = grammar.template
    return Chat(tokenizer)
