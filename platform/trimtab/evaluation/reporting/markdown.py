"""The report as Markdown: a whole one to read, and a table to paste into a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from trimtab.evaluation.reporting import words
from trimtab.evaluation.reporting.comparing import Measure
from trimtab.evaluation.reporting.grids import Grid, headline
from trimtab.evaluation.reporting.runs import Side

MARKS = re.compile(r"([\\`*<>|]|\](?=[(\[:]))")
"""What begins or ends something in Markdown; brackets alone do not, and hold our intervals."""


def report(
    title: str, sides: Sequence[Side], rows: Sequence[Measure], grids: Iterable[Grid], pictures: list[str]
) -> str:
    """The sentences, the tables and the pictures of the page."""
    images = [f"![{name}]({name}.png)" for name in pictures]
    said = [f"- {plain(line)}" for line in [*words.findings(sides, rows), *words.notes(sides, rows)]]
    further = [line for grid in grids for line in _section(grid)]
    head = [f"# {plain(title)}", "", plain(" ".join(words.reading(sides))), ""]
    main = [*table(headline(sides, rows)), "", plain(words.direction(rows)), "", *said]
    return "\n".join([*head, *main, *further, "", *images, ""])


def model_card(sides: Sequence[Side], rows: Sequence[Measure]) -> str:
    """The headline table with what one must know to read it."""
    said = plain(" ".join([words.direction(rows), *words.reading(sides)]))
    notes = [f"- {plain(line)}" for line in words.notes(sides, rows)]
    prints = [f"- {plain(side.name)}, {record.stage}: `{record.fingerprint}`"
              for side in sides for record in side.records.values()]  # fmt: skip
    lines = ["## Evaluation", "", *table(headline(sides, rows)), "", said, "", *notes, *prints]
    return "\n".join([*lines, ""])


def _section(grid: Grid) -> list[str]:
    said = [line for text in (grid.caption, *grid.lines) if text for line in ("", plain(text))]
    return ["", f"## {plain(grid.title)}", "", *table(grid), *said]


def table(grid: Grid) -> list[str]:
    """A table's lines."""
    cells = [list(grid.head), ["---"] * len(grid.head)]
    cells += [[plain(label), *(plain(str(cell)) for cell in found)] for label, found in grid.rows]
    cells[0] = [plain(name) for name in cells[0]]
    return ["| " + " | ".join(row) + " |" for row in cells]


def plain(text: str) -> str:
    """A text that is no markup, on one line."""
    return MARKS.sub(r"\\\1", " ".join(text.split()))
