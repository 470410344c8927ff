"""What models show side by side: values, and paired differences from the first model.

A difference is shown only where both models were measured with the same settings on the same cases; else why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trimtab.artifacts import Record
from trimtab.evaluation import ability, attempt_results, following, prefill, retention
from trimtab.evaluation.following import ConfigurationPair, pairs_of
from trimtab.evaluation.reporting.config import EVALUATIONS
from trimtab.evaluation.reporting.runs import Side
from trimtab.stats import EMPTY, Estimate

NLL = "loss per token on benign answers (nats)"
UNCLEAR = "unclear"
PLACES = ("output", "model", "models", "engine", "ray", "base", "prompts", "attacks", "tokenizer", "tasks_folder",
          "batch_size")  # fmt: skip
"""Settings that say where a measurement took its texts and ran; what is in the files is an input of the record."""
NOTHING_SHARED = "the two share no scored case"
NO_MEAN = "it is no mean of what both scored alike"


@dataclass(frozen=True)
class Difference:
    """Another model − the first over the same cases, or the reason why there is none."""

    estimate: Estimate
    reason: str = ""

    def text(self) -> str:
        """``+0.123 [+0.100, +0.150]``, or ``n/a``."""
        return self.estimate.text(signed=True)

    def meaning(self, higher_is_better: bool) -> str:
        """``better``, ``worse`` or ``unclear`` (the interval holds 0); empty where there is none."""
        e = self.estimate
        if e.low is None or e.high is None:
            return ""
        if e.low <= 0 <= e.high:
            return UNCLEAR
        return "better" if (e.low > 0) == higher_is_better else "worse"


@dataclass(frozen=True)
class Measure:
    """A row of the headline table: a value for each model, and a difference for each but the first where defined."""

    label: str
    values: tuple[Estimate, ...]
    differences: tuple[Difference, ...] = ()
    higher_is_better: bool = True

    @property
    def meanings(self) -> tuple[str, ...]:
        """How each difference reads."""
        return tuple(found.meaning(self.higher_is_better) for found in self.differences)


class Figure(NamedTuple):
    """A figure of an evaluation: its name, where it stands in the results, whether it is compared between models."""

    label: str
    keys: tuple[str, ...]
    compared: bool = False
    higher_is_better: bool = True


FIGURES: dict[str, tuple[Figure, ...]] = {
    "prefill": (Figure("Corr_mean", ("corr_mean",), True),),
    "configurable": (Figure("S0", ("s0",)), Figure("S1", ("s1",)), Figure("S0 + S1", ("s0_plus_s1",), True)),
    "injection": (Figure("switched by any injection", ("any_attack",), higher_is_better=False),),
    "robustness": (Figure("broken by any attack", ("any_attack",), higher_is_better=False),),
    "retention": (Figure(NLL, ("nll",), True, higher_is_better=False),),
}
"""The headline's rows, by evaluation; those of each k come before Corr_mean."""


def kinds_of(sides: Sequence[Side]) -> list[str]:
    """The evaluations that at least one model has."""
    return [kind for kind in EVALUATIONS if any(kind in side.records for side in sides)]


def ks_of(sides: Sequence[Side]) -> list[int]:
    """Every k that some model was measured at."""
    records = [side.records["prefill"] for side in sides if "prefill" in side.records]
    return sorted({int(k) for record in records for k in record.results["corr"]})


def measures(sides: Sequence[Side]) -> list[Measure]:
    """The rows of the headline table; of an evaluation that no model has there is none.

    Raises:
        InputError: a run of an older version can't be compared.
    """
    found = [_measure(row, kind, sides) for kind in kinds_of(sides) if kind != "ability" for row in _rows(kind, sides)]
    return found + _abilities(sides)


def _rows(kind: str, sides: Sequence[Side]) -> list[Figure]:
    at_each_k = [Figure(f"Corr@{k}", ("corr", str(k))) for k in ks_of(sides)] if kind == "prefill" else []
    return [*at_each_k, *FIGURES[kind]]


def _measure(row: Figure, kind: str, sides: Sequence[Side]) -> Measure:
    first, *others = sides
    values = tuple(side.estimate(kind, *row.keys) for side in sides)
    changes = tuple(compare(first, other, kind) for other in others) if row.compared else ()
    return Measure(row.label, values, changes, row.higher_is_better)


def _abilities(sides: Sequence[Side]) -> list[Measure]:
    """A row for each metric of each task or group of tasks that some model was asked."""
    results = [side.records["ability"].results for side in sides if "ability" in side.records]
    higher = {label: found["made_of"][label]["higher_is_better"] is not False
              for found in results for label in found["ability"]}  # fmt: skip
    changes = [_ability_changes(sides[0], other) for other in sides[1:]] if results else []
    return [
        Measure(label, tuple(side.estimate("ability", "ability", label) for side in sides),
                tuple(change(label) for change in changes), higher_is_better)
        for label, higher_is_better in higher.items()
    ]  # fmt: skip


def _ability_changes(first: Side, other: Side) -> Callable[[str], Difference]:
    """A function from a metric to its paired difference."""
    if reason := incomparable(first, other, "ability"):
        return lambda label: Difference(EMPTY, reason)
    found = ability.compare(first.folder("ability"), other.folder("ability"))
    return lambda label: _found(found[label]) if label in found else Difference(EMPTY, NO_MEAN)


def compare(first: Side, other: Side, kind: str) -> Difference:
    """The paired difference of an evaluation's one headline figure, or why there is none.

    Args:
        kind: prefill, configurable or retention; for the others see ``attack_changes``.

    Raises:
        InputError: an older version measured it.
    """
    if reason := incomparable(first, other, kind):
        return Difference(EMPTY, reason)
    before, after = first.folder(kind), other.folder(kind)
    if kind == "retention":
        return _found(retention.compare(before, after))
    if kind == "prefill":
        return _found(prefill.compare(before, after))
    pair = ConfigurationPair.model_validate(pairs_of(first.records[kind].results, before)[0]["configurations"])
    if not pair.opposed:
        return Difference(EMPTY, "the first pair has no S0 and S1")
    return _found(following.compare(before, after, pair))


def attack_changes(first: Side, other: Side, kind: str) -> dict[str, Difference]:
    """The paired differences of the success rates, by what is compared; none where the two can't be compared."""
    if incomparable(first, other, kind):
        return {}
    found = attempt_results.compare(first.folder(kind), other.folder(kind))
    return {what: _found(estimate) for what, estimate in found.items()}


def _found(estimate: Estimate) -> Difference:
    return Difference(estimate, "" if estimate.value is not None else NOTHING_SHARED)


def incomparable(first: Side, other: Side, kind: str) -> str:
    """Why an evaluation of two models can't be compared; empty where it can."""
    if kind not in first.records or kind not in other.records:
        return "not measured for both models"
    changed = _changed(first.records[kind], other.records[kind])
    return f"measured with different settings ({', '.join(changed)})" if changed else ""


def _changed(first: Record, other: Record) -> list[str]:
    """Names of the settings that change the cases or their scoring and differ between two records."""
    before, after = _scoring(first), _scoring(other)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _scoring(record: Record) -> dict[str, Any]:
    found = {key: value for key, value in record.config.items() if key not in PLACES}
    if isinstance(found.get("source"), dict):
        found["source"] = {key: value for key, value in found["source"].items() if key not in ("data", "path")}
    if "judge_identity" in record.results:
        found["judge"] = record.results["judge_identity"]
    if "task_versions" in record.results:
        found["task versions"] = record.results["task_versions"]
    found |= {f"{name}'s content": value for name, value in record.inputs.items() if name not in ("model", "base")}
    if record.stage == retention.STAGE:
        found["the answers scored"] = record.inputs.get("base", record.fingerprint)
    return found
