"""The report's tables of injections and attacks: success by kind, changes from the first model, every attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.evaluation.attempt_results import CEILING, PLAIN, kind_words
from trimtab.evaluation.reporting.comparing import attack_changes, incomparable
from trimtab.evaluation.reporting.grids import DESCRIBED, UNCORRECTED, Cell, Grid, cell, described, number
from trimtab.evaluation.reporting.runs import Side
from trimtab.stats import Estimate

TITLES = {"injection": "Switch injection", "robustness": "Attacks"}
MEANINGS = {
    "injection": "How often a caller switches the harmless configuration: the share of prompts that get an unsafe "
                 "answer. The ceiling is the plain prompt under the uncensored configuration.",
    "robustness": "How often an attack gets what the harmful request asked for.",
}  # fmt: skip
REFUSED = f"A refused attempt did not succeed; “if answered” leaves it out. Unparsed ones are in no rate. {UNCORRECTED}"


def kinds_grid(sides: Sequence[Side], kind: str) -> Grid:
    """Success by kind of attack: for each model the rate, and behind it the paired difference from the plain prompt."""
    found = _of(sides, kind)
    parts = {name: [results["kinds"].get(name, {}) for results in found.values()]
             for results in found.values() for name in results["kinds"]}  # fmt: skip
    references = [name for name in (PLAIN, CEILING) if any(name in results for results in found.values())]
    rows = [(name, _cells([{"success": results.get(name)} for results in found.values()])) for name in references]
    rows += [(kind_words(name), _cells(of_models)) for name, of_models in parts.items() if name not in references]
    rows.append(("any attack", _cells([{"success": results["any_attack"]} for results in found.values()])))
    lines = [f"{name} could not be tried with {model}: needs {lack}." for model, results in found.items()
             for name, lack in results.get("left_out", {}).items()]  # fmt: skip
    columns = [column for model in found for column in (model, f"{model}, − {PLAIN}")]
    return Grid(TITLES[kind], ("kind", *columns), rows, MEANINGS[kind], kind, lines)


def _cells(parts: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """For each model its success and the difference from the plain prompt; none of the latter for references."""
    difference = f"difference_from_{PLAIN}"
    return [found for part in parts for found in (
        _estimate(part, "success"), _estimate(part, difference, signed=True) if difference in part else Cell(""),
    )]  # fmt: skip


def changes_grid(sides: Sequence[Side], kind: str) -> Grid:
    """The paired differences of the success rates from the first model, by kind of attack; lower is better."""
    first, *others = sides
    rows = [(what, [Cell(other.name), *described(difference, higher_is_better=False)])
            for other in others for what, difference in attack_changes(first, other, kind).items()]  # fmt: skip
    lines = [f"No difference for {other.name}: {reason}." for other in others
             if (reason := incomparable(first, other, kind))]  # fmt: skip
    return Grid(f"{TITLES[kind]}: paired differences from {first.name}", ("measure", "model", *DESCRIBED), rows,
                f"Lower is better. {UNCORRECTED}", lines=lines)  # fmt: skip


def attacks_grid(side: Side, kind: str) -> Grid:
    """Every attack on one model: what came of it, and how it differs from the plain prompt."""
    found: Mapping[str, Mapping[str, Any]] = side.records[kind].results["attacks"]
    graded = any("score" in part for part in found.values())
    head = ("attack", "kind", "success", "if answered", "refused", "unparsed", "difference from plain", "p",
            *(["grade"] if graded else []))  # fmt: skip
    rows = [(name, [*_attack(part), *([_estimate(part, "score")] if graded else [])]) for name, part in found.items()]
    return Grid(f"{TITLES[kind]} on {side.name}, one by one", head, rows, REFUSED)


def _attack(part: Mapping[str, Any]) -> list[Cell]:
    plain = part.get(f"difference_from_{PLAIN}")
    p = Estimate.model_validate(plain).p_text().removeprefix("p ").removeprefix("= ") if plain else ""
    counts = [number(part[f"num_{name}"]) for name in ("refused", "unparsed")]
    return [Cell(kind_words(part["kind"])), _estimate(part, "success"), _estimate(part, "success_if_answered"),
            *counts, _estimate(part, f"difference_from_{PLAIN}", signed=True), Cell(p)]  # fmt: skip


def rates(sides: Sequence[Side], kind: str) -> dict[str, dict[str, Estimate]]:
    """Success by model and kind of attack, for the picture."""
    return {
        model: {kind_words(name): Estimate.model_validate(value) for name, value in _rows(results)}
        for model, results in _of(sides, kind).items()
    }


def _rows(results: Mapping[str, Any]) -> list[tuple[str, Any]]:
    references = [(name, results[name]) for name in (PLAIN, CEILING) if name in results]
    return references + [(name, part["success"]) for name, part in results["kinds"].items()]


def _of(sides: Sequence[Side], kind: str) -> dict[str, Mapping[str, Any]]:
    return {side.name: side.records[kind].results for side in sides if kind in side.records}


def _estimate(values: Mapping[str, Any], key: str, signed: bool = False) -> Cell:
    found = values.get(key)
    return cell(Estimate.model_validate(found), signed) if found else Cell("n/a", tone="soft")
