"""The report's table of every pair of safety configurations, where the headline's first pair is not all there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.evaluation import tables
from trimtab.evaluation.reporting.grids import MISSING, Cell, Grid, cell
from trimtab.evaluation.reporting.runs import Side
from trimtab.stats import Estimate

CAPTION = "“In other words”: under wordings of a configuration that no model was trained on. Of pairs that are no " \
          "opposites in safety it is shown how often the two answers differ, and how often each is safe."  # fmt: skip


def pairs_grid(sides: Sequence[Side]) -> Grid:
    """A row for each measure of each pair; none where all pairs are the headline's, in the trained words."""
    pairs = [_pairs(side) for side in sides]
    found = [_cells(of_side) for of_side in pairs]
    labels = dict.fromkeys(label for cells in found for label in cells)
    rows = [(label, [cells.get(label, Cell(MISSING, tone="soft")) for cells in found]) for label in labels]
    head = ("measure", *(side.name for side in sides))
    return Grid("Every pair of configurations", head, rows if any(map(_says_more, pairs)) else [], CAPTION)


def _pairs(side: Side) -> Sequence[Mapping[str, Any]]:
    """The pairs of a side's evaluation; none where it was not made, or by a version that named none."""
    record = side.records.get("configurable")
    found: Sequence[Mapping[str, Any]] = record.results.get("pairs", []) if record else []
    return found


def _says_more(pairs: Sequence[Mapping[str, Any]]) -> bool:
    return len(pairs) > 1 or any("paraphrased" in pair or "s0" not in pair for pair in pairs)


def _cells(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for pair in pairs:
        found |= {label: cell(estimate) for label, estimate in tables.measures({"pairs": [pair]}).items()}
        if other := pair.get("paraphrased"):
            label = f"S0 + S1, other words − trained ones, {' / '.join(pair['pair'])}"
            found[label] = cell(Estimate.model_validate(other["difference"]), signed=True)
    return found
