"""What one or more models show, as one table for a terminal: a row for each measure, a column for each model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trimtab.artifacts import Record
from trimtab.evaluation.attempt_results import CEILING, PLAIN, kind_words, success_label
from trimtab.evaluation.following import pairs_of
from trimtab.stats import Estimate

if TYPE_CHECKING:
    from rich.table import Table


def models_table(record: Record) -> Table:
    """The table of a record of Corr@k or of S0 and S1, of one model or of those of ``several.run_models``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    results: Mapping[str, Any] = record.results
    if "models" not in results:
        results = {"models": {"value": results}, "differences": {}}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("measure", max_width=36)
    for name in results["models"]:
        table.add_column(Text(name))
    for label, values in _rows(results):
        table.add_row(Text(label), *[Text(value) for value in values])
    return table


def detectable_lines(record: Record) -> list[str]:
    """What differences this measurement could have shown, a line for each that was compared."""
    return [
        f"{name}, {what}: a true difference of {found['minimum_detectable_effect']:.3f} would show four times in five"
        for name, compared in record.results.get("differences", {}).items() for what, found in compared.items()
        if found["minimum_detectable_effect"] is not None
    ]  # fmt: skip


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """(label, a text for each model): the measures, then the differences from the first model."""
    models = {name: measures(found) for name, found in results["models"].items()}
    first = next(iter(models))
    for label in models[first]:
        yield label, [found[label].text() if label in found else "n/a" for found in models.values()]
    compared = results["differences"]
    for what in next(iter(compared.values()), {}):
        yield f"{what} − {first}", [_difference(compared.get(name, {}).get(what)) for name in models]


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    estimate = Estimate.model_validate({name: found[name] for name in Estimate.model_fields})
    return f"{estimate.text(signed=True)} {estimate.p_text()}".strip()


def measures(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """What one model's results hold, by what it is called: Corr@k, S0 and S1, ability, or the success of attacks.

    Raises:
        InputError: an older version measured it.
    """
    if "corr" in results:
        found = {f"Corr@{k}": estimate for k, estimate in results["corr"].items()}
        found["Corr_mean"] = results["corr_mean"]
    elif "ability" in results:
        found = results["ability"]
    elif "kinds" in results:
        found = dict(_attacked(results))
    else:
        pairs = pairs_of(results, "the output")
        found = {label: estimate for pair in pairs for label, estimate in _pair(pair)}
    return {label: Estimate.model_validate(estimate) for label, estimate in found.items()}


def _attacked(results: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from ((success_label(kind), results[kind]) for kind in (PLAIN, CEILING) if kind in results)
    for kind, found in results["kinds"].items():
        yield success_label(kind), found["success"]
        yield f"  refused, {kind_words(kind)}", found["refused"]
        if "score" in found:
            yield f"  score, {kind_words(kind)}", found["score"]
        if f"difference_from_{PLAIN}" in found:
            yield f"  minus {PLAIN}, {kind_words(kind)}", found[f"difference_from_{PLAIN}"]
    yield "success, any of them", results["any_attack"]


def _pair(pair: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    first, second = pair["pair"]
    both = f"{first} / {second}"
    if "s0" not in pair:
        yield f"answers differ, {both}", pair["answers_differ"]
        yield from ((f"safe, {label}", estimate) for label, estimate in pair["safe"].items())
        return
    for words, found in (("", pair), (" in other words", pair.get("paraphrased"))):
        if found:
            yield f"S0, {first}{words}", found["s0"]
            yield f"S1, {second}{words}", found["s1"]
            yield f"S0 + S1, {both}{words}", found["s0_plus_s1"]
