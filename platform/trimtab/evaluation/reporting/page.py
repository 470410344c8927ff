"""The report's page: what the template is given, section by section; a section is there where some run has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab import html
from trimtab.artifacts import Record, machine, versions
from trimtab.evaluation.reporting import attacked, pictures, words
from trimtab.evaluation.reporting.attacked import TITLES
from trimtab.evaluation.reporting.categories import by_category
from trimtab.evaluation.reporting.comparing import Measure, kinds_of, ks_of
from trimtab.evaluation.reporting.config import EVALUATIONS
from trimtab.evaluation.reporting.configurations import pairs_grid
from trimtab.evaluation.reporting.examples import chats, examples
from trimtab.evaluation.reporting.grids import Grid, differences, headline
from trimtab.evaluation.reporting.judges import agreement_grid, judges_grid
from trimtab.evaluation.reporting.runs import Side

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.jinja"


def drawn(sides: Sequence[Side], steps: list[dict[str, Any]], validation: list[dict[str, Any]]) -> dict[str, Figure]:
    """The pictures by name: of what was measured alone."""
    kinds, found = kinds_of(sides), {}
    if "prefill" in kinds:
        curves = {side.name: {k: side.estimate("prefill", "corr", str(k)) for k in ks_of(sides)} for side in sides}
        found["corr"] = pictures.corr_curves(curves, words.unit(sides))
    if "configurable" in kinds:
        points = {s.name: (s.estimate("configurable", "s0"), s.estimate("configurable", "s1")) for s in sides}
        if any(None not in (s0.value, s1.value) for s0, s1 in points.values()):
            found["s0_s1"] = pictures.quadrants(points)
    for kind in TITLES:
        if kind in kinds:
            found[kind] = pictures.attack_rates(attacked.rates(sides, kind), "share of attempts that succeed")
    return found | ({"loss": pictures.losses(steps, validation)} if steps else {})


def grids(sides: Sequence[Side], rows: Sequence[Measure], stages: Mapping[str, Record]) -> dict[str, list[Grid]]:
    """The tables by section, those that have rows."""
    calibrations = [record for name, record in stages.items() if name.startswith("calibrations.")]
    many = len(sides) > 1
    found = {
        "headline": [headline(sides, rows)],
        "differences": [differences(sides, rows)] if many else [],
        "configurations": [pairs_grid(sides)],
        "attacks": [grid for kind in kinds_of(sides) if kind in TITLES for grid in _attacks(sides, kind)],
        "categories": by_category(sides),
        "judge": [judges_grid(sides, calibrations), agreement_grid(calibrations)],
        "single": [attacked.attacks_grid(side, kind) for kind in TITLES for side in sides if kind in side.records],
    }
    return {name: [grid for grid in section if grid.rows or grid.lines] for name, section in found.items()}


def _attacks(sides: Sequence[Side], kind: str) -> list[Grid]:
    changes = [attacked.changes_grid(sides, kind)] if len(sides) > 1 else []
    return [attacked.kinds_grid(sides, kind), *changes]


def render(
    title: str, sides: Sequence[Side], rows: Sequence[Measure], tables: Mapping[str, list[Grid]],
    drawings: Mapping[str, Figure], stages: Mapping[str, Record],
) -> str:  # fmt: skip
    """The whole page."""
    return html.render(
        TEMPLATE, title=title, names=[side.name for side in sides], reading=words.reading(sides),
        findings=words.findings(sides, rows), notes=words.notes(sides, rows), pictures=drawings, grids=tables,
        bands=words.bands(sides), kinds=kinds_of(sides), chats=chats(sides), examples=examples(sides),
        counts=_counts(sides), count_names=words.COUNTS, stages=_summaries(stages), records=_records(sides, stages),
        machine=machine(), versions=versions(), unit=words.unit(sides), direction=words.direction(rows),
        compared=[row.label for row in rows if row.differences],
    )  # fmt: skip


def _counts(sides: Sequence[Side]) -> list[tuple[str, str, list[int | None]]]:
    return [(side.name, EVALUATIONS[kind], [record.counts.get(name) for name in words.COUNTS])
            for side in sides for kind, record in side.records.items()]  # fmt: skip


def _summaries(stages: Mapping[str, Record]) -> list[tuple[str, str]]:
    """(stage, its counts in a sentence)."""
    return [(record.stage, ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in record.counts.items()))
            for record in stages.values()]  # fmt: skip


def _records(sides: Sequence[Side], stages: Mapping[str, Record]) -> list[tuple[str, Record, str]]:
    """(whose, record, its settings as YAML) of everything that the report used."""
    import yaml

    called = {"synthesis": "data", "training": "training"}
    named = [(side.name, record) for side in sides for record in side.records.values()]
    named += [(called.get(name, "judge"), record) for name, record in stages.items()]
    return [(name, record, yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True))
            for name, record in named]  # fmt: skip
