"""The report: what the evaluations of one or more models say, as one HTML file, tables, pictures, JSON and Markdown.

It reads finished outputs and measures nothing itself; see ``reporting`` for its rooms. A difference from the first
model is shown only where both were measured with the same settings on the same cases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.artifacts import Outcome, Record, read_log, read_record, run_stage, write_text
from trimtab.evaluation.reporting import markdown, page
from trimtab.evaluation.reporting.comparing import Measure, measures
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.reporting.grids import Grid, headline
from trimtab.evaluation.reporting.runs import Side, sides_of, stages_of, with_runs

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["STAGE", "ReportConfig", "ReportedModel", "run", "summary_table"]

STAGE = "report"


def run(config: ReportConfig) -> Record:
    """Write the report. Running it again skips what is done, unless an input was made anew.

    Returns:
        A record whose ``results`` hold ``measures`` (by label: the models' values, and the other models' differences
        from the first) and ``tables`` (the further ones, as text).

    Raises:
        InputError: an input is missing, unfinished or made by another stage, or it isn't clear which model it is of.
    """
    config = with_runs(config)
    sides, stages = sides_of(config), stages_of(config)
    inputs = {f"models.{i}.{kind}": record.fingerprint
              for i, side in enumerate(sides) for kind, record in side.records.items()}  # fmt: skip
    inputs |= {name: record.fingerprint for name, record in stages.items()}
    used = [*stages.values(), *(record for side in sides for record in side.records.values())]
    work = partial(_write, config, sides, stages)
    return run_stage(STAGE, config.output, config, inputs, work, again=_is_older(config.output, used))


def _is_older(output: Path, used: Sequence[Record]) -> bool:
    """Whether an input was made after the report: of the same recipe, but sampled or judged once more."""
    done = read_record(output)
    return done is not None and any(record.created > done.created for record in used)


def summary_table(config: ReportConfig) -> Table:
    """The headline table for a terminal: values with 95 % intervals, and the paired differences from the first model.

    Raises:
        InputError: as ``run``.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sides = sides_of(with_runs(config))
    grid = headline(sides, measures(sides))
    one_line = len(sides) <= 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("measure", max_width=24)
    for name in grid.head[1:]:
        table.add_column(Text(name), no_wrap=one_line, max_width=None if name == "difference" else 20)
    for label, cells in grid.rows:
        table.add_row(Text(label), *[Text(str(cell)) for cell in cells])
    return table


def _write(config: ReportConfig, sides: list[Side], stages: dict[str, Record], output: Path) -> Outcome:
    rows, training = measures(sides), config.training
    logs = [read_log(training / name) for name in ("steps.jsonl", "validation.jsonl")] if training else [[], []]
    tables, pictures = page.grids(sides, rows, stages), page.drawn(sides, *logs)
    for name, drawing in pictures.items():
        drawing.savefig(output / f"{name}.png")
    write_text(output / "report.html", page.render(config.title, sides, rows, tables, pictures, stages))
    further = [grid for name, found in tables.items() if name != "headline" for grid in found]
    write_text(output / "report.md", markdown.report(config.title, sides, rows, further, list(pictures)))
    write_text(output / "model_card.md", markdown.model_card(sides, rows))
    results = {"measures": _measures(sides, rows), "tables": _tables(further)}
    write_text(output / "report.json", json.dumps(results, indent=2, ensure_ascii=False))
    scored = sum(value.value is not None for row in rows for value in row.values)
    return Outcome(counts={"models": len(sides), "scored_values": scored, "pictures": len(pictures)}, results=results)


def _measures(sides: Sequence[Side], rows: Sequence[Measure]) -> dict[str, Any]:
    names = [side.name for side in sides]
    return {
        row.label: {
            "values": {name: value.model_dump() for name, value in zip(names, row.values, strict=True)},
            "differences": {name: found.estimate.model_dump() | {"reason": found.reason}
                            for name, found in zip(names[1:], row.differences, strict=False)},
        }
        for row in rows
    }  # fmt: skip


def _tables(grids: Sequence[Grid]) -> Mapping[str, Any]:
    return {
        grid.title: {"head": list(grid.head), "rows": [[label, *map(str, cells)] for label, cells in grid.rows]}
        for grid in grids
    }
