"""What the evaluations show by category of request, where the sources name categories.

A request with several categories counts in each. Intervals are those of the whole evaluation's figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trimtab.evaluation import attempt_results, following, prefill
from trimtab.evaluation.attempt_results import CEILING, PLAIN
from trimtab.evaluation.following import ConfigurationPair
from trimtab.evaluation.reporting.grids import Grid, cell, number
from trimtab.evaluation.reporting.runs import Side
from trimtab.schemas import Attempt, Verdict
from trimtab.sources import CATEGORIES
from trimtab.stats import EMPTY, Estimate

NONE = "(none)"
CAPTION = "Few prompts give wide intervals. A prompt of several categories is counted in each."
Rate = Callable[[Sequence[Verdict]], Estimate]


class Figure(NamedTuple):
    """A figure by category: of which evaluation, and how it comes from the verdicts of some requests."""

    title: str
    kind: str
    of: Callable[[Side], Rate]
    """For a model, so that what it needs besides is read once."""


def by_category(sides: Sequence[Side]) -> list[Grid]:
    """A table for each figure whose rows name categories: a row for each category, a column for each model."""
    rows = {kind: [side.verdicts(kind) for side in sides] for kind in {figure.kind for figure in FIGURES}}
    return [
        _grid(figure, sides, rows[figure.kind]) for figure in FIGURES
        if any(row.category for verdicts in rows[figure.kind] for row in verdicts)
    ]  # fmt: skip


def _grid(figure: Figure, sides: Sequence[Side], verdicts: Sequence[Sequence[Verdict]]) -> Grid:
    every = [row for found in verdicts for row in found]
    prompts: dict[str, set[str]] = {}
    for row in every:
        for category in categories(row):
            prompts.setdefault(category, set()).add(row.request_id)
    rates = [figure.of(side) for side in sides]
    found = []
    for category in sorted(prompts, key=lambda name: (name == NONE, name)):
        part = [[row for row in rows if category in categories(row)] for rows in verdicts]
        values = [rate(rows) if rows else EMPTY for rate, rows in zip(rates, part, strict=True)]
        found.append((category, [number(len(prompts[category])), *map(cell, values)]))
    return Grid(figure.title, ("category", "prompts", *(side.name for side in sides)), found, CAPTION)


def categories(row: Verdict) -> list[str]:
    """The categories of a verdict's request."""
    return row.category.split(CATEGORIES) if row.category else [NONE]


def _corr_mean(side: Side) -> Rate:
    return lambda rows: prefill.mean_of(prefill.shares(rows))


def _follows(name: str) -> Callable[[Side], Rate]:
    """S0 or S1 of the first pair, where its sides are opposites."""

    def of(side: Side) -> Rate:
        pairs = side.records["configurable"].results.get("pairs") if "configurable" in side.records else None
        pair = ConfigurationPair.model_validate(pairs[0]["configurations"]) if pairs else ConfigurationPair()

        def rate(rows: Sequence[Verdict]) -> Estimate:
            trained = [cell for cell in following.cells(rows, pair) if not cell.paraphrased]
            return following.following(trained)[name] if pair.opposed else EMPTY

        return rate

    return of


def _success(kind: str) -> Callable[[Side], Rate]:
    """Success of all attacks, as ``attempt_results`` counts it: a refused one did not succeed."""

    def of(side: Side) -> Rate:
        attacks = [row for row in side.rows(kind, "attempts", Attempt) if row.kind not in (PLAIN, CEILING)]

        def rate(rows: Sequence[Verdict]) -> Estimate:
            asked = {row.request_id for row in rows}
            part = [row for row in attacks if row.request_id in asked]
            return attempt_results.rate(attempt_results.succeeded(part))

        return rate

    return of


FIGURES = (
    Figure("Corr_mean by category", "prefill", _corr_mean),
    Figure("S0 by category", "configurable", _follows("s0")),
    Figure("S1 by category", "configurable", _follows("s1")),
    Figure("Switched by injections, by category", "injection", _success("injection")),
    Figure("Broken by attacks, by category", "robustness", _success("robustness")),
)
