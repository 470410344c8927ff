"""Messages to token-exact prompts: the one renderer of synthesis, training, evaluation and serving.

An assistant turn can be left open with a prefill, which the model then continues. Control tokens
inside text that is not ours are refused here: a template would turn them into real turns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from trimtab.config import InputError

_SENTINEL = "trimtabsentinel"
RELEASED_DROPS = "</s>"
"""What the released C²-EVAL script takes out of a closed turn: it leaves the turn open in Llama-2's template alone."""


class Chat:
    """A tokenizer with its template, as functions from (system, prompt, prefill) to token ids."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("model", tokenizer.name_or_path, "has no chat template", "add chat_template.jinja")
        self.tokenizer = tokenizer
        self.control_ids = frozenset(tokenizer.added_tokens_decoder) | frozenset(tokenizer.all_special_ids)
        self.has_system_role = self._detect_system_role()
        self.end_ids = self._detect_end()

    @classmethod
    def from_folder(cls, folder: str) -> Chat:
        """The chat of a model folder; kept per process, since reading a tokenizer takes most of a second."""
        return _load_chat(folder)

    def messages(self, system: str | None, prompt: str) -> list[dict[str, str]]:
        """Chat messages; where the template has no system role, its text stands at the head of the user turn."""
        if system is None:
            return [{"role": "user", "content": prompt}]
        if not self.has_system_role:
            return [{"role": "user", "content": f"{system}\n\n{prompt}"}]
        return [{"role": "system", "content": system}, {"role": "user", "content": prompt}]

    def prompt_text(self, system: str | None, prompt: str, prefill: str = "", reopen: bool = False) -> str:
        """The rendered prompt up to the open assistant turn, with ``prefill`` as its beginning.

        Args:
            reopen: as the released C²-EVAL script does, close the turn behind ``prefill`` and open a new one.
        """
        messages = self.messages(system, prompt)
        return self._reopened(messages, prefill) if reopen else self._rendered(messages) + prefill

    def _rendered(self, messages: list[dict[str, str]], answer: str | None = None) -> str:
        """The messages, a closed assistant turn behind them where one is given, and a new assistant turn's begin."""
        turn = [] if answer is None else [{"role": "assistant", "content": answer}]
        return self.conversation_text([*messages, *turn])

    def conversation_text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """A conversation of any turns, rendered as an engine does, up to the beginning of a new assistant turn."""
        apply = self.tokenizer.apply_chat_template
        return str(apply(messages, tools=tools, tokenize=False, add_generation_prompt=True))

    def continued_text(self, messages: list[dict[str, Any]]) -> str:
        """A conversation whose last turn is left open, as an engine renders it for ``continue_final_message``."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True))

    def _reopened(self, messages: list[dict[str, str]], prefill: str) -> str:
        """The turn closed without ``RELEASED_DROPS``; what stands before its end is nobody's to change."""
        text = self._rendered(messages, prefill)
        end = self._rendered(messages, _SENTINEL).rpartition(_SENTINEL)[2]
        return text[: len(text) - len(end)] + end.replace(RELEASED_DROPS, "") if text.endswith(end) else text

    def prompt_ids(self, system: str | None, prompt: str, prefill: str = "", reopen: bool = False) -> list[int]:
        """Token ids of ``prompt_text``; special tokens come from the template alone, never twice."""
        return self.encode(self.prompt_text(system, prompt, prefill, reopen))

    def first_tokens(self, system: str | None, prompt: str, text: str, num: int) -> tuple[str, int]:
        """The first ``num`` tokens of an answer, as a text that the rendered prompt gives back as those very tokens.

        Returns:
            (text, number of tokens): fewer where the answer is shorter, or where the text of ``num`` tokens would be
            read as others (a cut inside a character); then the longest one below.
        """
        head, ids = len(self.prompt_ids(system, prompt)), self.prompt_ids(system, prompt, text)
        for end in range(min(head + num, len(ids)), head, -1):
            beginning = self.tokenizer.decode(ids[head:end], clean_up_tokenization_spaces=False)
            if self.prompt_ids(system, prompt, beginning) == ids[:end]:
                return beginning, end - head
        return "", 0

    def response_ids(self, system: str | None, prompt: str, response: str) -> tuple[list[int], int]:
        """(ids, n): the whole turn with its end, and the number n of leading prompt ids.

        The ids up to n equal ``prompt_ids(system, prompt)``, so training sees what the engine continues.
        """
        head = self.prompt_ids(system, prompt)
        return [*head, *self.encode(response), *self.end_ids], len(head)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def control_tokens(self, text: str) -> list[str]:
        """The control tokens of this tokenizer that stand in a text that must have none."""
        return [self.tokenizer.convert_ids_to_tokens(i) for i in self.encode(text) if i in self.control_ids]

    def refuse_control_tokens(self, field: str, text: str) -> None:
        """Raise when a text from outside holds a control token of this model.

        Raises:
            InputError: naming the field and the token.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(field, ascii(text), "is not valid Unicode text", "remove the lone surrogates") from error
        found = self.control_tokens(text)
        if found:
            raise InputError(field, found[0], "is a control token of this model", "remove it from the text")

    def _detect_system_role(self) -> bool:
        messages = [{"role": "system", "content": _SENTINEL}, {"role": "user", "content": "x"}]
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (jinja2.TemplateError, ValueError):
            return False
        return _SENTINEL in text

    def _detect_end(self) -> list[int]:
        """Ids that close an assistant turn: what the template writes behind it, up to its first control token."""
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _SENTINEL}]
        tail = self.tokenizer.apply_chat_template(messages, tokenize=False).rpartition(_SENTINEL)[2]
        ids = self.encode(tail)
        ends = [number for number, token in enumerate(ids) if token in self.control_ids]
        return ids[: ends[0] + 1] if ends else [self.tokenizer.eos_token_id]


@lru_cache(maxsize=4)
def _load_chat(folder: str) -> Chat:
    from transformers import AutoTokenizer

    return Chat(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))


class ControlGuard:
    """Refuses control tokens in many texts, as ``Chat.refuse_control_tokens`` does, without loading what Chat needs.

    A fast tokenizer finds its control tokens as they are written, before or behind its normalizer, and its other
    tokens spell the text: a text without any of the strings can't give their ids. Only a text that has one, and
    every text where the folder has no ``tokenizer.json``, is tokenized to know.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._pattern, self._normalizer = _control_strings(Path(folder))

    @classmethod
    def from_folder(cls, folder: str) -> ControlGuard:
        """The guard of a model folder; kept per process."""
        return _load_guard(folder)

    def refuse(self, field: str, text: str) -> None:
        """Raise when a text from outside holds a control token of the model.

        Raises:
            InputError: naming the field and the token.
        """
        if not self._is_plain(text):
            Chat.from_folder(self.folder).refuse_control_tokens(field, text)

    def _is_plain(self, text: str) -> bool:
        if self._pattern is None or self._pattern.search(text) or _SURROGATE.search(text):
            return False
        return self._normalizer is None or not self._pattern.search(self._normalizer.normalize_str(text))


_SURROGATE = re.compile("[\ud800-\udfff]")


@lru_cache(maxsize=4)
def _load_guard(folder: str) -> ControlGuard:
    return ControlGuard(folder)


def _control_strings(folder: Path) -> tuple[re.Pattern[str] | None, Any]:
    """(a pattern of all that may be a control token, the normalizer); None: the files alone can't tell."""
    from tokenizers import Tokenizer

    if not (folder / "tokenizer.json").is_file():
        return None, None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        found |= set(_token_texts(_read_json(folder / name)))
    found |= set(_read_json(folder / "added_tokens.json"))
    strings = sorted(text for text in found if text)
    return (re.compile("|".join(map(re.escape, strings))) if strings else None), tokenizer.normalizer


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _token_texts(values: dict[str, Any]) -> Iterator[str]:
    """The tokens that a tokenizer's file names: ``*_token`` fields, lists of special tokens, added tokens by id."""
    for key, value in values.items():
        if key.endswith("_token") or key.isdecimal():
            yield value["content"] if isinstance(value, dict) else str(value)
        elif key.endswith("special_tokens") and isinstance(value, list):
            yield from (item["content"] if isinstance(item, dict) else str(item) for item in value)
        elif isinstance(value, dict):
            yield from _token_texts(value)
