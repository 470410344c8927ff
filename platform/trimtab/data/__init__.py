"""Text files that ship with the package: the sample, openers, triggers, judges' rules and texts, benign prompts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

SHIPPED = Path(__file__).parent


@lru_cache
def lines(name: str) -> tuple[str, ...]:
    """The non-empty lines of a shipped text file; lines that start with ``#`` are comments."""
    text = (SHIPPED / name).read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
