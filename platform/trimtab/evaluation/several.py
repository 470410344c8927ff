"""Several models in one run: each is measured as if alone, and compared with the first on the same cases.

The models come one after the other, since each takes all engine actors. Each has an output of its own, so that an
interrupted run goes on where it was, and a model that is added later is the only one to be measured then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from trimtab.artifacts import RECIPE, RECORD, Outcome, Record, run_stage
from trimtab.config import InputError, placement
from trimtab.console import say
from trimtab.engine import VLLMEngine
from trimtab.evaluation.stage import EvaluationConfig, model_folder
from trimtab.registry import refuse_bad_name
from trimtab.stats import Estimate, minimum_detectable_effect

Compare = Callable[[Path, Path], Mapping[str, Estimate]]
AnyModels = TypeVar("AnyModels", bound="ModelsConfig")
OF_SEVERAL = " (models)"
"""Behind the stage of a record that holds several models."""
SUMMED = ("cases", "answers", "refused", "unparsed", "errors", "judge_errors")
OWN_FILES = (RECORD, RECIPE, "plan", "generations", "checkpoint", "released", "judge", "verdicts.parquet",
             "answers.parquet", "quarantine.parquet", "attempts.parquet", "grades", "grades.parquet",
             "documents.parquet", "responses", "retries")  # fmt: skip
"""What an output holds besides its models' folders, so that no model can have such a name."""


class ModelsConfig(EvaluationConfig):
    """The fields of an evaluation that can measure several models."""

    models: dict[str, str] = placement({})
    """Several models by name, the first the one to compare with; each is written to ``output``/name. None: ``model``.
    With an endpoint these are its names of the models."""


def run_models(
    stage: str, config: AnyModels, inputs: dict[str, str], run: Callable[[AnyModels], Record], compare: Compare
) -> Record:
    """Measure each of ``config.models``; those that are done are skipped, and the comparison is made anew.

    Args:
        inputs: fingerprints of what all of them measure.
        run: the evaluation of one model.
        compare: differences (after − before) of two outputs, by the name of what is compared.

    Returns:
        A record of the stage ``… (models)`` whose ``results`` hold ``models`` (each one's results) and ``differences``
        (by model, then by what is compared: an Estimate and the ``minimum_detectable_effect``).

    Raises:
        InputError: a name can't be a folder's, or a model can't be used.
    """
    _refuse_colliding_names(config.models)
    each = {name: _alone(config, name) for name in config.models}
    for one in each.values():
        model_folder(one)  # the last one's mistake shows before the first one's hours

    def work(output: Path) -> Outcome:
        records = {}
        for name, one in each.items():
            say(f"  {name}: {one.model}")
            records[name] = run(one)
        results = {name: record.results for name, record in records.items()}
        return Outcome(counts=_counts(records), results={"models": results, "differences": _differences(each, compare)})

    return run_stage(f"{stage}{OF_SEVERAL}", config.output, config, inputs, work, again=True)


def _refuse_colliding_names(names: Iterable[str]) -> None:
    """Names are folders beside the output's own files, also where a file system takes capitals for small letters."""
    taken = dict.fromkeys(OWN_FILES, "is a name of the output's own files")
    for name in names:
        if problem := taken.get(name.casefold()):
            raise InputError("models", name, problem, "give the model another name")
        taken[name.casefold()] = "stands there twice but for capitals"


def _alone(config: AnyModels, name: str) -> AnyModels:
    """The configuration of one of the models."""
    refuse_bad_name(name)
    engine, reference = config.engine, config.models[name]
    if not isinstance(engine, VLLMEngine):
        engine = engine.model_copy(update={"model": reference})
    alone = {"output": config.output / name, "model": reference, "engine": engine, "models": {}}
    return config.model_copy(update=alone)


def _counts(records: Mapping[str, Record]) -> dict[str, int]:
    found = [record.counts for record in records.values()]
    summed = {name: sum(counts[name] for counts in found) for name in SUMMED if all(name in counts for counts in found)}
    return {"models": len(found), **summed}


def _differences(each: Mapping[str, ModelsConfig], compare: Compare) -> dict[str, dict[str, Any]]:
    first, *others = each
    return {
        name: {what: _described(estimate) for what, estimate in compare(each[first].output, each[name].output).items()}
        for name in others
    }


def _described(difference: Estimate) -> dict[str, Any]:
    return difference.model_dump() | {"minimum_detectable_effect": minimum_detectable_effect(difference)}
