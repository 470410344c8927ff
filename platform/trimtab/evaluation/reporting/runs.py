"""Which outputs a report reads, and which model each of them measured.

``trimtab report FOLDER…`` takes any outputs: a record says what made it and which weights it measured, so that the
evaluations of one model find together by themselves. Names are the user's, those of a run of several models, or
taken from the model's reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trimtab.artifacts import RECIPE, RECORD, Record, read_record, require_record
from trimtab.config import InputError
from trimtab.evaluation import calibrate
from trimtab.evaluation.reporting.config import EVALUATIONS, MAX_NAME_CHARS, ReportConfig, ReportedModel
from trimtab.evaluation.several import OF_SEVERAL
from trimtab.schemas import AnyRow, Verdict, read_rows
from trimtab.stats import EMPTY, Estimate

MAX_DEPTH = 3
KIND_OF = {stage: kind for kind, stage in EVALUATIONS.items()}
STAGES = {"train": "training", "synthesize": "synthesis", calibrate.STAGE: "calibrations"}
"""What else a report shows: the stage, and the field that takes its output."""


@dataclass(frozen=True)
class Side:
    """A reported model and the records of its evaluations, by kind."""

    model: ReportedModel
    records: dict[str, Record]

    @property
    def name(self) -> str:
        """The name shown."""
        return self.model.name

    def estimate(self, kind: str, *keys: str) -> Estimate:
        """A result of an evaluation; empty where it was not made."""
        found: Any = self.records[kind].results if kind in self.records else {}
        for key in keys:
            found = found.get(key) or {}
        return Estimate.model_validate(found) if found else EMPTY

    def folder(self, kind: str) -> Path:
        """The output folder of an evaluation that was made."""
        return Path(getattr(self.model, kind))

    def rows(self, kind: str, name: str, cls: type[AnyRow]) -> list[AnyRow]:
        """The rows of an evaluation; none where it was not made."""
        return read_rows(self.folder(kind) / f"{name}.parquet", cls) if kind in self.records else []

    def verdicts(self, kind: str) -> list[Verdict]:
        """What the judge said in an evaluation."""
        return self.rows(kind, "verdicts", Verdict)


@dataclass(frozen=True)
class Run:
    """A finished output that the user named, or that lies below a folder of theirs."""

    kind: str
    folder: Path
    record: Record
    name: str | None
    """The user's name of the model, or that in a run of several models; none: none was given."""

    @property
    def weights(self) -> str:
        """What says that two runs measured the same model: its folder's fingerprint, or an endpoint's name of it."""
        engine = self.record.config.get("engine", {})
        return self.record.inputs.get("model") or f"{engine.get('base_url')} {engine.get('model')}"


def sides_of(config: ReportConfig) -> list[Side]:
    """The models with their records.

    Raises:
        InputError: an input is missing, unfinished or made by another stage.
    """
    return [
        Side(model, {
            kind: require_record(f"models.{number}.{kind}", folder, stage)
            for kind, stage in EVALUATIONS.items() if (folder := getattr(model, kind)) is not None
        })
        for number, model in enumerate(config.models)
    ]  # fmt: skip


def stages_of(config: ReportConfig) -> dict[str, Record]:
    """The records of the training, the synthesis and the judges' calibrations, by a name for each.

    Raises:
        InputError: as ``sides_of``.
    """
    made_by = {"synthesis": "synthesize", "training": "train"}
    found = {name: require_record(name, folder, stage)
             for name, stage in made_by.items() if (folder := getattr(config, name)) is not None}  # fmt: skip
    return found | {f"calibrations.{number}": require_record(f"calibrations.{number}", folder, calibrate.STAGE)
                    for number, folder in enumerate(config.calibrations)}  # fmt: skip


def with_runs(config: ReportConfig) -> ReportConfig:
    """The configuration with the models that ``runs`` are of.

    Raises:
        InputError: there is nothing to report, a run can't be used, or it isn't clear which model it is of.
    """
    if not config.runs:
        if not config.models:
            raise InputError("runs", "none", "nothing to report", "give outputs of evaluations: trimtab report FOLDER…")
        _refuse_empty(config.models)
        return config
    if config.models:
        raise InputError("runs", " ".join(config.runs), "can't be given together with models", "give one of the two")
    found = [run for item in config.runs for run in _read(item, config.output)]
    measured = [run for run in found if run.kind in EVALUATIONS]
    if not measured:
        raise InputError("runs", " ".join(config.runs), "no evaluation is among them", "give outputs of evaluations")
    return config.model_copy(update={"models": _grouped(measured)} | _others(found, config))


def _refuse_empty(models: Sequence[ReportedModel]) -> None:
    for number, model in enumerate(models):
        if all(getattr(model, kind) is None for kind in EVALUATIONS):
            remedy = f"give one of {', '.join(EVALUATIONS)}, or leave the model out"
            raise InputError(f"models.{number}", model.name, "names no output of an evaluation", remedy)


def _read(item: str, report: Path) -> Iterator[Run]:
    """The runs that one argument means; what a report that was broken off left in its own output is none."""
    name, _, folder = item.partition("=") if "=" in item and not Path(item).exists() else ("", "", item)
    place = Path(folder)
    if not place.is_dir():
        raise InputError("runs", item, "no such folder", "give the output of an evaluation, as FOLDER or NAME=FOLDER")
    if len(name) > MAX_NAME_CHARS:
        raise InputError("runs", item, f"the name has {len(name)} characters", f"use at most {MAX_NAME_CHARS}")
    outputs = [output for output in _outputs(place) if output.resolve() != report.resolve()]
    if not outputs:
        raise InputError("runs", item, "holds no output of trimtab", "give the output of an evaluation")
    for output in outputs:
        yield from _runs_of(output, name or None, asked_for=output == place)


def _outputs(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The outputs in a folder, or the folder itself where it is one."""
    if (folder / RECORD).is_file() or (folder / RECIPE).is_file():
        yield folder
    elif depth < MAX_DEPTH:
        for below in sorted(path for path in folder.iterdir() if path.is_dir()):
            yield from _outputs(below, depth + 1)


def _runs_of(output: Path, name: str | None, asked_for: bool) -> Iterator[Run]:
    record = read_record(output)
    if record is None:
        raise InputError("runs", output, "has no record.json (unfinished)", "run it to its end first")
    stage = record.stage.removesuffix(OF_SEVERAL)
    if stage != record.stage and stage in KIND_OF:
        if name is not None:
            raise InputError("runs", f"{name}={output}", "measured several models, which have names", "leave NAME= out")
        for each in record.results["models"]:
            yield Run(KIND_OF[stage], output / each, require_record("runs", output / each, stage), each)
    elif stage in KIND_OF or stage in STAGES:
        yield Run(KIND_OF.get(stage) or STAGES[stage], output, record, name)
    elif asked_for:
        shown = ", ".join([*KIND_OF, *STAGES])
        raise InputError("runs", output, f"was made by {stage}, which a report doesn't show", f"give those of {shown}")


def _grouped(runs: list[Run]) -> tuple[ReportedModel, ...]:
    """A model for each name, in the order of their first runs; runs without a name join the one of their weights."""
    named: dict[str, list[str]] = {}
    for run in sorted(runs, key=lambda run: run.name is None):
        known = named.setdefault(run.weights, [])
        if run.name not in (None, *known) or not known:
            known.append(run.name or _default_name(run))
    models: dict[str, dict[str, Any]] = {}
    weights: dict[str, str] = {}
    for run in runs:
        name = run.name or _only_name(run, named[run.weights])
        if weights.setdefault(name, run.weights) != run.weights:
            raise InputError("runs", run.folder, f"two different models are called {name}", "name them: NAME=FOLDER")
        if run.kind in models.setdefault(name, {}):
            raise InputError("runs", run.folder, f"is a second {EVALUATIONS[run.kind]} of {name}",
                             "give one, or two names: NAME=FOLDER")  # fmt: skip
        models[name][run.kind] = run.folder
    return tuple(ReportedModel(name=name, **folders) for name, folders in models.items())


def _only_name(run: Run, named: list[str]) -> str:
    """The name of a run's weights, which must have but one."""
    if len(named) > 1:
        problem = f"is of a model that has several names ({', '.join(named)})"
        raise InputError("runs", run.folder, problem, "say which: NAME=FOLDER")
    return named[0]


def _default_name(run: Run) -> str:
    """The end of the model's reference; of a training's output/model, the output."""
    engine = run.record.config.get("engine", {})
    reference = str(engine.get("model") or run.record.config.get("model") or "model")
    path = PurePosixPath(reference)
    last = path.parent.name if path.name == "model" and path.parent.name else path.name
    return (last or reference)[-MAX_NAME_CHARS:]


def _others(found: list[Run], config: ReportConfig) -> dict[str, Any]:
    """The training, the synthesis and the calibrations among the runs."""
    of = {field: [run.folder for run in found if run.kind == field] for field in STAGES.values()}
    for field in ("training", "synthesis"):
        given = getattr(config, field)
        if len(of[field]) + (given is not None) > 1:
            raise InputError("runs", of[field][-1], f"is a second {field}, and a report shows one", "leave one out")
    one = {field: of[field][0] for field in ("training", "synthesis") if of[field]}
    return one | {"calibrations": (*config.calibrations, *of["calibrations"])}
