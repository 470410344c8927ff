"""Text files that ship with the package: the sample, openers, triggers, judge rules, benign prompts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path


@lru_cache
def lines(name: str) -> tuple[str, ...]:
    """The non-empty lines of a shipped text file; lines that start with ``#`` are comments."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
