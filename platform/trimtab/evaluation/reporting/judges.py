"""Who judged, and how far that judge is known to agree with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from trimtab.artifacts import Record
from trimtab.evaluation.reporting.config import EVALUATIONS
from trimtab.evaluation.reporting.grids import Cell, Grid, cell, number
from trimtab.evaluation.reporting.runs import Side
from trimtab.stats import Estimate

MEASURES = ("accuracy", "precision", "recall", "f1", "kappa")
HEAD = (
    "judge or labels, on which labels: question, subset",
    "compared",
    "unparsed",
    "accuracy",
    "precision",
    "recall",
    "F1",
    "Cohen's κ",
)


def judges_grid(sides: Sequence[Side], calibrations: Sequence[Record]) -> Grid:
    """Each judge with its agreement as it was known then, and what it judged."""
    used: dict[tuple[str, bool], dict[str, list[str]]] = {}
    for side in sides:
        for kind, record in side.records.items():
            for field, judged in (("judge", EVALUATIONS[kind]), ("grading", f"grades of {EVALUATIONS[kind]}")):
                if said := record.results.get(field):
                    key = (str(said), _is_calibrated(record, calibrations))
                    used.setdefault(key, {}).setdefault(judged, []).append(side.name)
    rows = [(said, [Cell("; ".join(f"{stage} of {', '.join(names)}" for stage, names in what.items())),
                    Cell("below" if known else "not in this report")])
            for (said, known), what in used.items()]  # fmt: skip
    return Grid("Judge", ("judge, and its agreement with labels as known then", "judged", "calibration"), rows,
                "A judge's mistakes are in every figure that it judged.")  # fmt: skip


def _is_calibrated(record: Record, calibrations: Sequence[Record]) -> bool:
    identity = record.results.get("judge_identity")
    return identity is not None and any(found.results.get("judge_identity") == identity for found in calibrations)


def agreement_grid(calibrations: Sequence[Record]) -> Grid:
    """How far judges, or second people, agree with labels: a row for each question and subset."""
    rows = [(f"{_who(record, question)}, on {_which(record)}: {question}, {subset.replace('_', ' ')}", _agreement(part))
            for record in calibrations for question, parts in record.results["questions"].items()
            for subset, part in parts.items()]  # fmt: skip
    return Grid("Agreement of judges with labels", HEAD, rows, "Precision, recall and F1 are those of “yes”.")


def _who(record: Record, question: str) -> str:
    if "against" in record.results:
        return f"labels {record.results['against']}"
    return str(record.results["judge"][question]).partition(", agreement")[0]


def _which(record: Record) -> str:
    """Which labels: rules do better on those that they were written on."""
    named, half = record.config.get("labels"), record.config.get("half")
    return (PurePosixPath(named).name if named else "shipped labels") + (f", {half} half" if half else "")


def _agreement(part: Mapping[str, Any]) -> list[Cell]:
    values = [cell(Estimate.model_validate(part[name])) for name in MEASURES]
    return [number(part["n"]), number(part["num_unparsed"]), *values]
