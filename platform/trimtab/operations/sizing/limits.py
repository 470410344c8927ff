"""Where the data plane itself breaks: what grows with the rows in one process, by measured slopes; what to do then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.operations.sizing.config import PlanConfig
from trimtab.operations.sizing.storage import num_files
from trimtab.operations.sizing.work import Work

GIB = 2**30
SPLIT = "several outputs of parts of the source, trained on as one mixture (data)"


@dataclass(frozen=True)
class Limit:
    """Something that grows with a run: ``slope`` for each unit, up to ``most``."""

    name: str
    unit: str
    """What is counted: requests, generations, files, groups."""
    slope: float
    most: float
    measure: str
    """GiB or s."""
    remedy: str

    @property
    def breaks_at(self) -> float:
        """So many units reach ``most``."""
        return self.most / self.slope if self.slope else float("inf")

    def at(self, count: float) -> float:
        """What so many units take."""
        return self.slope * count


def limits(config: PlanConfig) -> list[Limit]:
    """The limits, each on its own unit."""
    n, rows = config.limits, config.rows_per_file
    id_bytes = n.driver_bytes_per_id + n.driver_bytes_per_file / rows
    made_bytes = n.driver_bytes_per_id + n.driver_bytes_per_task / rows
    id_seconds = (n.seconds_per_1000_ids + n.seconds_per_1000_files / rows) / 1000
    bigger = f"a greater engine.rows_per_batch (now {rows}), or {SPLIT}"
    memory, patience = n.driver_gib, 60 * n.resume_minutes
    a_file = n.seconds_per_1000_files_listed / 1000
    return [
        Limit("driver: ids on resume and at the end", "generations", id_bytes / GIB, memory, "GiB", SPLIT),
        Limit("driver: while generations are made", "generations", made_bytes / GIB, memory, "GiB", bigger),
        Limit("driver: selecting requests", "requests", n.driver_bytes_per_request / GIB, memory, "GiB",
              f"a head node with more memory, or {SPLIT}"),
        Limit("time: selecting requests", "requests", n.seconds_per_1000_requests / 1000, patience, "s", SPLIT),
        Limit("time: until a resumed run goes on", "generations", id_seconds, patience, "s", bigger),
        Limit("time: one look at a folder's files", "files", a_file, n.look_s, "s", bigger),
        Limit("filtering actor: finished ids on resume", "generations", n.filter_bytes_per_id / GIB, n.filter_gib,
              "GiB", f"nodes with more memory, or {SPLIT}"),
        Limit("training worker: ids of the groups", "groups", n.worker_bytes_per_group / GIB, memory, "GiB",
              "fewer workers a node, or a seeded part of the data (weight below 1)"),
    ]  # fmt: skip


def count_of(limit: Limit, config: PlanConfig, work: Work) -> float:
    """How many of a limit's units a run has."""
    counts = {"generations": work.generations, "requests": work.requests, "groups": work.groups}
    return float(counts.get(limit.unit) or num_files(config, work))


def broken(config: PlanConfig, work: Work) -> Sequence[Limit]:
    """The limits that a run is over."""
    return [limit for limit in limits(config) if limit.at(count_of(limit, config, work)) > limit.most]
