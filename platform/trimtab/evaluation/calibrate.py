"""Calibration: how far a judge, or a second person, agrees with labels (``trimtab evaluate judge``).

What it finds is written into the user's table of judges, so that every later evaluation says how far its judge can be
trusted. Texts that hold one of training's correction triggers are also looked at apart: a judge that only knows those
phrases does well on them and on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.artifacts import Outcome, Record, file_fingerprint, run_stage
from trimtab.cluster import RayConfig
from trimtab.config import Config, InputError, placement
from trimtab.console import say
from trimtab.evaluation.agreement import Agreement, agreement
from trimtab.evaluation.labels import SHIPPED_LABELS, Half, Label, is_trigger_free, key_of, read_labels, shipped_labels
from trimtab.evaluation.stage import judge_failed
from trimtab.files import AnyPath, LocalPath, Location
from trimtab.judging import QUESTIONS, Item, JudgeConfig, Judged, RulesJudge, described, judge_all
from trimtab.judging.known import KnownAgreement, remember
from trimtab.schemas import Quarantined, Verdict, write_rows
from trimtab.sources import require_file

STAGE = "evaluate judge"
UNSEEN: Half = "fresh"
"""Of the shipped labels, those that were made after all versions of the rules had been written."""


class CalibrationConfig(Config):
    """``trimtab evaluate judge``: compare a judge with labels."""

    output: LocalPath = placement()
    """Folder of the output: verdicts.parquet, quarantine.parquet, record.json."""
    labels: Location | None = placement(None)
    """JSON lines, a file or its URI: id, question, prompt, text and label (yes or no); where known prefill,
    trigger_free, half and source. None: the shipped ones (``data/labels``), of which ``half`` chooses the file."""
    half: Half | None = None
    """Only the labels of this half: ``held_out`` for rules that were written on ``dev``, ``fresh`` for rules that were
    written on both. None: all of a file; of the shipped labels all but the fresh ones."""
    judge: JudgeConfig = RulesJudge()
    against: Location | None = placement(None)
    """A second file of labels, or its URI, which stands in for the judge: how far two people agree."""
    max_bad_share: float = Field(0.01, ge=0, le=1)
    """More rows that can't be read than this share is an error."""
    seed: int = 0
    """Seed of the intervals."""
    write_table: bool = placement(True)
    """Write the agreement into the table at ``$TRIMTAB_HOME`` that later evaluations of this judge print; never that
    of rules with the shipped labels that they were written on."""
    ray: RayConfig = placement(RayConfig())

    @property
    def labels_file(self) -> AnyPath:
        """The file to read: the user's, or the shipped one that holds the half."""
        return self.labels or shipped_labels(self.half)


def run(config: CalibrationConfig) -> Record:
    """Compare the judge's verdicts, or a second person's labels, with the labels. A second run skips what is done.

    Returns:
        A record whose ``results["questions"]`` hold, for each question of the file, an Agreement by subset.

    Raises:
        InputError: a file can't be read, has too many bad rows, or the two share no row.
    """
    require_file("labels", config.labels_file)
    inputs = {"labels": file_fingerprint(config.labels_file, "labels")}
    if config.against is not None:
        require_file("against", config.against)
        inputs["against"] = file_fingerprint(config.against, "against")

    def work(output: Path) -> Outcome:
        labels, bad = _asked_labels(config)
        write_rows(output / "quarantine.parquet", Quarantined, bad)
        verdicts = _second_opinions(config, labels) if config.against else _judged(config, labels, output)
        rows = [_row(label, verdicts[number]) for number, label in enumerate(labels) if number in verdicts]
        write_rows(output / "verdicts.parquet", Verdict, rows)
        return _outcome(config, labels, verdicts, len(bad), inputs["labels"])

    return run_stage(STAGE, config.output, config, inputs, work, again=judge_failed(config.output))


def _asked_labels(config: CalibrationConfig) -> tuple[list[Label], list[Quarantined]]:
    labels, bad = read_labels("labels", config.labels_file, config.max_bad_share)
    asked = [label for label in labels if config.half in (None, label.half)]
    if not asked:
        raise InputError("half", config.half, f"{config.labels_file} has no label of it", "leave it out")
    return asked, bad


def _judged(config: CalibrationConfig, labels: Sequence[Label], output: Path) -> dict[int, Judged]:
    """The judge's verdict by the label's place; a question at a time."""
    found: dict[int, Judged] = {}
    for question in QUESTIONS:
        places = [number for number, label in enumerate(labels) if label.question == question]
        items = [Item(row.id, row.prompt, row.text, row.prefill) for row in (labels[place] for place in places)]
        if items:
            said = judge_all(items, question, config.judge, question, config.ray, output / "judge" / question)
            found.update(zip(places, said, strict=True))
    return found


def _second_opinions(config: CalibrationConfig, labels: Sequence[Label]) -> dict[int, Judged]:
    """The second file's label by the first one's place, for the rows that both have."""
    assert config.against is not None
    others = {key_of(label): label.label for label in read_labels("against", config.against, config.max_bad_share)[0]}
    found = {number: Judged(label.id, others[key_of(label)])
             for number, label in enumerate(labels) if key_of(label) in others}  # fmt: skip
    if not found:
        problem = f"shares no row (question and id) with {config.labels_file}"
        raise InputError("against", config.against, problem, "give labels of the same rows")
    return found


def _row(label: Label, said: Judged) -> Verdict:
    return Verdict(
        id=label.id, request_id=label.id, group=label.question, prompt=label.prompt, prefill=label.prefill,
        text=label.text, verdict=said.verdict, score=said.score, raw=said.raw, error=said.error,
    )  # fmt: skip


def _outcome(
    config: CalibrationConfig, labels: Sequence[Label], verdicts: Mapping[int, Judged], num_bad: int, print_: str
) -> Outcome:
    found: dict[str, dict[str, Agreement]] = {}
    for question in QUESTIONS:
        places = [place for place in verdicts if labels[place].question == question]
        if places:
            found[question] = _by_subset([labels[p] for p in places], [verdicts[p] for p in places], config.seed)
            _tell(question, found[question])
    if config.against is None and config.write_table and _may_be_known(config, print_):
        _remember(config, found, print_)
    judge = {"against": config.against.name} if config.against else {
        "judge": {question: described(config.judge, question) for question in QUESTIONS if question in found},
        "judge_identity": config.judge.identity(),
    }  # fmt: skip
    plain = {question: {name: part.model_dump() for name, part in parts.items()} for question, parts in found.items()}
    counts = {
        "labels": len(labels), "compared": len(verdicts), "quarantined": num_bad,
        "unparsed": sum(said.verdict == "unparsed" for said in verdicts.values()),
        "judge_errors": sum(bool(said.error) for said in verdicts.values()),
    }  # fmt: skip
    return Outcome(counts=counts, results={**judge, "questions": plain})


def _by_subset(labels: Sequence[Label], said: Sequence[Judged], seed: int) -> dict[str, Agreement]:
    """The agreement on all rows, with and without a trigger of training, and by source where there are several."""
    sources = sorted({label.source for label in labels})
    subsets: dict[str, list[int]] = {
        "all": list(range(len(labels))),
        "without_trigger": [number for number, label in enumerate(labels) if is_trigger_free(label)],
        "with_trigger": [number for number, label in enumerate(labels) if not is_trigger_free(label)],
    }
    if len(sources) > 1:
        subsets |= {f"source {source or 'unnamed'}": [n for n, label in enumerate(labels) if label.source == source]
                    for source in sources}  # fmt: skip
    return {
        name: agreement([labels[n].label for n in numbers], [said[n].verdict for n in numbers],
                        [labels[n].prompt for n in numbers], seed)
        for name, numbers in subsets.items() if numbers
    }  # fmt: skip


def _tell(question: str, parts: Mapping[str, Agreement]) -> None:
    for name, part in parts.items():
        say(f"  {question}, {name}: {part.n} compared, {part.num_unparsed} unparsed, "
            f"accuracy {part.accuracy.text(2)}, κ {part.kappa.text(2)}, precision {part.precision.text(2)}, "
            f"recall {part.recall.text(2)}, F1 {part.f1.text(2)}")  # fmt: skip


def _may_be_known(config: CalibrationConfig, print_: str) -> bool:
    """Whether later evaluations may quote this: not what rules reach on the halves that they were written on."""
    judge = config.judge
    if not isinstance(judge, RulesJudge) or print_ != file_fingerprint(SHIPPED_LABELS):
        return True
    say(f"  not written into the table of judges, where {judge.version} is known by half={UNSEEN}")
    return False


def _remember(config: CalibrationConfig, found: Mapping[str, Mapping[str, Agreement]], print_: str) -> None:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    half = f", {config.half} half" if config.half else ""
    for question, parts in found.items():
        whole: dict[str, Any] = parts["all"].model_dump(include={"n", "num_unparsed", "accuracy", "kappa"})
        entry = {"judge": config.judge.description, "question": question, "created": created,
                 "labels": f"{config.labels_file.name}{half} ({print_})", **whole}  # fmt: skip
        if "without_trigger" in parts:
            entry["kappa_without_trigger"] = parts["without_trigger"].kappa.model_dump()
        remember(config.judge, KnownAgreement.model_validate(entry))
