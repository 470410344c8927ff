"""Running a plan: Ray Data streams it through the engine and commits rows in small Parquet files.

Exactly once: a plan row has a unique id; Ray Data's row checkpoints remember which ids are written, so the
same call after a crash makes only the others, and at the end every id of the plan is there once. A file
that can't be read any more is taken out together with its checkpoint, and its rows are made again.

A row on which an endpoint failed is asked again by the next call, in ``retries/<n>/``, a folder with plan, generations
and checkpoint like the first try's; the last try counts. What an endpoint refuses, or vLLM can't take, stays as it is.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.config import InputError
from trimtab.console import say
from trimtab.engine.config import EngineConfig, VLLMEngine
from trimtab.engine.endpoint import endpoint_stage, was_refused
from trimtab.engine.ids import ids_in
from trimtab.engine.parts import Parts, mend_checkpoints, remove_unreadable
from trimtab.engine.telemetry import watching
from trimtab.engine.vllm_stage import LIGHT_CPUS, LIGHT_TASKS, num_light_tasks, vllm_stage
from trimtab.engine.writing import write_parquet
from trimtab.files import AnyPath, arrow_paths, files_in
from trimtab.schemas import Generation, PlanRow, read_files, readable, write_rows

if TYPE_CHECKING:
    from trimtab.engine.ids import Ids

RETRIES = "retries"
WAITING_BLOCKS = 10.0
"""Blocks that wait for a stage, for each that it works on; see ``RAY_ENV``, which puts this limit in force."""


def generate(
    plan: list[PlanRow], folder: AnyPath, model: Path | None, engine: EngineConfig, label: str
) -> list[Generation]:
    """Generate the rows of a plan that fits into memory; rows already below ``folder`` are kept.

    Args:
        plan: rows with unique ids, ordered so that shared prefixes stand together.
        folder: holds ``plan/``, ``generations/``, ``checkpoint/`` and perhaps ``retries/``.
        model: the model's folder (vLLM); not used by an endpoint.
        engine: where the model runs.
        label: the name of the progress line.

    Returns:
        One generation for each row, in the plan's order. A row that failed carries its ``error``.

    Raises:
        InputError: two rows have one id.
    """
    twice = [row_id for row_id, count in Counter(row.id for row in plan).items() if count > 1]
    if twice:
        raise InputError("plan", twice[0], "two rows have this id", "remove duplicate requests from the source")
    if not plan:
        return []
    failed = _failed_before(plan, folder, engine)
    _generated(plan, folder, model, engine, label)
    if failed:
        say(f"  {label}: {len(failed)} rows on which the endpoint failed are asked again")
        number = len(_retries(folder)) + 1
        _generated(failed, folder / RETRIES / f"{number:03d}", model, engine, f"{label}, retry {number}")
    found = _made(folder)
    return [found[row.id] for row in plan]


def _generated(plan: list[PlanRow], folder: AnyPath, model: Path | None, engine: EngineConfig, label: str) -> None:
    write_rows(folder / "plan" / "00000.parquet", PlanRow, plan)
    generate_plan(folder, ids_in(folder / "plan"), model, engine, label)


def _failed_before(plan: list[PlanRow], folder: AnyPath, engine: EngineConfig) -> list[PlanRow]:
    """The rows on which an endpoint failed in an earlier run; a vLLM's errors are of the row and come again."""
    if isinstance(engine, VLLMEngine):
        return []
    failed = {row.id for row in _made(folder).values() if row.error and not was_refused(row.error)}
    return [row for row in plan if row.id in failed]


def _made(folder: AnyPath) -> dict[str, Generation]:
    """What is there by id, of several tries the last; a file that a kill tore is left out."""
    tries = [folder, *_retries(folder)]
    files = [path for place in tries for path in files_in(place / "generations") if readable(path)]
    return {row.id: row for row in read_files(files, Generation)}


def _retries(folder: AnyPath) -> list[AnyPath]:
    return files_in(folder / RETRIES, "[0-9]*")


def generate_plan(folder: AnyPath, ids: Ids, model: Path | None, engine: EngineConfig, label: str) -> None:
    """Generate what is missing of the plan in ``folder/plan/*.parquet`` into ``folder/generations/``.

    Args:
        ids: the plan's ids, as ``ids_in`` gives them.

    Raises:
        RuntimeError: rows of the plan were not made, or made twice.
    """
    for name in remove_unreadable(folder):
        say(f"  {label}: {name} could not be read; its rows are made again")
    if gone := mend_checkpoints(folder):
        say(f"  {label}: {gone} generation files are gone; their rows are made again")
    parts = Parts(folder / "generations", ids)
    parts.look()
    if parts.num_there:
        say(f"  {label}: {parts.num_there}/{len(ids)} rows are there already, going on")
    if parts.num_there < len(ids):
        with watching(label, parts, len(ids), str(model)):
            _stream(folder.resolve(), model, engine)
        parts.look()
    _verify(parts, len(ids), label)


def _verify(parts: Parts, total: int, label: str) -> None:
    """Every id of the plan once."""
    if missing := parts.missing:
        raise RuntimeError(f"{label}: {len(missing)} of {total} rows were not generated (such as {missing[0]})")
    if doubled := parts.doubled:
        raise RuntimeError(f"{label}: {len(doubled)} of {total} rows were written twice (such as {doubled[0]})")


def _stream(folder: AnyPath, model: Path | None, engine: EngineConfig) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    places = [folder / name for name in ("plan", "generations", "checkpoint")]
    filesystem, (plan, generations, checkpoint) = arrow_paths(places)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=checkpoint, delete_checkpoint_on_success=False, override_filesystem=filesystem
    )
    context.enable_progress_bars = False
    context.actor_init_retry_on_errors = True
    context.max_consecutive_actor_init_deaths = 3  # a node that goes while its engine starts is no reason to give up
    context.downstream_capacity_backpressure_ratio = WAITING_BLOCKS
    context.execution_no_progress_timeout_s = -1  # an autoscaling cluster may need long to bring a node
    try:
        with warnings.catch_warnings():
            # Ray only warns when a plan can't be checkpointed; a run that can't be resumed must not begin.
            warnings.filterwarnings("error", message=".*doesn't support checkpointing")
            # Ray gives a repartition a CPU and any number of tasks, whatever we say, and joins it only to a map_batches
            # of the like: so reading and repartition are one stage, and no text is copied from one to the other.
            rows = ray.data.read_parquet(plan, filesystem=filesystem)
            rows = rows.map_batches(_as_it_is, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)
            rows = rows.repartition(target_num_rows_per_block=engine.rows_per_block)
            rows = engine_stage(rows, model, engine)
            write_parquet(rows, generations, filesystem, LIGHT_CPUS, _writers(engine))
    finally:
        context.checkpoint_config = None


def _writers(engine: EngineConfig) -> int:
    """As many as the tasks before them, with which Ray joins them only then."""
    return num_light_tasks(engine) if isinstance(engine, VLLMEngine) else LIGHT_TASKS


def _as_it_is(rows: Any) -> Any:
    return rows


def engine_stage(rows: Any, model: Path | None, engine: EngineConfig) -> Any:
    """Plan rows to generations, one row in and one row out: the part of the stream that holds the model."""
    if not isinstance(engine, VLLMEngine):
        return endpoint_stage(rows, engine)
    if model is None:
        raise InputError("model", None, "the vllm engine needs a model", "give a model folder or name")
    return vllm_stage(rows, model, engine)
