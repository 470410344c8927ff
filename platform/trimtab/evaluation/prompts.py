"""Prompts from a user's file: rows with a ``prompt`` and perhaps a ``category``, or a text file with a prompt a line;
the openers that are put before harmful responses; and which texts can't be put to a model.

A row that can't be used is set aside with its reason and counted, and so is one that repeats another, or that holds a
control token of the model to be asked.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from trimtab.chat import ControlGuard
from trimtab.config import InputError
from trimtab.data import lines
from trimtab.files import AnyPath
from trimtab.schemas import CONTENT_CHARS, Quarantined, make_id
from trimtab.sources import category_of, is_unicode, read_json_rows, read_text, refuse_too_many_bad

ROWS = (".jsonl", ".json", ".parquet")


def read_categories(
    field: str, path: AnyPath, max_bad_share: float, guard: ControlGuard | None = None
) -> tuple[dict[str, str | None], list[Quarantined]]:
    """The category of each distinct prompt of a file, in its order, and the rows that can't be used.

    Args:
        guard: of the model to be asked. Prompts that hold its control tokens are set aside too, but they are bad for
            this model alone and don't count against ``max_bad_share``.

    Raises:
        InputError: the file is missing, empty or no such file, has too many bad rows, or none that can be asked.
    """
    rows = list(enumerate(read_json_rows(field, path) if path.suffix in ROWS else _lines(field, path)))
    bad = [_set_aside(number, row, reason) for number, row in rows if (reason := _problem(row))]
    refuse_too_many_bad(field, path, bad, len(rows), max_bad_share)
    unusable = {row.source_row for row in bad}
    first: dict[str, int] = {}
    for number, row in rows:
        if number in unusable:
            continue
        if reason := forged(guard, row["prompt"]):
            bad.append(_set_aside(number, row, reason))
        elif (seen := first.setdefault(row["prompt"].strip(), number)) != number:
            bad.append(_set_aside(number, row, f"repeats row {seen + 1}"))
    if not first:
        problem = "has no prompt that this model can be asked" if bad else "has no prompt"
        raise InputError(field, path, problem, "give one prompt a line, or rows with a prompt")
    return {prompt: category_of(rows[number][1]) for prompt, number in first.items()}, bad


def opener_of(request_id: str, seed: int) -> str:
    """A sentence with which somebody begins to comply, drawn for a request; never one of training's."""
    return random.Random(make_id(seed, request_id)).choice(lines("evaluation_openers.txt"))


def forged(guard: ControlGuard | None, *texts: str) -> str | None:
    """Why texts from outside can't be put to a model: they hold one of its control tokens; None where they can."""
    try:
        for text in texts:
            if guard:
                guard.refuse("text", text)
    except InputError as error:
        return str(error)
    return None


def _lines(field: str, path: AnyPath) -> Iterator[dict[str, str]]:
    text = read_text(field, path, "a text file, one prompt a line")
    yield from ({"prompt": line} for line in text.split("\n") if line.strip())


def _set_aside(number: int, row: Any, reason: str) -> Quarantined:
    return Quarantined(source_row=number, reason=reason, content=json.dumps(row)[:CONTENT_CHARS])


def _problem(row: Any) -> str | None:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        return "has no text in a field prompt"
    if not prompt.strip():
        return "field prompt is empty"
    return None if is_unicode(prompt) else "field prompt is not valid Unicode text"
