"""From a request's bytes to what the engine gets: the pure middle of the gate, without ASGI, keys' limits or clocks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trimtab.chat import Chat
from trimtab.config import InputError
from trimtab.policy import choosing
from trimtab.policy.body import Asked, bad, parse_body
from trimtab.policy.control import ControlTokens, Proved
from trimtab.policy.keys import Key
from trimtab.policy.ports import Refused
from trimtab.policy.presets import Presets
from trimtab.policy.settings import GateSettings
from trimtab.policy.turns import Turns
from trimtab.safety import SafetyConfig

FIT_AT_ONCE = 64
"""Requests that have to fit into a key's limits at the same time for a bound to be good enough."""
MANY = 10**15


@dataclass(frozen=True)
class Prepared:
    """A chat request as it goes to the engine."""

    body: bytes
    model: str
    preset: str
    safety_hash: str
    prompt: str
    """The finished prompt, as the engine renders it."""
    prompt_tokens: int | None
    """Its ids, where they were counted; none: the bound was good enough."""
    most_tokens: int
    """Bound of prompt and answers."""
    stream: bool
    include_usage: bool
    """Whether the caller asked for a stream's usage."""
    exact: bool = True
    """Whether the engine renders these very ids; tools it writes out in its own way."""
    ignored: tuple[str, ...] = ()
    """Fields that were left out."""


class Preparing:
    """Rewrites bodies for one served model; thread-safe, since long bodies are rewritten in a thread."""

    def __init__(self, chat: Chat, model: str, settings: GateSettings) -> None:
        self.chat, self.model, self.settings = chat, model, settings
        self.control = ControlTokens(chat)

    def prepare(self, raw: bytes, key: Key, presets: Presets) -> Prepared:
        """What the engine gets; whether the key may have this preset is not asked here.

        Raises:
            Refused: 400 or 404.
        """
        asked = parse_body(raw, self.settings)
        model, alias = choosing.split_model(asked.model, self.model, self.settings.adapters, presets)
        safety = self._safety(asked, alias, key, presets)
        for name, value in asked.texts.items():
            self.control.clean_all(name, value)
        turns = Turns(asked, key.scopes, self.control, self._escape)
        messages = turns.under(choosing.rendered(safety, presets), self.chat)
        proved = self.control.prove(messages, asked.tools.get("tools"), turns.prefill)
        if turns.prefill:
            messages = self._opened(messages, asked, turns.prefill)
        num, answer_tokens = self._tokens(proved, asked, key)
        body = self._body(asked, model, messages, answer_tokens, bool(turns.prefill))
        most = (proved.most if num is None else num) + asked.n * answer_tokens
        return Prepared(
            json.dumps(body, ensure_ascii=False).encode(), model, safety.preset, presets.hash(safety), proved.text,
            num, most, asked.stream, asked.include_usage,
            "tools" not in asked.tools, ("seed",) if self._leaves_out_seed(asked) else (),
        )  # fmt: skip

    @property
    def _escape(self) -> bool:
        return self.settings.control_tokens == "escape"

    def _safety(self, asked: Asked, alias: str | None, key: Key, presets: Presets) -> SafetyConfig:
        safety = choosing.choose(asked.safety, alias, key.default, presets)
        if safety.persona is None:
            return safety
        return safety.model_copy(update={"persona": self.control.clean("safety.persona", safety.persona, self._escape)})

    def _leaves_out_seed(self, asked: Asked) -> bool:
        return "seed" in asked.sampling and not self.settings.keep_seed

    def _opened(self, messages: list[dict[str, Any]], asked: Asked, prefill: str) -> list[dict[str, Any]]:
        """The turns with the last one open, where the engine would render them as this project's renderer does."""
        opened = [*messages, {"role": "assistant", "content": prefill}]
        if asked.tools or self.chat.continued_text(opened) != self.chat.conversation_text(messages) + prefill:
            problem = "this model's template or tools don't leave a turn open as it was trained"
            raise bad("messages", problem, "end with a user turn")
        return opened

    def count(self, prompt: str) -> int:
        """Ids of a finished prompt."""
        return len(self.control.encode(prompt))

    def _tokens(self, proved: Proved, asked: Asked, key: Key) -> tuple[int | None, int]:
        """(ids of the prompt, tokens of one answer); the ids are counted where their bound could refuse a request.

        It can't where so many like it fit into the key's limits at once, and it into the context: counting takes
        longer than all the rest of the gate.
        """
        wanted, context = self._wanted(asked.max_tokens), self.settings.context_tokens
        least = min(limit for limit in (key.tokens_per_minute, key.tokens_per_day, MANY) if limit is not None)
        fits = (proved.most + asked.n * wanted) * FIT_AT_ONCE <= least
        if proved.num is None and fits and (context is None or proved.most + wanted <= context):
            return None, wanted
        num = self.count(proved.text) if proved.num is None else proved.num
        return num, self._answer_tokens(asked.max_tokens, num)

    def _wanted(self, asked: int | None) -> int:
        return asked or min(self.settings.default_max_tokens, self.settings.max_tokens)

    def _answer_tokens(self, asked: int | None, prompt_tokens: int) -> int:
        """The answer's length, within the engine's context where that is known."""
        settings = self.settings
        wanted = self._wanted(asked)
        if settings.context_tokens is None:
            return wanted
        left = settings.context_tokens - prompt_tokens
        if left < 1 or (asked and asked > left):
            field, problem = ("max_tokens", "leaves no room") if left >= 1 else ("messages", "are too long")
            raise bad(field, f"{problem} in the model's context of {settings.context_tokens} tokens", "send less")
        return min(wanted, left)

    def _body(
        self, asked: Asked, model: str, messages: list[dict[str, Any]], max_tokens: int, opened: bool
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": max_tokens, **asked.sampling}
        if self._leaves_out_seed(asked):
            del body["seed"]
        if asked.n > 1:
            body["n"] = asked.n
        if "stop" in asked.texts:
            body["stop"] = asked.texts["stop"]
        if asked.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if opened:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body | asked.tools


def check_presets(chat: Chat, presets: Presets) -> None:
    """Raise where a preset's own text would change the turns: every request under it would be refused.

    Raises:
        InputError: naming the preset.
    """
    control = ControlTokens(chat)
    for item in presets.describe(presets.names):
        try:
            control.clean("system", item["system"], escape=False)
        except Refused as refused:
            field = f"presets.{item['name']}"
            raise InputError(field, item["system"], refused.message, "write the system prompt without it") from None
