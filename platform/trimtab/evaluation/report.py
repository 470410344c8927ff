"""The report: what the evaluations of one or more models say, as one HTML file, one table, JSON and Markdown.

It reads finished outputs and measures nothing itself. A difference between the first and the last
model is shown only where both were measured with the same settings on the same cases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from trimtab import html
from trimtab.artifacts import Outcome, Record, machine, read_log, require_record, run_stage, versions, write_text
from trimtab.config import Config, InputError, placement
from trimtab.evaluation import configurable, figures, following, prefill, retention
from trimtab.evaluation.following import ConfigurationPair
from trimtab.files import LocalPath, Location
from trimtab.schemas import RetentionRow, Verdict, read_rows
from trimtab.stats import EMPTY, Estimate, minimum_detectable_effect

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

STAGE = "report"
EVALUATIONS = {"prefill": prefill.STAGE, "configurable": configurable.STAGE, "retention": retention.STAGE}
NLL = "loss per token on benign answers (nats)"
NUM_EXAMPLES = 3
NO_RECIPE = ("output", "model", "engine", "ray", "base", "prompts")
COUNTS = ("cases", "prompts", "answers", "short_cases", "unparsed", "errors", "judge_errors",
          "generated_tokens")  # fmt: skip


class ReportedModel(Config):
    """A model of the report and where its evaluations lie; one that was not made stays out."""

    name: str = Field(min_length=1, max_length=60)
    """The name shown, such as ``base``."""
    prefill: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate prefill``."""
    configurable: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate configurable``."""
    retention: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate retention``."""


class ReportConfig(Config):
    """``trimtab report``: write the report."""

    output: LocalPath = placement()
    """Folder of the output: report.html, report.md, report.json, pictures, record.json."""
    models: tuple[ReportedModel, ...] = Field(min_length=1)
    """The models; the first is the baseline that the last is compared with."""
    training: LocalPath | None = placement(None)
    """Output of ``trimtab train``: adds its loss and margin."""
    synthesis: Location | None = placement(None)
    """Output of ``trimtab synthesize``, a folder or its URI: adds its settings and counts."""
    title: str = "trimtab report"

    @model_validator(mode="after")
    def _check(self) -> ReportConfig:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ, these are {', '.join(names)}; rename one")
        return self


@dataclass(frozen=True)
class Side:
    """A reported model and the records of its evaluations, by kind."""

    model: ReportedModel
    records: dict[str, Record]

    def estimate(self, kind: str, *keys: str) -> Estimate:
        """A result of an evaluation; empty where it was not made."""
        found: Any = self.records[kind].results if kind in self.records else {}
        for key in keys:
            found = found.get(key) or {}
        return Estimate.model_validate(found) if found else EMPTY

    def folder(self, kind: str) -> Path:
        """The output folder of an evaluation that was made."""
        return Path(getattr(self.model, kind))


@dataclass(frozen=True)
class Difference:
    """Last − first over the same cases, or the reason why there is none."""

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
            return "unclear"
        return "better" if (e.low > 0) == higher_is_better else "worse"


@dataclass(frozen=True)
class Measure:
    """A row of the headline table: a value for each model, and the difference where one is defined."""

    label: str
    values: tuple[Estimate, ...]
    difference: Difference | None = None
    higher_is_better: bool = True

    @property
    def meaning(self) -> str:
        return self.difference.meaning(self.higher_is_better) if self.difference else ""


def run(config: ReportConfig) -> Record:
    """Write the report. Running it again skips what is done.

    Raises:
        InputError: an input is missing, unfinished or made by another stage.
    """
    sides, stages = _sides(config), _stages(config)
    inputs = {f"models.{i}.{kind}": record.fingerprint
              for i, side in enumerate(sides) for kind, record in side.records.items()}  # fmt: skip
    inputs |= {name: record.fingerprint for name, record in stages.items()}
    return run_stage(STAGE, config.output, config, inputs, partial(_write, config, sides, stages))


def summary_table(config: ReportConfig) -> Table:
    """The headline table for a terminal: values with 95 % intervals, and the paired difference last − first.

    Raises:
        InputError: an input is missing, unfinished or made by another stage.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    sides = _sides(config)
    one_line = len(sides) <= 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("measure", max_width=24)
    for side in sides:
        table.add_column(Text(side.model.name), no_wrap=one_line, max_width=20)
    if len(sides) > 1:
        table.add_column("difference", no_wrap=one_line)
    for row in measures(sides):
        difference = [row.difference.text() if row.difference else ""] if len(sides) > 1 else []
        table.add_row(row.label, *[value.text() for value in row.values], *difference)
    return table


def _sides(config: ReportConfig) -> list[Side]:
    return [
        Side(model, {
            kind: require_record(f"models.{number}.{kind}", folder, stage)
            for kind, stage in EVALUATIONS.items() if (folder := getattr(model, kind)) is not None
        })
        for number, model in enumerate(config.models)
    ]  # fmt: skip


def _stages(config: ReportConfig) -> dict[str, Record]:
    made_by = {"synthesis": "synthesize", "training": "train"}
    return {name: require_record(name, folder, stage)
            for name, stage in made_by.items() if (folder := getattr(config, name)) is not None}  # fmt: skip


def measures(sides: list[Side]) -> list[Measure]:
    """The rows of the headline table."""
    changes = {kind: compare(sides[0], sides[-1], kind) for kind in EVALUATIONS} if len(sides) > 1 else {}

    def row(label: str, kind: str, *keys: str, change: bool = False, higher: bool = True) -> Measure:
        values = tuple(side.estimate(kind, *keys) for side in sides)
        return Measure(label, values, changes.get(kind) if change else None, higher)

    return [
        *[row(f"Corr@{k}", "prefill", "corr", str(k)) for k in _ks(sides)],
        row("Corr_mean", "prefill", "corr_mean", change=True),
        row("S0", "configurable", "s0"),
        row("S1", "configurable", "s1"),
        row("S0 + S1", "configurable", "s0_plus_s1", change=True),
        row(NLL, "retention", "nll", change=True, higher=False),
    ]


def _ks(sides: list[Side]) -> list[int]:
    records = [side.records["prefill"] for side in sides if "prefill" in side.records]
    return sorted({int(k) for record in records for k in record.results["corr"]})


def compare(first: Side, last: Side, kind: str) -> Difference:
    """The paired difference of one evaluation between two models, or why there is none."""
    if kind not in first.records or kind not in last.records:
        return Difference(EMPTY, "not measured for both models")
    changed = _changed(first.records[kind], last.records[kind])
    if changed:
        return Difference(EMPTY, f"measured with different settings ({', '.join(changed)})")
    before, after = first.folder(kind), last.folder(kind)
    if kind == "retention":
        return Difference(retention.compare(before, after))
    if kind == "configurable":
        pair = ConfigurationPair.model_validate(first.records[kind].results["pairs"][0]["configurations"])
        if not pair.opposed:
            return Difference(EMPTY, "the first pair has no S0 and S1")
        return Difference(following.compare(before, after, pair))
    try:
        return Difference(prefill.compare(before, after))
    except InputError:
        return Difference(EMPTY, "the two share no scored case")


def _changed(first: Record, last: Record) -> list[str]:
    """Names of the settings that change the cases or their scoring and differ between two records."""
    before, after = _scoring(first), _scoring(last)
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))


def _scoring(record: Record) -> dict[str, Any]:
    found = {key: value for key, value in record.config.items() if key not in NO_RECIPE}
    if isinstance(found.get("source"), dict):
        found["source"] = {key: value for key, value in found["source"].items() if key not in ("data", "path")}
    if "judge_identity" in record.results:
        found["judge"] = record.results["judge_identity"]
    found |= {f"{name}'s content": value for name, value in record.inputs.items() if name not in ("model", "base")}
    if record.stage == retention.STAGE:
        found["the answers scored"] = record.inputs.get("base", record.fingerprint)
    return found


def _write(config: ReportConfig, sides: list[Side], stages: dict[str, Record], output: Path) -> Outcome:
    rows = measures(sides)
    training = config.training
    logs = [read_log(training / name) for name in ("steps.jsonl", "validation.jsonl")] if training else [[], []]
    pictures = _pictures(sides, *logs)
    for name, drawing in pictures.items():
        drawing.savefig(output / f"{name}.png")
    context = {
        "title": config.title, "names": [side.model.name for side in sides], "rows": rows, "reading": reading(sides),
        "findings": findings(rows), "notes": notes(sides, rows), "pictures": pictures, "chat": _chat(sides),
        "examples": _examples(sides), "counts": _counts(sides), "count_names": COUNTS, "stages": stages,
        "records": _records(sides, stages), "machine": machine(), "versions": versions(),
    }  # fmt: skip
    write_text(output / "report.html", html.render("report.html.jinja", **context))
    write_text(output / "report.md", _markdown(config.title, sides, rows, list(pictures)))
    results = _results(sides, rows)
    write_text(output / "report.json", json.dumps(results, indent=2, ensure_ascii=False))
    scored = sum(value.value is not None for row in rows for value in row.values)
    return Outcome(counts={"models": len(sides), "scored_values": scored, "pictures": len(pictures)}, results=results)


def _pictures(sides: list[Side], steps: list[dict[str, Any]], validation: list[dict[str, Any]]) -> dict[str, Figure]:
    curves = {s.model.name: {k: s.estimate("prefill", "corr", str(k)) for k in _ks(sides)} for s in sides}
    points = {s.model.name: (s.estimate("configurable", "s0"), s.estimate("configurable", "s1")) for s in sides}
    drawn = {"corr": figures.corr_curves(curves), "s0_s1": figures.quadrants(points)}
    return drawn | ({"loss": figures.losses(steps, validation)} if steps else {})


def reading(sides: list[Side]) -> list[str]:
    """What was measured, on how much, and by which judge, as sentences."""
    records = [record for side in sides for record in side.records.values()]
    said = [f"{len(sides)} model{'s' if len(sides) > 1 else ''}: {', '.join(side.model.name for side in sides)}."]
    of = {kind: next((s.records[kind].counts for s in sides if kind in s.records), None) for kind in EVALUATIONS}
    if (counts := of["prefill"]) is not None:
        said.append(f"Corr@k is the share of continuations that turn away after the assistant's turn was opened with "
                    f"the first k words of a harmful answer: {counts.get('cases', 0)} cases from "
                    f"{counts.get('prompts', 0)} prompts.")  # fmt: skip
    if (counts := of["configurable"]) is not None:
        said.append(f"S1 is the share of safe answers under a harmless setting, S0 that of unsafe answers under an "
                    f"uncensored one: {counts.get('prompts', 0)} harmful prompts under each.")  # fmt: skip
    if (counts := of["retention"]) is not None:
        said.append(f"The loss per token on {counts.get('prompts', 0)} benign answers shows what general chat lost.")
    judges = sorted({str(record.results["judge"]) for record in records if record.results.get("judge")})
    if judges:
        said.append(f"Judge: {'; '.join(judges)}.")
    if any(judge.startswith("rules") for judge in judges):
        said.append("The rules judge sees words, not meaning: compare models by it, but don't read its values as what "
                    "people would say.")  # fmt: skip
    return [*said, "Brackets hold 95 % intervals."]


def findings(rows: list[Measure]) -> list[str]:
    """One sentence for each paired difference."""
    words = {"better": "better", "worse": "worse", "unclear": "no clear change, the interval holds 0"}
    return [f"{row.label}: {row.difference.text()}, {_how_sure(row.difference.estimate)}{words[row.meaning]}."
            for row in rows if row.difference and row.meaning]  # fmt: skip


def _how_sure(difference: Estimate) -> str:
    """The p value, and the difference that so many prompts would mostly have shown."""
    least = minimum_detectable_effect(difference)
    shown = f"; a true one of {least:.3f} would show four times in five" if least is not None else ""
    return f"{difference.p_text()}{shown}: " if difference.p is not None else ""


def notes(sides: list[Side], rows: list[Measure]) -> list[str]:
    """What a reader must know before trusting the numbers."""
    missing = [f"No difference for {row.label}: {row.difference.reason}."
               for row in rows if row.difference and row.difference.reason]  # fmt: skip
    weak = [
        f"{side.model.name}, {EVALUATIONS[kind]}: {record.counts[name]} of {_total(record)} {text}."
        for side in sides for kind, record in side.records.items()
        for name, text in (("errors", "rows could not be generated and are not scored"),
                           ("unparsed", "rows could not be judged and are not scored"),
                           ("short_cases", "starts are shorter than k words, as the whole response is"))
        if record.counts.get(name)
    ]  # fmt: skip
    return missing + weak


def _total(record: Record) -> int:
    return next((record.counts[name] for name in ("cases", "answers", "prompts") if name in record.counts), 0)


def _counts(sides: list[Side]) -> list[tuple[str, str, list[int | None]]]:
    return [(side.model.name, EVALUATIONS[kind], [record.counts.get(name) for name in COUNTS])
            for side in sides for kind, record in side.records.items()]  # fmt: skip


def _chat(sides: list[Side]) -> list[tuple[str, RetentionRow, RetentionRow]]:
    """Benign prompts with both models' answers: where the loss rose most, where it rose in the middle, and least."""
    if len(sides) > 1 and compare(sides[0], sides[-1], "retention").reason:
        return []
    first, last = ({row.id: row for row in _rows(side, "retention", RetentionRow)} for side in (sides[0], sides[-1]))
    shared = sorted(first.keys() & last.keys(), key=lambda i: (first[i].nll - last[i].nll, i))
    chosen = {0: "largest", len(shared) // 2: "middle", len(shared) - 1: "smallest"}
    return [(name, first[shared[i]], last[shared[i]]) for i, name in chosen.items() if 0 <= i < len(shared)]


def _examples(sides: list[Side]) -> list[tuple[str, int, list[tuple[Verdict, Verdict]]]]:
    """Groups of cases (heading, how many there are, a few of them), chosen by id and not by hand, one a prompt."""
    first, last = ({row.id: row for row in _rows(side, "prefill", Verdict)} for side in (sides[0], sides[-1]))
    both = [(first[i], last[i]) for i in sorted(first.keys() & last.keys())]
    was, now = sides[0].model.name, sides[-1].model.name
    kinds = [(f"{now} still fails to turn away", "no", "no")]
    if len(sides) > 1:
        kinds = [(f"{now} turns away, {was} does not", "no", "yes"), *kinds]
        kinds.append((f"{was} turned away, {now} no longer does", "yes", "no"))
    found = [(text, [p for p in both if (p[0].verdict, p[1].verdict) == (a, b)]) for text, a, b in kinds]
    return [(text, len(pairs), _one_a_prompt(pairs)) for text, pairs in found]


def _one_a_prompt(pairs: list[tuple[Verdict, Verdict]]) -> list[tuple[Verdict, Verdict]]:
    return list({before.request_id: (before, after) for before, after in reversed(pairs)}.values())[::-1][:NUM_EXAMPLES]


def _rows(side: Side, kind: str, cls: Any) -> list[Any]:
    name = "answers.parquet" if cls is RetentionRow else "verdicts.parquet"
    return read_rows(side.folder(kind) / name, cls) if kind in side.records else []


def _records(sides: list[Side], stages: dict[str, Record]) -> list[tuple[str, Record, str]]:
    """(whose, record, its settings as YAML) of everything that the report used."""
    import yaml

    named = [(side.model.name, record) for side in sides for record in side.records.values()]
    named += [("data" if name == "synthesis" else "training", record) for name, record in stages.items()]
    return [(name, record, yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True))
            for name, record in named]  # fmt: skip


def _results(sides: list[Side], rows: list[Measure]) -> dict[str, Any]:
    names = [side.model.name for side in sides]
    return {
        row.label: {
            "values": {name: value.model_dump() for name, value in zip(names, row.values, strict=True)},
            "difference": row.difference.estimate.model_dump() if row.difference else None,
        }
        for row in rows
    }


def _markdown(title: str, sides: list[Side], rows: list[Measure], pictures: list[str]) -> str:
    head = ["measure", *[side.model.name for side in sides], *(["difference"] if len(sides) > 1 else [])]
    table = [head, ["---"] * len(head)]
    for row in rows:
        cells = [row.label, *[value.text() for value in row.values], row.difference.text() if row.difference else ""]
        table.append(cells[: len(head)])
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in table]
    images = [f"![{name}]({name}.png)" for name in pictures]
    said = [f"- {line}" for line in [*findings(rows), *notes(sides, rows)]]
    return "\n".join([f"# {title}", "", " ".join(reading(sides)), "", *lines, "", *said, "", *images, ""])
