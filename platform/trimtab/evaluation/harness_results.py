"""What the lm-eval-harness found, as plain values: metrics with standard errors, and what each document scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from trimtab.schemas import ScoredDocument, make_id


@dataclass(frozen=True)
class Measured:
    """A metric of a task, or of a group of tasks, as the harness gives it."""

    name: str
    metric: str
    """The metric, with its filter where there is one: ``acc``, ``exact_match (strict-match)``."""
    value: float | None
    standard_error: float | None
    n: int
    tasks: tuple[str, ...]
    """The task itself, or those of the group."""
    asked: bool
    """Whether it was asked for by name; if not, it is a part of a group that was."""
    higher_is_better: bool | None


@dataclass(frozen=True)
class Found:
    """What a job gives back."""

    measured: tuple[Measured, ...]
    documents: tuple[ScoredDocument, ...]
    task_versions: dict[str, str] = field(default_factory=dict)
    num_fewshot: dict[str, int] = field(default_factory=dict)
    harness_version: str = ""


def taken_apart(results: Mapping[str, Any], members: Mapping[str, tuple[str, ...]], asked: frozenset[str]) -> Found:
    """The harness's results as plain values.

    Args:
        results: what ``lm_eval.simple_evaluate`` returns.
        members: the tasks of each group, and each task itself.
        asked: the names that were asked for.
    """
    found = [
        Measured(name, _label(metric, kept), _number(value), _number(numbers.get(f"{metric}_stderr,{kept}")),
                 _count(results, numbers, name, metric, kept), members[name], name in asked,
                 results.get("higher_is_better", {}).get(name, {}).get(metric))
        for name, numbers in results["results"].items() if name in members
        for metric, kept, value in _metrics(numbers)
    ]  # fmt: skip
    means = {(one.name, one.metric): one.value for one in found}
    documents = [row for name, samples in results["samples"].items() for row in _documents(name, samples, means)]
    return Found(
        tuple(found), tuple(documents), {name: str(version) for name, version in results["versions"].items()},
        dict(results["n-shot"]), str(results.get("lm_eval_version", "")),
    )  # fmt: skip


def _metrics(numbers: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(metric, filter, value): the harness's keys are ``metric,filter``, beside ``metric_stderr,filter`` and others."""
    for key, value in numbers.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield metric, kept, value


def _label(metric: str, kept: str) -> str:
    return metric if kept == "none" else f"{metric} ({kept})"


def _number(value: Any) -> float | None:
    """A finite number; None for what the harness writes where there is none."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _count(results: Mapping[str, Any], numbers: Mapping[str, Any], name: str, metric: str, kept: str) -> int:
    """Documents behind a metric: some tasks leave a metric out for some documents."""
    if name in results["samples"]:
        return sum(sample["filter"] == kept and metric in sample for sample in results["samples"][name])
    return int(numbers.get("sample_count", {}).get(f"{metric},{kept}", numbers.get("sample_len", 0)))


def _documents(
    name: str, samples: Sequence[Mapping[str, Any]], means: Mapping[tuple[str, str], float | None]
) -> Iterator[ScoredDocument]:
    """The documents' values of each metric that is their mean; a perplexity or an F1 is none, and has no rows."""
    values: dict[str, dict[tuple[int, str], Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            place = int(sample["doc_id"]), str(sample["doc_hash"])
            values.setdefault(_label(metric, sample["filter"]), {})[place] = sample[metric]
    for metric, by_document in values.items():
        scored = {place: _number(value) for place, value in by_document.items()}
        if _is_mean(scored.values(), means.get((name, metric))):
            for (number, digest), value in scored.items():
                row_id = make_id("document", name, metric, number, digest)
                yield ScoredDocument(id=row_id, task=name, metric=metric, document=digest, value=value or 0.0)


def _is_mean(values: Any, mean: float | None) -> bool:
    found = [value for value in values if value is not None]
    whole = mean is not None and len(found) == len(values) > 0
    return whole and math.isclose(sum(found) / len(found), mean or 0.0, rel_tol=1e-6, abs_tol=1e-9)
