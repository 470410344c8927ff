"""Labelled texts: what a row of labels is, how a file of them is read, and what of training's triggers a text holds.

The shipped labels (``data/labels/``, with the rule they were given by) have two halves: ``dev``, on which rules are
written, and ``held_out``, which is only looked at when they are done. ``course_corrects_fresh.jsonl`` beside them holds
``fresh`` ones, made later and blind to the rules: what rules are measured on that were written on both halves.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Literal

from trimtab.config import InputError
from trimtab.data import SHIPPED, lines
from trimtab.files import AnyPath
from trimtab.judging import Question
from trimtab.near_duplicates import normalize
from trimtab.schemas import CONTENT_CHARS, Quarantined, Row, make_id, reason_of
from trimtab.sources import read_json_rows, refuse_too_many_bad

Half = Literal["dev", "held_out", "fresh"]
SHIPPED_LABELS = SHIPPED / "labels" / "course_corrects.jsonl"
FRESH_LABELS = SHIPPED / "labels" / "course_corrects_fresh.jsonl"
HALF_SEED = 0
RUN_WORDS = 4
"""So many words of a trigger in a row, and the text uses it."""
NOT = re.compile(r"\b(?:can't|cannot|can not|won't|(\w+)n't)\b")
WRITTEN_OUT = {"can't": "can not", "cannot": "can not", "can not": "can not", "won't": "will not"}
SHORT = {"'m": " am", "'ve": " have", "'d": " would", "'ll": " will", "'re": " are"}


class Label(Row):
    """A text with what somebody says of it."""

    id: str
    question: Question
    prompt: str
    prefill: str = ""
    text: str
    label: Literal["yes", "no"]
    trigger_free: bool | None = None
    """Whether the text uses none of training's triggers; none: it is looked for."""
    half: Half | None = None
    """``dev`` for writing rules, ``held_out`` and ``fresh`` for measuring them; none: neither."""
    source: str = ""
    """Where the text or its label comes from."""


def read_labels(field: str, path: AnyPath, max_bad_share: float = 0.0) -> tuple[list[Label], list[Quarantined]]:
    """The labels of a file, and the rows that are none, with the reason.

    Raises:
        InputError: the file is missing, empty or no JSON, has too many bad rows, or two labels for one question and id.
    """
    labels, bad = [], []
    total = 0
    for number, row in enumerate(read_json_rows(field, path)):
        total += 1
        try:
            labels.append(Label.model_validate(row))
        except ValueError as error:
            bad.append(Quarantined(source_row=number, reason=reason_of(error), content=ascii(row)[:CONTENT_CHARS]))
    refuse_too_many_bad(field, path, bad, total, max_bad_share)
    twice = next((key for key, number in Counter(map(key_of, labels)).items() if number > 1), None)
    if twice is not None:
        raise InputError(field, path, f"has two labels of {twice[1]} for {twice[0]}", "keep one of them")
    return labels, bad


def shipped_labels(half: Half | None) -> Path:
    """The shipped file that holds a half; of none, the one of ``dev`` and ``held_out``."""
    return FRESH_LABELS if half == "fresh" else SHIPPED_LABELS


def key_of(label: Label) -> tuple[str, str]:
    """What a file may have only one label for: the question and the row's id."""
    return label.question, label.id


def half_of(prompt: str, seed: int = HALF_SEED) -> Half:
    """The half of the shipped labels that a prompt belongs to, all its continuations with it: a hash, no choice."""
    return "held_out" if int(make_id("half", seed, normalize(prompt)), 16) % 2 else "dev"


def is_trigger_free(label: Label) -> bool:
    """Whether the judged text uses none of training's correction triggers."""
    return not uses_trigger(label.text) if label.trigger_free is None else label.trigger_free


def uses_trigger(text: str) -> bool:
    """Whether a text holds four words of a trigger in a row, near-matches so with it.

    Case and punctuation don't matter, and short forms are written out: "I don't want to" is the trigger's "I do not
    want to", and counts even where the rest of the trigger is missing.
    """
    return not _runs(text).isdisjoint(_trigger_runs())


@lru_cache
def _trigger_runs() -> frozenset[tuple[str, ...]]:
    return frozenset(run for trigger in lines("triggers.txt") for run in _runs(trigger))


def _runs(text: str) -> set[tuple[str, ...]]:
    plain = NOT.sub(lambda found: WRITTEN_OUT.get(found[0], f"{found[1]} not"), text.casefold().replace("’", "'"))
    for short, whole in SHORT.items():
        plain = plain.replace(short, whole)
    words = re.findall(r"[a-z0-9]+", plain)
    return set(zip(*(words[start:] for start in range(RUN_WORDS)), strict=False))
