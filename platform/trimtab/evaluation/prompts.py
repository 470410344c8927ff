"""Prompts from a user's file: rows with a ``prompt``, or a text file with one a line.

A row that can't be used is set aside with its reason and counted, and so is one that repeats another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from trimtab.config import InputError
from trimtab.files import AnyPath
from trimtab.schemas import CONTENT_CHARS, Quarantined
from trimtab.sources import is_unicode, read_json_rows, read_text, refuse_too_many_bad

ROWS = (".jsonl", ".json", ".parquet")


def read_prompts(field: str, path: AnyPath, max_bad_share: float) -> tuple[list[str], list[Quarantined]]:
    """The distinct prompts of a file, in its order, and the rows that can't be used.

    Raises:
        InputError: the file is missing, empty or no such file, or has too many bad rows.
    """
    rows = list(enumerate(read_json_rows(field, path) if path.suffix in ROWS else _lines(field, path)))
    bad = [_set_aside(number, row, reason) for number, row in rows if (reason := _problem(row))]
    refuse_too_many_bad(field, path, bad, len(rows), max_bad_share)
    unusable = {row.source_row for row in bad}
    first: dict[str, int] = {}
    for number, row in rows:
        if number in unusable:
            continue
        seen = first.setdefault(row["prompt"].strip(), number)
        if seen != number:
            bad.append(_set_aside(number, row, f"repeats row {seen + 1}"))
    if not first:
        raise InputError(field, path, "has no prompt", "give one prompt a line, or rows with a prompt")
    return list(first), bad


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
