"""Several evaluations of one model with one start of the engine: their plans are generated together."""

from __future__ import annotations

import json
from pathlib import Path

from trimtab import cluster, models
from trimtab.artifacts import Record
from trimtab.config import InputError
from trimtab.console import say
from trimtab.engine import generate
from trimtab.evaluation import configurable, prefill, retention
from trimtab.evaluation.configurable import ConfigurableConfig
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.evaluation.retention import RetentionConfig
from trimtab.evaluation.stage import Made, control_guard, is_finished, model_folder
from trimtab.judging import require_usable
from trimtab.schemas import Generation, PlanRow, make_id


def run(
    work: Path, prefills: PrefillConfig, configurables: ConfigurableConfig, retentions: RetentionConfig
) -> tuple[Record, Record, Record]:
    """Measure one model three ways. The records are those of the three commands, run one by one.

    Args:
        work: folder of the shared generations.

    Raises:
        InputError: the three don't name the same model and engine.
    """
    if any(
        (config.model, config.engine) != (prefills.model, prefills.engine) for config in (configurables, retentions)
    ):
        raise InputError(
            "model", prefills.model, "the evaluations of a suite differ in model or engine", "make them equal"
        )
    guard = control_guard(prefills)
    plans = [
        (prefills.output, prefill.plan_cases(prefills, guard)[1]),
        (configurables.output, configurable.plan_answers(configurables, guard)),
        (retentions.output, retention.plan_answers(retentions, guard)),
    ]
    place = work / recipe_of(prefills, [row for _, plan in plans for row in plan])
    made = _generated(place, prefills, [row for output, plan in plans if not is_finished(output) for row in plan])
    return prefill.run(prefills, made), configurable.run(configurables, made), retention.run(retentions, made)


def recipe_of(config: PrefillConfig, plan: list[PlanRow]) -> str:
    """A name for what is generated, so that other settings take nothing over from an interrupted run.

    Args:
        plan: all rows, also of evaluations that are done: a resumed run has the same name.
    """
    folder = model_folder(config)
    model = models.fingerprint(folder) if folder else ""
    return make_id(
        model, json.dumps(config.engine.identity(), sort_keys=True), *(row.model_dump_json() for row in plan)
    )


def _generated(work: Path, config: PrefillConfig, plan: list[PlanRow]) -> Made:
    if not plan:
        return lambda rows: []
    require_usable(config.judge)
    say(f"  {len(plan)} generations: prefill cases, answers under two configurations, benign chat")
    cluster.connect(config.ray)
    rows = generate(plan, work, model_folder(config), config.engine, "generations")
    by_id = {row.id: row for row in rows}

    def look_up(wanted: list[PlanRow]) -> list[Generation]:
        return [by_id[row.id] for row in wanted]

    return look_up
