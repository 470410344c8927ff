"""The fault drill: kill -9 of an engine process, an actor, a worker node or the driver, at random moments."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests import tiny
from tests.bench import _cluster_nodes as nodes
from tests.bench._faults_side import ENGINE, ENGINE_CPUS, MAX_TOKENS, NUM_REQUESTS, ROWS_PER_BATCH
from tests.bench._training import ROOT
from trimtab.artifacts import read_record
from trimtab.cluster import RAY_ENV
from trimtab.console import quiet, say
from trimtab.schemas import Generation, PlanRow, read_rows

KINDS = ("engine", "actor", "node", "driver")
NUM_RUNS = 20
NUM_ROWS = 5 * NUM_REQUESTS
TIMEOUT_S = 300
NODE_CPUS = ENGINE_CPUS + 2
"""Room for the cheap stages as well: on a node that the engine fills, one of them could keep a new engine out."""
PATTERNS = {"engine": "VLLM::EngineCore", "actor": "MapWorker(MapBatches(vLLMEngineStage"}


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Shares over all runs, and each run's own counts."""
    from ray.cluster_utils import Cluster

    os.environ |= RAY_ENV
    rng, drills = random.Random(7), []
    with tempfile.TemporaryDirectory(prefix="tf-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        with quiet(folder / "log"):
            tiny.save_tokenizer(folder / "model")
            tiny.save_model(folder / "model", folder / "model")
            head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(folder / "ray")}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            node = cluster.add_node(num_cpus=NODE_CPUS)
            try:
                for number in range(NUM_RUNS):
                    drill = Drill(folder, number, KINDS[number % len(KINDS)], cluster, node)
                    drills.append(drill.run(rng.randrange(1, NUM_ROWS - 10)))
                    node = drill.node
                    say(f"  {drills[-1]}")
            finally:
                cluster.shutdown()
    figures = {
        "completed_share": sum(drill["completed"] for drill in drills) / NUM_RUNS,
        "lost_rows": sum(drill["lost"] for drill in drills),
        "doubled_rows": sum(drill["doubled"] for drill in drills),
        "redone_share": sum(drill["redone"] for drill in drills) / (NUM_RUNS * NUM_ROWS),
        "most_redone_in_a_run": max(drill["redone"] for drill in drills),
    }
    settings = {"runs": NUM_RUNS, "rows": NUM_ROWS, "max_tokens": MAX_TOKENS, "rows_per_block": ROWS_PER_BATCH,
                "model": "random two-layer Llama", "engine": ENGINE.model_dump(mode="json"), "drills": drills,
                "redone": "rows that left the engine more than once"}  # fmt: skip
    return figures, settings


class Drill:
    """One run with one kill."""

    def __init__(self, folder: Path, number: int, kind: str, cluster: Any, node: Any) -> None:
        self.kind, self.cluster, self.node = kind, cluster, node
        self.output, self.log = folder / f"out-{number}", folder / f"ids-{number}"
        given = {"output": str(self.output), "model": str(folder / "model"), "log": str(self.log),
                 "address": cluster.address}  # fmt: skip
        self.command = [sys.executable, "-m", "tests.bench._faults_side", json.dumps(given)]

    def run(self, after: int) -> dict[str, Any]:
        """Kill when ``after`` rows are generated, let it go on or start it again, and count."""
        started = time.monotonic()
        process = self._start()
        self._wait(process, after)
        killed_at = self._generated()
        self._kill(process)
        starts = 1
        while self._failed(process) and starts < 3:
            process, starts = self._start(), starts + 1
        return {"kind": self.kind, "killed_at": len(killed_at), "starts": starts, **self._counts(),
                "seconds": round(time.monotonic() - started, 1)}  # fmt: skip

    def _start(self) -> subprocess.Popen[bytes]:
        with self.output.with_suffix(".driver").open("ab") as sink:
            return subprocess.Popen(self.command, cwd=ROOT, stdout=sink, stderr=sink)

    def _failed(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it ended with an error, or not in time."""
        try:
            return process.wait(TIMEOUT_S) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return True

    def _wait(self, process: subprocess.Popen[bytes], after: int) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while len(self._generated()) < after:
            assert process.poll() is None, self.output.with_suffix(".driver").read_text()
            assert time.monotonic() < deadline, "nothing was generated"
            time.sleep(0.02)

    def _generated(self) -> list[str]:
        return self.log.read_text().split() if self.log.is_file() else []

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        if self.kind == "driver":
            process.kill()
        elif self.kind == "node":
            nodes.remove(self.cluster, self.node)
            self.node = self.cluster.add_node(num_cpus=NODE_CPUS)
        else:
            victims = nodes.titled(self.node, PATTERNS[self.kind])
            assert victims, f"no process {PATTERNS[self.kind]} to kill"
            for victim in victims:
                victim.kill()

    def _counts(self) -> dict[str, Any]:
        plan = {row.id for row in read_rows(self.output / "plan", PlanRow)}
        made = Counter(row.id for row in read_rows(self.output / "generations", Generation))
        record = read_record(self.output)
        completed = record is not None and record.counts["generations"] == len(plan) == NUM_ROWS
        return {"completed": completed, "lost": len(plan - made.keys()), "doubled": (made - Counter(plan)).total(),
                "redone": len(self._generated()) - len(plan)}  # fmt: skip
