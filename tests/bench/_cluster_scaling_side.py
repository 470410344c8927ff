"""The drivers of the scaling benchmark: a plan through stand-in engines on a cluster that the autoscaler makes."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench._cluster_engine import SLEEP_S, stand_in
from tests.bench._cluster_fake import workers
from trimtab import cluster
from trimtab.cluster import RayConfig
from trimtab.console import quiet
from trimtab.engine import VLLMEngine, generate
from trimtab.schemas import Generation, PlanRow, make_id, read_rows

ROWS_PER_BATCH, BATCHES_PER_BLOCK, ENGINE_CPUS, NODE_CPUS = 1, 20, 2, 3
"""An engine leaves its node a CPU, so that a node holds one engine and cheap stages."""


class Nodes:
    """When the number of worker nodes changed, watched from a thread; seconds since it began."""

    def __init__(self) -> None:
        self.changes: list[tuple[float, int]] = []
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            now = len(workers())
            if not self.changes or self.changes[-1][1] != now:
                self.changes.append((time.monotonic() - self.started, now))

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()
        self._thread.join()

    def reached(self, number: int) -> float:
        """Seconds until so many nodes were there for the first time."""
        return next(at for at, nodes in self.changes if nodes >= number)


def generated(folder: Path, model: str, num_actors: int, batches: int) -> dict[str, Any]:
    """One run with so many engine actors; its rate in the time in which all of them had work."""
    rows = [PlanRow(id=make_id(num_actors, number), request_id="r", kind="k", prompt=f"How is day {number}?",
                    max_tokens=8) for number in range(batches * num_actors * ROWS_PER_BATCH)]  # fmt: skip
    engine = VLLMEngine(
        num_actors=num_actors, cpus_per_actor=ENGINE_CPUS, max_num_seqs=2 * ROWS_PER_BATCH,
        rows_per_batch=ROWS_PER_BATCH, batches_per_block=BATCHES_PER_BLOCK, num_concurrent_batches=3,
    )  # fmt: skip
    nodes, started = Nodes(), time.monotonic()
    generate(rows, folder, Path(model), engine, f"{num_actors} actors")
    seconds = time.monotonic() - started
    nodes.stop()
    return {"actors": num_actors, "batches": batches * num_actors, "seconds": seconds, "nodes": nodes.changes,
            **steady(read_rows(folder / "generations", Generation))}  # fmt: skip


def steady(rows: list[Generation]) -> dict[str, Any]:
    """Batches a second of one actor, between the last actor's first batch and the first actor's last."""
    ends: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        node, process, at = row.text.split()
        ends.setdefault((node, process), set()).add(float(at))
    begin, end = max(min(times) for times in ends.values()), min(max(times) for times in ends.values())
    inside = sum(begin < at <= end for times in ends.values() for at in times)
    rate = inside / (end - begin) / len(ends)
    return {"used_actors": len(ends), "used_nodes": len({node for node, _ in ends}), "steady_s": end - begin,
            "batches_per_s_and_actor": rate, "share_of_the_sleeps": rate * SLEEP_S}  # fmt: skip


def main() -> None:
    """JSON arguments: ``address``, ``folder``, ``model``, ``runs`` (actors and batches of each), ``down_s``."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    with quiet(folder / "noise"):
        stand_in()
        cluster.connect(RayConfig(address=given["address"]))
        runs = [generated(folder / f"run-{number}", given["model"], *run) for number, run in enumerate(given["runs"])]
        nodes = Nodes()
        deadline = time.monotonic() + given["down_s"]
        while workers() and time.monotonic() < deadline:
            time.sleep(0.1)
        nodes.stop()
        left = len(workers())
        cluster.disconnect()
    down = nodes.changes[-1][0] if left == 0 else None
    print(json.dumps({"runs": runs, "scale_down_s": down, "left": left}))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
