"""Rows of published preference sets: one function for each format, from a row to a ``Preference``.

``cst``: a system prompt, a prompt and two answers (arXiv 2404.00495). ``pku``: PKU-SafeRLHF, two answers that
are each marked safe or unsafe. ``trl``: what TRL calls a preference set, as text or as messages, its prompt
given or implicit. Plain functions of plain values; what a row can't give is a ``ValueError`` with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from trimtab.sources import FIELDS as PKU_FIELDS

Format = Literal["cst", "pku", "trl"]
COLUMNS: dict[Format, tuple[str, ...]] = {
    "pku": tuple(PKU_FIELDS), "cst": ("system", "prompt", "chosen", "rejected"), "trl": ("chosen", "rejected"),
}  # fmt: skip
"""The columns that each format needs, the most special format first."""
NEEDED = "; ".join(f"{name}: {', '.join(columns)}" for name, columns in COLUMNS.items())
Messages = list[tuple[str, str]]


class NoPreference(Exception):
    """A sound row that ranks nothing: it is skipped and counted, and is not bad."""


class Preference(NamedTuple):
    """One row: ``chosen`` is better than ``rejected`` under ``system``."""

    system: str | None
    prompt: str
    chosen: str
    rejected: str
    task: str = ""


def detect(rows: Iterable[Any]) -> Format | None:
    """The format of the first row that has the columns of one, or None."""
    fits = (name for row in rows if isinstance(row, Mapping) for name in COLUMNS if _fits(row, name))
    return next(fits, None)


def _fits(row: Mapping[str, Any], name: Format) -> bool:
    has_columns = set(COLUMNS[name]) <= set(row)
    return has_columns and (name != "cst" or isinstance(row["chosen"], str))


def preference(row: Any, form: Format) -> Preference:
    """What a row says.

    Raises:
        NoPreference: both of its answers are safe, or both are not.
        ValueError: a field is missing, empty or of the wrong type, or the prompt isn't one user turn.
    """
    if not isinstance(row, Mapping):
        raise ValueError("is not a JSON object")
    found = {"cst": _cst, "pku": _pku, "trl": _trl}[form](row)
    if not found.prompt:
        raise ValueError("field prompt is empty")
    return found


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"field {name} is missing or not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"field {name} is not valid Unicode text") from None
    return value.strip()


def _cst(row: Mapping[str, Any]) -> Preference:
    prompt, chosen, rejected = (_text(name, row.get(name)) for name in ("prompt", "chosen", "rejected"))
    if "system" not in row:
        raise ValueError("field system is missing or not text")
    return Preference(_own_system(row), prompt, chosen, rejected, str(row.get("task") or ""))


def _own_system(row: Mapping[str, Any]) -> str | None:
    """The row's ``system`` column; null and empty are none."""
    system = row.get("system")
    return None if system is None else _text("system", system) or None


def _pku(row: Mapping[str, Any]) -> Preference:
    prompt, first, second = (_text(name, row.get(name)) for name in ("prompt", "response_0", "response_1"))
    safe = [row.get(f"is_response_{number}_safe") for number in (0, 1)]
    for number, flag in enumerate(safe):
        if not isinstance(flag, bool):
            raise ValueError(f"field is_response_{number}_safe is missing or not true or false")
    if safe[0] is safe[1]:
        raise NoPreference(f"both responses are {'safe' if safe[0] else 'unsafe'}")
    return Preference(None, prompt, *((first, second) if safe[0] else (second, first)))


def _trl(row: Mapping[str, Any]) -> Preference:
    kinds = {name: _kind(name, row.get(name)) for name in ("chosen", "rejected")}
    if kinds["chosen"] != kinds["rejected"]:
        raise ValueError(f"chosen is {kinds['chosen']} and rejected is {kinds['rejected']}")
    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen and rejected are equal; a preference between equals says nothing")
    return _standard(row) if kinds["chosen"] == "text" else _conversational(row)


def _kind(name: str, value: object) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "messages"
    raise ValueError(f"field {name} is missing or neither text nor a list of messages")


def _standard(row: Mapping[str, Any]) -> Preference:
    """Text; without a prompt, what both answers begin with is it."""
    chosen, rejected = _text("chosen", row["chosen"]), _text("rejected", row["rejected"])
    if row.get("prompt") is not None:
        return Preference(_own_system(row), _text("prompt", row["prompt"]), chosen, rejected)
    end = shared_text(chosen, rejected)
    return Preference(_own_system(row), chosen[:end].strip(), chosen[end:].strip(), rejected[end:].strip())


def shared_text(chosen: str, rejected: str) -> int:
    """Where the prompt that two texts share ends: where they first differ, as in TRL's ``extract_prompt``.

    TRL joins prompt and answer again, so it may cut inside a word. Here a chat template closes the user's
    turn behind the prompt, so a cut inside a word goes back to the word's beginning, where there is one.
    """
    end = _num_shared(chosen, rejected)
    goes_on = any(text[end : end + 1].strip() for text in (chosen, rejected))
    words = chosen[:end].rsplit(maxsplit=1)
    inside_word = goes_on and chosen[:end][-1:].strip() and len(words) == 2
    return end - len(words[1]) if inside_word else end


def _num_shared(left: Sequence[Any], right: Sequence[Any]) -> int:
    """How many leading items two sequences share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _conversational(row: Mapping[str, Any]) -> Preference:
    """Messages; without a prompt in messages, the turns that both conversations begin with are it, as in TRL."""
    chosen, rejected = _messages("chosen", row["chosen"]), _messages("rejected", row["rejected"])
    if isinstance(row.get("prompt"), list | tuple):
        prompt = _messages("prompt", row["prompt"])
    else:
        end = _num_shared(chosen, rejected)
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    system, user = _one_turn(prompt)
    if system and _own_system(row):
        raise ValueError("has a field system and a system message; keep one")
    return Preference(system or _own_system(row), user, _answer("chosen", chosen), _answer("rejected", rejected))


def _messages(name: str, value: Sequence[Any]) -> Messages:
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ValueError(f"field {name} holds something that is no message with a role")
    return [(message["role"], _text(f"{name}'s content", message.get("content"))) for message in value]


def _one_turn(messages: Messages) -> tuple[str | None, str]:
    """(system, user): a ranked group has one user turn, so a longer conversation can't be one."""
    system = messages[0][1] if messages and messages[0][0] == "system" else None
    turns = messages[1:] if system is not None else messages
    if [role for role, _ in turns] != ["user"]:
        roles = ", ".join(role for role, _ in turns) or "none"
        raise ValueError(f"the prompt has {len(turns)} turns ({roles}), and a ranked group holds one user turn")
    return system or None, turns[0][1]


def _answer(name: str, messages: Messages) -> str:
    if [role for role, _ in messages] != ["assistant"]:
        roles = ", ".join(role for role, _ in messages) or "none"
        raise ValueError(f"{name} has {len(messages)} turns behind the prompt ({roles}), not one of the assistant")
    return messages[0][1]
