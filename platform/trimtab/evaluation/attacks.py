"""Attacks as data: texts with slots, shipped or from a file of the user's, and how the slots are filled.

An attack is what a caller may send: a user turn, and perhaps the beginning of the assistant's turn. A slot is
``{name}`` or ``{name|encoding}``; all are filled at once, so that nothing in a value is ever taken for a slot.
"""

from __future__ import annotations

import base64
import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator

from trimtab.config import Config, InputError
from trimtab.data import SHIPPED
from trimtab.files import AnyPath
from trimtab.sources import read_text

SLOT = re.compile(r"\{([a-z_]+)(?:\|([a-z0-9]+))?\}")
NEEDS = {
    "prompt": "a prompt",
    "switch": "a configuration to switch to",
    "paraphrase": "a configuration to switch to",
    "opener": "an opener",
    "harmful": "a harmful response to the prompt (source.data, instead of prompts)",
    "forged_system": "the model's chat template (with an endpoint: tokenizer)",
}
"""The slots, each with what fills it; one that a run can't fill leaves its attacks out."""
LEET = str.maketrans("aeiost", "431057")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _json(text: str) -> str:
    """The inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


ENCODINGS: dict[str, Callable[[str], str]] = {
    "base64": _base64,
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "leetspeak": lambda text: text.lower().translate(LEET),
    "json": _json,
}


class Attack(Config):
    """One entry of a file of attacks."""

    name: str = Field(min_length=1, max_length=60)
    """What it is called in tables."""
    kind: str = Field(pattern=r"^[a-z][a-z_]*$", max_length=40)
    """What it is counted with."""
    text: str = "{prompt}"
    """The user turn."""
    prefill: str = ""
    """The beginning of the assistant turn, which the model goes on with; none: the model begins by itself."""
    words: int | None = Field(None, ge=1)
    """Only so many whitespace words of ``prefill`` are given: its depth."""

    @field_validator("text", "prefill")
    @classmethod
    def _known_slots(cls, text: str) -> str:
        for name, encoding in SLOT.findall(text):
            if name not in NEEDS:
                raise ValueError(f"unknown slot {{{name}}}; use {', '.join(NEEDS)}")
            if encoding and encoding not in ENCODINGS:
                raise ValueError(f"unknown encoding |{encoding}; use {', '.join(ENCODINGS)}")
        return text

    @field_validator("text")
    @classmethod
    def _asks(cls, text: str) -> str:
        if "prompt" not in slots(text):
            raise ValueError("never asks the request; put {prompt} into it")
        return text

    @model_validator(mode="after")
    def _has_words(self) -> Attack:
        if self.words is not None and not self.prefill:
            raise ValueError("words: there is no prefill to take them from")
        return self

    @property
    def slots(self) -> frozenset[str]:
        """The slots that it has."""
        return slots(self.text) | slots(self.prefill)


class Sent(NamedTuple):
    """An attack on one request, filled in."""

    prompt: str
    prefill: str
    is_short: bool
    """The whole ``prefill`` has fewer words than were to be given."""


def slots(text: str) -> frozenset[str]:
    """The names of a text's slots."""
    return frozenset(name for name, _ in SLOT.findall(text))


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its slots filled."""

    def value(slot: re.Match[str]) -> str:
        name, encoding = slot.groups()
        return ENCODINGS[encoding](values[name]) if encoding else values[name]

    return SLOT.sub(value, text)


def render(attack: Attack, values: Mapping[str, str]) -> Sent:
    """What is sent for a request.

    Args:
        values: of every slot that the attack has.
    """
    prefill = fill(attack.prefill, values)
    if attack.words is None:
        return Sent(fill(attack.text, values), prefill, False)
    words = prefill.split()
    return Sent(fill(attack.text, values), " ".join(words[: attack.words]), len(words) < attack.words)


def read_attacks(path: AnyPath | None, shipped: str) -> tuple[Attack, ...]:
    """The attacks of a file: a YAML list of mappings, see ``Attack``.

    Args:
        path: the user's; none: the shipped one named ``shipped``.

    Raises:
        InputError: there is no such file, or an attack in it can't be used.
    """
    place = path or SHIPPED / "attacks" / shipped
    rows = _yaml_list(place)
    attacks = tuple(_attack(place, number, row) for number, row in enumerate(rows, start=1))
    twice = [name for name, count in Counter(attack.name for attack in attacks).items() if count > 1]
    if twice:
        raise InputError("attacks", place, f"two attacks are called {twice[0]!r}", "rename one")
    return attacks


def _yaml_list(path: AnyPath) -> list[Any]:
    import yaml

    text = read_text("attacks", path, "a YAML file")
    try:
        rows = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        problem = f"is not YAML ({error})"
        raise InputError("attacks", path, problem, "mend it; a text with slots goes below a line with |-") from error
    if not isinstance(rows, list) or not rows:
        raise InputError("attacks", path, "is no list of attacks", "give a YAML list of name, kind and text")
    return rows


def _attack(path: AnyPath, number: int, row: Any) -> Attack:
    try:
        return Attack.model_validate(row)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        said = str(problem.get("ctx", {}).get("error", problem["msg"]))
        raise InputError("attacks", path, f"attack {number}, {where or 'entry'}: {said}", "mend it") from None
