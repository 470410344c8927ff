"""The words a judge is asked with, and the fence around what it grades.

The texts are files with ``${name}`` slots, filled in once: what is graded is a value and never part of a text. Each
graded text stands between two lines with a mark that is made from the graded texts themselves, so that nobody who
writes one of them can know it, and the same question is the same prompt each time.
"""

from __future__ import annotations

import re
from itertools import count
from pathlib import Path
from string import Template

from trimtab.config import InputError
from trimtab.data import SHIPPED
from trimtab.judging.questions import QUESTIONS, Item, Question
from trimtab.schemas import make_id
from trimtab.sources import read_text

SLOTS = frozenset({"request", "start", "answer", "mark"})
NEEDED = frozenset({"answer", "mark"})
MARK_CHARS = 16
# What the templates of common models write around turns, also with DeepSeek's wide bars. A server that fills its
# template with a text that holds them may take them for real turns.
CONTROL_LIKE = re.compile(
    "<(?=[|\uff5c][^|\uff5c<>\n]{1,60}[|\uff5c]>)|<(?=/?s>)|<(?=(?:start|end)_of_turn>)|<(?=(?:bos|eos|pad|unk|sop)>)"
    "|<(?=<?/?SYS>>)|\\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|gMASK)\\])"
)


def template(question: Question, folder: Path | None) -> Template:
    """The text of a question: the user's where ``folder`` has one, else the shipped one.

    Raises:
        InputError: the folder holds no text of a question, or a text lacks a slot or has an unknown one.
    """
    path = _path(question, folder)
    lines = read_text("judge.prompts", path, "a text file").splitlines()
    text = Template("\n".join(line for line in lines if not line.startswith("#")).strip())
    if not text.is_valid():
        raise InputError("judge.prompts", path, "has a $ that begins no slot", "write $$ for a dollar sign")
    used = set(text.get_identifiers())
    if not NEEDED <= used <= SLOTS:
        problem = f"has the slots {', '.join(sorted(used)) or 'none'}"
        raise InputError("judge.prompts", path, problem, "use ${answer}, ${mark}, and ${request} or ${start} if wanted")
    return text


def digests(folder: Path | None) -> dict[str, str]:
    """A fingerprint of each question's text, which changes what a judge answers."""
    return {question: make_id(template(question, folder).template) for question in QUESTIONS}


def _path(question: Question, folder: Path | None) -> Path:
    if folder is None:
        return SHIPPED / "judges" / f"{question}.txt"
    own = {name: folder / f"{name}.txt" for name in QUESTIONS if (folder / f"{name}.txt").is_file()}
    if not own:
        names = ", ".join(f"{name}.txt" for name in QUESTIONS)
        raise InputError("judge.prompts", folder, "no folder with a judge's text", f"put one of {names} there")
    return own.get(question) or SHIPPED / "judges" / f"{question}.txt"


def render(text: Template, item: Item) -> str:
    """The prompt for an item, with each graded text inside its fence."""
    graded = {"request": as_data(item.prompt), "start": as_data(item.prefill), "answer": as_data(item.text)}
    mark = fence_mark(*graded.values())
    fenced = {name: f"[begin {name} {mark}]\n{value}\n[end {name} {mark}]" for name, value in graded.items()}
    return text.substitute(fenced, mark=mark)


def as_data(text: str) -> str:
    """A graded text that can be sent: no lone surrogates, and a space in what looks like a template's control token."""
    sendable = text.encode("utf-8", "replace").decode()
    return CONTROL_LIKE.sub(lambda found: f"{found[0]} ", sendable)


def fence_mark(*texts: str, num_chars: int = MARK_CHARS) -> str:
    """A mark that is made from the texts and stands in none of them."""
    marks = (make_id("fence", number, *texts)[:num_chars] for number in count())
    return next(mark for mark in marks if not any(mark in text for text in texts))
