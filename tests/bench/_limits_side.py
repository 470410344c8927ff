"""One measurement of the driver's own limits, in a process of its own, so that its memory is its own."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from trimtab.engine.parts import Parts, mend_checkpoints, remove_unreadable
from trimtab.engine.run import _verify
from trimtab.files import files_in
from trimtab.sources import SourceConfig
from trimtab.synthesis import requests as selection
from trimtab.synthesis.generating import planned_ids
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.training.store import GroupStore

SPARE = 48
"""Prompts held out when a source is selected from."""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(psutil.Process().memory_info().rss)


def highest() -> int:
    """The most bytes in memory since ``forget_highest``."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_highest() -> None:
    """Let ``highest`` begin anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Steps:
    """Seconds, bytes that stay and bytes at the highest, of one step after the other."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        gc.collect()
        self.start = resident()

    def take(self, name: str, work: Callable[[], Any]) -> Any:
        """Do one step and note what it took, above the process's size at the start."""
        forget_highest()
        began = time.monotonic()
        made = work()
        seconds = time.monotonic() - began
        top = highest()
        gc.collect()
        self.found[name] = {"seconds": seconds, "kept_bytes": resident() - self.start, "peak_bytes": top - self.start}
        return made


def resume(folder: Path) -> Steps:
    """What ``generate_plan`` holds and reads when everything is there already."""
    steps = Steps()
    steps.take("listing", lambda: files_in(folder / "generations"))
    ids = steps.take("planned_ids", lambda: planned_ids(folder))
    steps.take("remove_unreadable", lambda: remove_unreadable(folder))
    steps.take("mend_checkpoints", lambda: mend_checkpoints(folder))
    parts = Parts(folder / "generations", ids)
    there = steps.take("committed_ids", lambda: (parts.look(), parts.num_there)[1])
    assert there == len(ids)
    steps.take("look_again", parts.look)
    steps.take("verify", lambda: _verify(parts, len(ids), "limits"))
    return steps


def select(path: Path) -> Steps:
    """What reading, splitting and near-duplicates hold of a source, before a shard is written."""
    steps = Steps()
    source = SourceConfig(data=path, num_evaluation_prompts=SPARE)
    kept = steps.take("select", lambda: selection.select(CourseCorrectionRecipe(source=source)))
    assert len(kept[0]) > 0
    return steps


def store(path: Path) -> Steps:
    """What a training worker holds of its data: the ids of the groups."""
    steps = Steps()
    groups = steps.take("store", lambda: GroupStore(path))
    assert len(groups) > 0
    return steps


def main() -> None:
    """JSON arguments: ``what`` (resume, select, store), ``path``, ``warm`` (the same, small)."""
    given = json.loads(sys.argv[1])
    measure = {"resume": resume, "select": select, "store": store}[given["what"]]
    measure(Path(given["warm"]))  # imports and pools that come with the first use are no part of the size
    print(json.dumps(measure(Path(given["path"])).found))


if __name__ == "__main__":
    main()
