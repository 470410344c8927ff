"""750,000 rows in 5,000 tasks through the job's data plane, with a stand-in where the engine would be.

What is measured is the driver: it must not grow with the rows. The plan is written by this process, so that the
driver's memory is its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._cluster_simulation_side import ROWS_PER_SHARD, ROWS_PER_TASK, planned
from tests.bench._training import side
from trimtab.console import quiet, say
from trimtab.files import files_in
from trimtab.schemas import write_table

SMALL, LARGE = 75_000, 750_000
"""Rows; the larger size is that of the paper's data set."""


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows a second, and the driver's size against its size with a tenth of the rows."""
    small, large = (measured(num) for num in (SMALL, LARGE))
    figures = {
        "rows_per_s": large["rows_per_s"],
        "driver_gib": large["driver_gib"],
        "driver_ratio": large["driver_gib"] / small["driver_gib"],
        "resume_s": large["resume_s"],
    }
    settings = {"rows": [SMALL, LARGE], "rows_per_task": ROWS_PER_TASK, "plan_rows_per_file": ROWS_PER_SHARD,
                "measured": [small, large], "checkpointing": True,
                "driver": "the kernel's high-water mark (VmHWM) of the process that called generate_plan",
                "engine": "stored text in an actor pool of two; reading, blocks, checkpoints, files, progress and the "
                "final count are the product's",
                "resume_s": "the same call once more, with everything there"}  # fmt: skip
    return figures, settings


def measured(num: int) -> dict[str, Any]:
    """One size, in a driver of its own."""
    with tempfile.TemporaryDirectory(prefix="ts-") as scratch, quiet(Path(scratch) / "log"):
        folder = Path(scratch)
        for shard, start in enumerate(range(0, num, ROWS_PER_SHARD)):
            rows = planned(start, min(num, start + ROWS_PER_SHARD), shard)
            write_table(folder / "plan" / f"{shard:05d}-0.parquet", rows)
        found = side("tests.bench._cluster_simulation_side", {"folder": scratch, "num": num}, folder / "side.log")
        found |= {"num": num, "tasks": len(files_in(folder / "generations")), "plan_files": shard + 1}
    say(f"  {found}")
    assert found["tasks"] == -(-num // ROWS_PER_TASK), found
    return found
