"""The work on one shard: its part of the plan, and its groups from the committed files. No shuffle over shards.

Each function takes a shard's number, reads and writes that shard's files alone and gives back counts, so that
``over_shards`` can run it here or as Ray tasks. What is written already is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from trimtab.chat import ControlGuard
from trimtab.console import Progress
from trimtab.files import AnyPath, at_once, files_in, parquet_source
from trimtab.safety import SafetyConfig
from trimtab.schemas import (
    Generation,
    PlanRow,
    Quarantined,
    RankedGroup,
    Request,
    group_file,
    read_files,
    write_rows,
)
from trimtab.synthesis.passes import Checks, GeneratingRecipe, Made, group_of, material, pass_folder, quarantine, walk
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.requests import read_shard, write_quarantined

FEW_SHARDS = 2
"""So many shards are faster in this process than in Ray tasks, which have to start."""
Result = TypeVar("Result")
FilesOf = dict[int, list[list[AnyPath]]]
"""Shard -> for each attempt, the files that hold rows of it."""


@dataclass(frozen=True)
class ShardWork:
    """What all shards of a run share."""

    output: AnyPath
    recipe: GeneratingRecipe
    quality: QualityConfig
    model: str | None
    files: FilesOf = field(default_factory=dict)


def over_shards(work: Callable[[int], Result], shards: Sequence[int], label: str, num_cpus: int = 1) -> list[Result]:
    """``work`` of every shard, in Ray tasks where there are more than a few; results in the shards' order.

    Args:
        num_cpus: what each task asks of Ray.
    """
    if len(shards) <= FEW_SHARDS:
        return [work(shard) for shard in shards]
    import ray

    task = ray.remote(work_on).options(name=label, num_cpus=num_cpus)
    shared = ray.put(work)
    waiting = {task.remote(shared, shard): shard for shard in shards}
    done: dict[int, Result] = {}
    with Progress(label, len(shards), "shards") as progress:
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            done[waiting.pop(ready)] = ray.get(ready)
            progress.update(len(done))
    return [done[shard] for shard in shards]


def work_on(work: Callable[[int], Result], shard: int) -> Result:
    """What a Ray task does."""
    return work(shard)


def plan_file(output: AnyPath, name: str, attempt: int, shard: int) -> AnyPath:
    """Where the plan of a shard stands; ``attempt`` 0, or the number of the retry that made more requests go on."""
    return pass_folder(output, name) / "plan" / f"{shard:05d}-{attempt}.parquet"


def plan_shard(work: ShardWork, name: str, attempt: int, shard: int) -> int:
    """Write the rows of a pass that are not made yet; returns their number."""
    made, rows, bad = made_of(work, shard), [], []
    guard = ControlGuard.from_folder(work.model) if work.model else None
    for request in read_shard(work.output, shard):
        try:
            refuse_control_tokens(guard, request)
            now = walk(material(request, work.recipe), work.recipe, Checks(work.quality, guard), made, shard)
            if now.next_pass == name:
                rows += [_checked(guard, row) for row in now.rows]
        except ValueError as error:
            bad.append(quarantine(request, error, "plan"))
    write_quarantined(work.output, f"plan-{name or 'only'}-{shard:05d}-{attempt}", bad)
    if rows or attempt == 0:
        write_rows(plan_file(work.output, name, attempt, shard), PlanRow, rows)
    return len(rows)


def refuse_control_tokens(guard: ControlGuard | None, request: Request) -> None:
    """A text from outside must not hold control tokens of the model; an endpoint renders for itself."""
    if guard:
        guard.refuse("prompt", request.prompt)
        guard.refuse("response", request.harmful)


def _checked(guard: ControlGuard | None, row: PlanRow) -> PlanRow:
    """The row, whose prompt may hold what a model wrote in an earlier pass."""
    if guard:
        guard.refuse(f"{row.kind}.prompt", row.prompt)
    return row


def made_of(work: ShardWork, shard: int) -> Made:
    """What the engine wrote for a shard so far, in all passes; later attempts count."""
    made = Made()
    for files in work.files.get(shard, []):
        made.add(read_files(files, Generation, shard))
    return made


def assemble_shard(work: ShardWork, shard: int) -> dict[str, int]:
    """Write the groups of a shard and their flips, and quarantine what gave none; returns counts."""
    path = group_file(work.output, shard)
    groups: list[RankedGroup] = []
    bad: list[Quarantined] = []
    made = made_of(work, shard)
    guard = ControlGuard.from_folder(work.model) if work.model else None
    without = 0
    for request in read_shard(work.output, shard):
        group = _assembled(work, guard, request, made, bad)
        if group is None:
            without += 1
            continue
        groups += [group, *_flips(group, work.recipe)]
    write_quarantined(work.output, f"{shard:05d}", bad)
    write_rows(path, RankedGroup, groups)
    pairs = sum(group.num_pairs for group in groups)
    tokens = sum(row.num_tokens for row in made.rows.values())
    return {"groups": len(groups), "pairs": pairs, "requests_without_group": without, "generated_tokens": tokens,
            "generations": len(made.rows)}  # fmt: skip


def _assembled(
    work: ShardWork, guard: ControlGuard | None, request: Request, made: Made, bad: list[Quarantined]
) -> RankedGroup | None:
    """The group of a request; None where it has none, with the reasons added to ``bad`` unless planning gave them."""
    try:
        item = material(request, work.recipe)
    except ValueError:
        return None  # planning has quarantined it
    now = walk(item, work.recipe, Checks(work.quality, guard), made)
    if not now.chosen:
        bad += [row.model_copy(update={"source_row": request.source_row}) for row in now.bad]
        return None
    try:
        return group_of(item, work.recipe, now.chosen)
    except ValueError as error:
        bad.append(quarantine(request, error, "group"))
        return None


def _flips(group: RankedGroup, recipe: GeneratingRecipe) -> list[RankedGroup]:
    return [group.flip(preset, SafetyConfig(preset=preset).render()) for preset in recipe.flips]


def shard_files(folders: Sequence[AnyPath]) -> FilesOf:
    """Which generation files hold rows of which shard, by the files' own statistics.

    Args:
        folders: folders of generations, later attempts behind earlier ones.
    """
    found: FilesOf = {}
    for folder in folders:
        mine: dict[int, list[AnyPath]] = {}
        files = files_in(folder)
        for path, shards in zip(files, at_once(_shards_in, files), strict=True):
            for shard in shards:
                mine.setdefault(shard, []).append(path)
        for shard, files in mine.items():
            found.setdefault(shard, []).append(files)
    return found


def _shards_in(path: AnyPath) -> range:
    """From the least to the greatest shard of a file's rows; a file holds neighbours."""
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(parquet_source(path)).metadata
    place = metadata.schema.names.index("shard")
    columns = [metadata.row_group(i).column(place).statistics for i in range(metadata.num_row_groups)]
    if not columns:
        return range(0)
    return range(min(column.min for column in columns), max(column.max for column in columns) + 1)
