"""What a check says: how bad it is, what was found, why it matters, and the command that mends it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = "trimtab-doctor/1"
Level = Literal["ok", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "error")
STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``check`` is a stable name; ``remedy`` a command, or what to set."""

    check: str
    level: Level
    found: str
    why: str = ""
    remedy: str = ""


def has_errors(findings: Sequence[Finding]) -> bool:
    """Whether something will not work, or is open to others."""
    return any(finding.level == "error" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """All findings, worst level and counts: the schema stays as it is within a version."""
    counts = {level: sum(finding.level == level for finding in findings) for level in LEVELS}
    worst = max((finding.level for finding in findings), key=LEVELS.index, default="ok")
    values = {"schema": SCHEMA, "worst": worst, "counts": counts, "findings": [asdict(one) for one in findings]}
    return json.dumps(values, indent=2)


def table(findings: Sequence[Finding]) -> Table:
    """What was found, in the order in which it was looked at."""
    from rich.table import Table
    from rich.text import Text

    made = Table("", "check", "found", title="trimtab doctor", title_justify="left")
    for finding in findings:
        made.add_row(Text(finding.level, style=STYLES[finding.level]), finding.check, Text(finding.found))
    return made


def remedies(findings: Sequence[Finding]) -> Iterator[str]:
    """Why each thing that isn't well matters and what mends it, the worst first."""
    for level in reversed(LEVELS[1:]):
        for finding in findings:
            if finding.level == level and finding.why:
                yield f"{level}: {finding.check}: {finding.why}"
                if finding.remedy:
                    yield f"    {finding.remedy}"


def summary(findings: Sequence[Finding]) -> str:
    """One line."""
    counts = [(sum(finding.level == level for finding in findings), level) for level in reversed(LEVELS)]
    return ", ".join(f"{count} {level}" for count, level in counts if count)
