"""The report's tables as plain values, which the page, Markdown and a terminal show alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.evaluation.reporting.comparing import Difference, Measure
from trimtab.evaluation.reporting.runs import Side
from trimtab.stats import Estimate, minimum_detectable_effect

TONES = {"better": "good", "worse": "bad"}
MISSING = "n/a"
UNCORRECTED = "The p values are not corrected for their number."


@dataclass(frozen=True)
class Cell:
    """A value with its interval behind it, or a plain text."""

    text: str
    range: str = ""
    tone: str = ""
    """``good``, ``bad``, ``soft``, or nothing."""

    def __str__(self) -> str:
        return f"{self.text} {self.range}".strip()


@dataclass(frozen=True)
class Grid:
    """A table: a head, and rows of a label and a cell for each further column."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, list[Cell]]]
    caption: str = ""
    picture: str = ""
    """The name of the picture that shows it, where there is one."""
    lines: list[str] = field(default_factory=list)
    """What must be said besides."""


def cell(estimate: Estimate, signed: bool = False, tone: str = "") -> Cell:
    """An estimate; ``n/a`` where nothing was scored."""
    text = estimate.text(signed=signed)
    if text == MISSING:
        return Cell(MISSING, tone="soft")
    value, _, interval = text.partition(" ")
    return Cell(value, interval, tone)


def number(value: float | None, digits: int = 0) -> Cell:
    """A number without an interval; ``n/a`` where there is none."""
    return Cell(MISSING, tone="soft") if value is None else Cell(f"{value:,.{digits}f}")


def change(difference: Difference, higher_is_better: bool) -> Cell:
    """A difference, coloured by how it reads."""
    return cell(difference.estimate, True, TONES.get(difference.meaning(higher_is_better), ""))


def headline(sides: Sequence[Side], rows: Sequence[Measure]) -> Grid:
    """A row for each measure: the models' values, and of two models the difference.

    Of more models the differences stand in rows of their own below.
    """
    names = [side.name for side in sides]
    if len(names) == 2:
        found = [(row.label, [*map(cell, row.values), _only_change(row)]) for row in rows]
        return Grid("Headline", ("measure", *names, "difference"), found)
    found = [(row.label, list(map(cell, row.values))) for row in rows]
    found += [(f"{row.label} − {names[0]}", [Cell(""), *(change(d, row.higher_is_better) for d in row.differences)])
              for row in rows if row.differences]  # fmt: skip
    return Grid("Headline", ("measure", *names), found)


def _only_change(row: Measure) -> Cell:
    return change(row.differences[0], row.higher_is_better) if row.differences else Cell("")


def differences(sides: Sequence[Side], rows: Sequence[Measure]) -> Grid:
    """A row for each measure and model that is compared with the first: how sure the difference is."""
    first, *others = [side.name for side in sides]
    found = [
        (row.label, [Cell(name), *described(difference, row.higher_is_better)])
        for row in rows for name, difference in zip(others, row.differences, strict=False)
    ]  # fmt: skip
    title = f"Paired differences, {others[0]} − {first}" if len(others) == 1 else f"Paired differences from {first}"
    many = len(found) > 3
    caption = "Case by case over what both models scored; intervals resample whole prompts. “Unclear” means that the " \
              "interval holds 0." + (f" {UNCORRECTED}" if many else "")  # fmt: skip
    return Grid(title, ("measure", "model", *DESCRIBED), found, caption)


DESCRIBED = ("difference", "p", "reading", "would show", "cases", "prompts")
"""The columns that ``described`` fills. ``would show``: the true difference that shows four times in five."""


def described(difference: Difference, higher_is_better: bool) -> list[Cell]:
    """A difference with all that says how sure it is."""
    e = difference.estimate
    reading = difference.meaning(higher_is_better) or difference.reason or "nothing was scored"
    return [
        change(difference, higher_is_better), Cell(e.p_text().removeprefix("p ").removeprefix("= ") or MISSING),
        Cell(reading), number(minimum_detectable_effect(e), 3), number(e.n or None), number(e.num_clusters),
    ]  # fmt: skip
