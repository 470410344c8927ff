"""Synthesis with an engine: requests → plan → generations → groups, shard by shard, in one or more passes.

Every step reads what the one before has committed and keeps what it finds done, so the same call goes on after a
kill anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab import cluster
from trimtab.artifacts import Outcome
from trimtab.config import InputError
from trimtab.console import say
from trimtab.engine import generate_plan, ids_in
from trimtab.files import AnyPath, at_once, files_in, parquet_source
from trimtab.schemas import Quarantined
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.passes import GeneratingRecipe, pass_folder, pass_names
from trimtab.synthesis.requests import read_summary, select, write_requests
from trimtab.synthesis.retries import attempts_of, quarantined, retry_folders
from trimtab.synthesis.shards import (
    FEW_SHARDS,
    FilesOf,
    Result,
    ShardWork,
    assemble_shard,
    over_shards,
    plan_file,
    plan_shard,
    shard_files,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from trimtab.engine.ids import Ids

    Floats = npt.NDArray[np.float64]


class Synthesis:
    """One run of a generating recipe in its output folder."""

    def __init__(self, config: SynthesisConfig, recipe: GeneratingRecipe, model: Path | None, output: AnyPath) -> None:
        self.config, self.recipe, self.model, self.output = config, recipe, model, output
        self.names = pass_names(recipe)

    def plan(self) -> list[AnyPath]:
        """Write the requests and the first pass's plan; returns all files of the plan."""
        summary = read_summary(self.output)
        if summary is None:
            selected = select(self.recipe)
            summary = write_requests(self.output, selected, self.config.requests_per_shard)
        self.summary = summary
        if summary["shards"] > FEW_SHARDS:
            cluster.connect(self.config.ray)
        self._plan_pass(self.names[0], 0)
        return [path for name in sorted(self.names) for path in files_in(pass_folder(self.output, name) / "plan")]

    def run(self) -> Outcome:
        """Make all groups."""
        self.plan()
        cluster.connect(self.config.ray)
        attempt = attempts_of(self.output, self.names)
        for name in self.names:
            for number in {0, attempt}:
                self._plan_pass(name, number)
            self._generate(pass_folder(self.output, name), name or "generations")
            for folder in retry_folders(self.output, name):
                self._generate(folder, f"{name or 'generations'}, retry {int(folder.name)}")
        counts = self._assemble()
        rate = measured_rate([pass_folder(self.output, name) / "generations" for name in self.names])
        return Outcome(counts=counts, results={"tokens_per_s": rate})

    def _work(self) -> ShardWork:
        model = str(self.model) if self.model else None
        return ShardWork(self.output.resolve(), self.recipe, self.config.quality, model, self._files())

    def _files(self) -> FilesOf:
        folders = []
        for name in self.names:
            base = pass_folder(self.output.resolve(), name)
            folders += [base / "generations", *(folder / "generations" for folder in retry_folders(base, ""))]
        return shard_files(folders)

    def _plan_pass(self, name: str, attempt: int) -> None:
        there = {path.name for path in files_in(pass_folder(self.output, name) / "plan")}
        todo = [shard for shard in self.shards if plan_file(self.output, name, attempt, shard).name not in there]
        if todo:
            self._over(partial(plan_shard, self._work(), name, attempt), todo, f"plan {name}".strip())

    def _over(self, work: Callable[[int], Result], shards: Sequence[int], label: str) -> list[Result]:
        return over_shards(work, shards, label, self.config.ray.cpus_of_a_core)

    @property
    def shards(self) -> Sequence[int]:
        """The numbers of the shards."""
        return range(self.summary["shards"])

    def _generate(self, folder: AnyPath, label: str) -> None:
        ids = planned_ids(folder)
        say(f"  {label}: {len(ids)} rows of {self.summary['requests']} requests")
        generate_plan(folder, ids, self.model, self.config.engine, label)

    def _assemble(self) -> dict[str, int]:
        """All groups, from the committed generations alone: a retry may have completed more of them."""
        made = self._over(partial(assemble_shard, self._work()), self.shards, "groups")
        total: Counter[str] = Counter()
        for counts in made:
            total.update(counts)
        bad = quarantined(self.output)
        self.refuse_nothing(total["groups"], bad)
        return {**total, **self.summary, "quarantined": len(bad)}

    def refuse_nothing(self, num_groups: int, bad: Sequence[Quarantined]) -> None:
        """An output without a group is none; one that lost most of its requests is pointed out."""
        reasons = Counter(row.reason for row in bad if row.stage != "source").most_common(1)
        if not num_groups:
            problem = f"none of {self.summary['requests']} requests gave a group ({reasons[0][0] if reasons else ''})"
            remedy = f"see {self.output / 'quarantine'}; try another model, source or quality"
            raise InputError("output", self.output, problem, remedy)
        lost = sum(row.stage != "source" for row in bad)
        if 2 * lost > self.summary["requests"]:
            num = self.summary["requests"]
            say(f"  WARNING: {lost} rows of {num} requests are quarantined, mostly: {reasons[0][0]}")


def planned_ids(folder: AnyPath) -> Ids:
    """The ids of a folder's plan, as ``ids_in`` gives them."""
    return ids_in(folder / "plan")


def measured_rate(folders: Sequence[AnyPath]) -> float | None:
    """Generated tokens a second over the time in which the engine held at least one row; None where unknown."""
    import numpy as np

    measured = [found for folder in folders for found in at_once(_busy_in, files_in(folder))]
    tokens = sum(count for count, _ in measured)
    if not tokens:
        return None
    starts, ends = _merged(np.concatenate([spans for _, spans in measured], axis=1))
    busy = float((ends - starts).sum())
    return tokens / busy if busy else None


def _busy_in(path: AnyPath) -> tuple[int, Floats]:
    """A file's tokens and the spans in which the engine held a row of it: each row's own would fill a driver."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.ParquetFile(parquet_source(path)).read(columns=["num_tokens", "seconds", "finished_at"])
    tokens, seconds, ends = (table[name].to_numpy() for name in ("num_tokens", "seconds", "finished_at"))
    known = (ends > 0) & (seconds > 0)
    return int(tokens[known].sum()), _merged(np.stack([(ends - seconds)[known], ends[known]]))


def _merged(spans: Floats) -> Floats:
    """Spans of time, starts above ends, as those of their union."""
    import numpy as np

    starts, ends = spans[:, np.argsort(spans[0])]
    reached = np.maximum.accumulate(ends)
    first = np.concatenate([[True], starts[1:] > reached[:-1]])[: len(starts)]
    return np.stack([starts[first], np.append(reached[:-1][first[1:]], reached[-1:])])
