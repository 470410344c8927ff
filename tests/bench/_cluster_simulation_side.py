"""The driver of the simulation: ``generate_plan`` over a plan in shards, in a process whose memory is its own."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.bench._data_plane_side import WORDS, StoredText
from trimtab import cluster
from trimtab.cluster import RayConfig
from trimtab.console import quiet
from trimtab.engine import VLLMEngine, generate_plan
from trimtab.engine import run as engine_run
from trimtab.schemas import SCHEMAS, PlanRow, make_id
from trimtab.synthesis.generating import measured_rate, planned_ids

ROWS_PER_TASK = 150
ROWS_PER_SHARD = 3000
"""A multiple of the rows of a task, so that the number of tasks is known; the default of a synthesis is 2,500."""
ACTORS = 2
PREFILLS = 200


def planned(start: int, end: int, shard: int) -> pa.Table:
    """Rows of a plan with mild made-up prompts and prefills of 20 to 120 words."""
    rng = random.Random(shard)
    prefills = [" ".join(rng.choices(WORDS, k=rng.randint(20, 120))) for _ in range(PREFILLS)]
    numbers = range(start, end)
    rows = {
        "id": [make_id("simulated", number) for number in numbers],
        "request_id": [make_id("request", number // 5) for number in numbers],
        "kind": [f"cut-{number % 5}" for number in numbers],
        "system": [None] * len(numbers),
        "prompt": [f"How would {' '.join(rng.choices(WORDS, k=12))} {number // 5} go?" for number in numbers],
        "prefill": rng.choices(prefills, k=len(numbers)),
        "reopen": [False] * len(numbers), "max_tokens": [128] * len(numbers), "temperature": [0.0] * len(numbers),
        "top_p": [1.0] * len(numbers), "seed": [0] * len(numbers), "shard": [shard] * len(numbers),
    }  # fmt: skip
    return pa.table(rows, schema=SCHEMAS[PlanRow])


def stored_pool(rows: Any, model: Path | None, engine: Any) -> Any:
    """Stored text from a fixed pool of actors, as the engines are one."""
    import ray

    pool = ray.data.ActorPoolStrategy(size=ACTORS)
    return rows.map_batches(StoredText, batch_size=engine.rows_per_batch, num_cpus=0.5, compute=pool)


def highest_gib() -> float:
    """The most memory that this process has held, as the kernel counts it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def main() -> None:
    """JSON arguments: ``folder`` (with ``plan/``), ``num`` rows."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    with tempfile.TemporaryDirectory(prefix="tr-", ignore_cleanup_errors=True) as ray_folder, quiet(folder / "noise"):
        cluster.connect(RayConfig(temp_dir=Path(ray_folder)))
        engine_run.engine_stage = stored_pool
        idle = highest_gib()
        seconds = _generate(folder)
        driver = highest_gib()
        resume = _generate(folder)
        cluster.disconnect()
    found = {"rows_per_s": given["num"] / seconds, "seconds": seconds, "driver_gib": driver, "connected_gib": idle,
             "resume_s": resume, "resumed_gib": highest_gib()}  # fmt: skip
    print(json.dumps(found))


def _generate(folder: Path) -> float:
    started = time.monotonic()
    ids = planned_ids(folder)
    generate_plan(folder, ids, None, VLLMEngine(rows_per_batch=ROWS_PER_TASK), "simulation")
    measured_rate([folder / "generations"])
    return time.monotonic() - started


if __name__ == "__main__":
    main()
