"""Control tokens and turn markers of one model: none comes from a caller's text, and a finished prompt proves it.

Texts are searched for the control tokens' strings, as written and behind the tokenizer's normalizer, and for the plain
text by which some templates mark turns (Llama-2's ``[INST]``, Vicuna's ``USER:``), found in a neutral rendering of the
template. As markers count: words in ``<>``, ``[]`` or ``||``, anywhere in a text; ``ROLE:`` in capitals, anywhere; and
``Role:`` or ``### Role:``, which ordinary prose has as well, only at the beginning of a line.

Searching strings is the first half. The second half knows no strings: the finished prompt must have the same sequence
of control tokens' ids as a neutral rendering of the same turns, whatever two texts become side by side. The ids come
from the whole tokenizer, or, where its files prove that this is the same, from a ``Finder``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from trimtab.chat import Chat
from trimtab.policy.finder import finder_of
from trimtab.policy.ports import Refused

NEUTRAL = "trimtabsentinel"
MAX_BREAKS = 8
MAX_KEPT_TURNS = 64
_NO_TEXT = re.compile("[\ud800-\udfff\x00]")
_BRACKETED = re.compile(r"<{1,2}[^<>\s]{1,40}>{1,2}|\[/?[^\[\]\s]{2,40}\]|\|[^|\s]{2,40}\|")
_ROLE = re.compile(r"(?:^|[^A-Za-z#])((?:#{1,6} ?)?[A-Z][A-Za-z]{2,30}:)$")
SCHEMA_WORDS = frozenset({
    "type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "arguments",
    "id", "default", "anyOf", "additionalProperties",
})  # fmt: skip


class Proved(NamedTuple):
    """A finished prompt that has the control tokens of its turns and no other."""

    text: str
    num: int | None
    """Its ids, where they were made to know."""
    most: int
    """A bound of its ids: their number, or its bytes and a blank that each piece may get before it."""


class ControlTokens:
    """The control tokens and turn markers of a chat model."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.ids = _control_ids(chat)
        self._encoder = _encoder(chat)
        self._finder = finder_of(self._encoder, self.ids)
        self._normalizer = getattr(self._encoder, "normalizer", None)
        strings = self._strings()
        marks = _markers(chat) - strings
        self._pattern = _pattern(strings | marks)
        self._marks = _pattern(marks) if marks else None
        self._neutral = lru_cache(maxsize=1024)(self._neutral_shape)

    def clean(self, field: str, text: str, escape: bool) -> str:
        """The text, which then has none of the model's control tokens and markers.

        Args:
            escape: part them by a space instead of refusing.

        Raises:
            Refused: it has one, or is no valid Unicode text; the message names the field.
        """
        if not text:
            return text
        if _NO_TEXT.search(text):
            problem = "holds lone surrogates or NUL, which no text has; remove them"
            raise Refused(400, "bad_text", f"{field}: {problem}", field)
        found = self._pattern.search(text)
        if found and not escape:
            raise _control(field, found.group())
        cleaned = self._broken_up(field, text) if found else text
        if self._normalizer is not None and self._pattern.search(self._normalizer.normalize_str(cleaned)):
            raise _control(field, "a look-alike")
        return cleaned

    def clean_all(self, field: str, value: Any) -> None:
        """Refuse a JSON value that has a control token or marker in any string or name.

        Raises:
            Refused: as ``clean``.
        """
        for text in _texts(value):
            self.clean(field, text, escape=False)

    def prove(
        self, messages: Sequence[dict[str, Any]], tools: list[dict[str, Any]] | None = None, prefill: str = ""
    ) -> Proved:
        """The finished prompt, which has the control tokens of its turns and no other.

        Raises:
            Refused: it has others, or the template can't render these turns.
        """
        turns = [_parsed_calls(message) for message in messages]
        text = self._rendered(turns, tools) + prefill
        outline = tuple(_outline(message) for message in turns)
        is_common = tools is None and len(outline) <= MAX_KEPT_TURNS
        neutral = self._neutral if is_common else self._neutral_shape  # what a caller makes up isn't worth keeping
        found, num = self.sequence(text)
        if (found, self._marks_in(text)) != neutral(outline, _neutral_json(tools), bool(prefill)):
            problem = "the texts change the prompt's turns; remove what looks like a control token"
            raise Refused(400, "forged_turns", f"messages: {problem}", "messages")
        return Proved(text, num, len(text.encode()) + 2 * len(found) + 2 if num is None else num)

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a rendered prompt, as the engine gets them."""
        if self._encoder is None:
            return self.chat.encode(text)
        return self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids  # type: ignore[no-any-return]

    def sequence(self, text: str) -> tuple[tuple[int, ...], int | None]:
        """(ids of the control tokens in a prompt, in their order; how many ids it has in all, where they were made)."""
        if self._finder is not None:
            return self._finder.sequence(text), None
        ids = self.encode(text)
        return tuple([token for token in ids if token in self.ids]), len(ids)

    def _marks_in(self, text: str) -> tuple[str, ...]:
        return tuple(self._marks.findall(text)) if self._marks else ()

    def _neutral_shape(self, outline: tuple[str, ...], tools: str, prefilled: bool) -> Any:
        """The shape of these turns with nothing in them; kept, since few outlines are ever asked for."""
        text = self._rendered([json.loads(turn) for turn in outline], json.loads(tools))
        text += NEUTRAL if prefilled else ""
        return self.sequence(text)[0], self._marks_in(text)

    def _rendered(self, messages: Sequence[dict[str, Any]], tools: Any) -> str:
        import jinja2

        try:
            return self.chat.conversation_text(list(messages), tools)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            problem = "the model's template can't render these turns; send fewer kinds of them"
            raise Refused(400, "bad_turns", f"messages: {problem}", "messages") from error

    def _strings(self) -> set[str]:
        """What may become a control token: each one as written, and as the normalizer would write it."""
        found = {str(text) for text in self.chat.tokenizer.convert_ids_to_tokens(sorted(self.ids))}
        found |= {token.content for id_, token in self.chat.tokenizer.added_tokens_decoder.items() if id_ in self.ids}
        if self._normalizer is not None:
            found |= {self._normalizer.normalize_str(text) for text in found}
        return {text for text in found if text.strip()}

    def _broken_up(self, field: str, text: str) -> str:
        """A space behind the first character of each marker (before the colon of a role), until none is left."""
        for _ in range(MAX_BREAKS):
            text, num = self._pattern.subn(_parted, text)
            if not num:
                return text
        raise _control(field, "one that a space doesn't part")


def _control(field: str, found: str) -> Refused:
    problem = f"{found} is a control token or turn marker of this model; remove it from the text"
    return Refused(400, "control_token", f"{field}: {problem}", field)


def _parted(found: re.Match[str]) -> str:
    text = found.group()
    return f"{text[:-1]} :" if text.endswith(":") else f"{text[0]} {text[1:]}"


def _control_ids(chat: Chat) -> frozenset[int]:
    """All added and special tokens, without the runs of spaces that some tokenizers add as plain text."""
    decoder = chat.tokenizer.added_tokens_decoder
    blank = {id_ for id_, token in decoder.items() if not token.special and not token.content.strip(" \t\r\n▁")}
    return chat.control_ids - blank


def _encoder(chat: Chat) -> Any:
    """A copy of the fast tokenizer, so that nobody's truncation or padding gets into it; None: the model has none."""
    if not getattr(chat.tokenizer, "is_fast", False):
        return None
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(chat.tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _markers(chat: Chat) -> set[str]:
    """Plain-text marks of turns: what the template writes around contents that are one neutral word."""
    import jinja2

    user: dict[str, Any] = {"role": "user", "content": NEUTRAL}
    assistant: dict[str, Any] = {"role": "assistant", "content": NEUTRAL}
    call = {"id": NEUTRAL[:9], "type": "function", "function": {"name": NEUTRAL, "arguments": {NEUTRAL: NEUTRAL}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    answered = {"role": "tool", "content": NEUTRAL, "tool_call_id": NEUTRAL[:9], "name": NEUTRAL}
    first: list[dict[str, Any]] = [*chat.messages(NEUTRAL, NEUTRAL)]
    found: set[str] = set()
    for messages in ([*first, assistant, user], [*first, calling, answered]):
        try:
            text = chat.conversation_text(messages)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError):
            continue  # a template without tools, or without system role behind them
        for part in text.split(NEUTRAL):
            found |= set(_BRACKETED.findall(part)) | set(_ROLE.findall(part.strip()))
    return found


def _pattern(strings: set[str]) -> re.Pattern[str]:
    """Any of these, the longest first."""
    return re.compile("|".join(map(_escaped, sorted(strings, key=len, reverse=True))) or "(?!)", re.MULTILINE)


def _escaped(marker: str) -> str:
    """A role in capitals anywhere, since a template may write it within a line; another at a line's beginning."""
    if not _ROLE.fullmatch(marker):
        return re.escape(marker)
    if marker.isupper():
        return rf"(?<![A-Za-z]){re.escape(marker)}"
    return rf"^[^\S\n]*{re.escape(marker)}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _parsed_calls(message: dict[str, Any]) -> dict[str, Any]:
    """The message as an engine hands it to the template: arguments of tool calls as objects."""
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


_OUTLINES = {
    role: json.dumps({"role": role, "content": NEUTRAL}, sort_keys=True) for role in ("system", "user", "assistant")
}


def _outline(message: dict[str, Any]) -> str:
    """A message without its texts, as JSON."""
    if len(message) == 2:
        return _OUTLINES[message["role"]]
    return json.dumps({"role": message["role"]} | _neutral({k: v for k, v in message.items() if k != "role"}))


def _neutral_json(tools: list[dict[str, Any]] | None) -> str:
    return "null" if tools is None else json.dumps(_neutral(tools))


def _neutral(value: Any, name: str = "") -> Any:
    """A JSON value of the same structure without the caller's words."""
    if isinstance(value, str):
        return value if name == "type" and value.isalpha() else (NEUTRAL if value else "")
    if isinstance(value, dict):
        return {
            key if key in SCHEMA_WORDS or key in ("content", "tool_calls", "tool_call_id") else f"{NEUTRAL}{number}":
            _neutral(item, key)
            for number, (key, item) in enumerate(value.items())
        }  # fmt: skip
    if isinstance(value, list):
        return [_neutral(item) for item in value]
    return value
