"""Ten seeded faults of a cluster during the whole pipeline: raylet, node, driver, object store, slow node.

A drill takes over from a run without faults the stages that come before its fault, as that run left them, and does
everything from there on for real.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests import tiny
from tests.bench import _cluster_nodes as nodes
from tests.bench._cluster_fake import IDLE_WORKERS, environment
from tests.bench._cluster_faults_side import ENGINE_CPUS, NUM_EVALUATED, NUM_REQUESTS, STAGES
from tests.bench._training import ROOT
from trimtab.artifacts import read_log, read_record
from trimtab.cluster import RAY_ENV
from trimtab.console import quiet, say
from trimtab.schemas import Generation, iter_groups, read_rows

KINDS = ("raylet", "node", "driver", "store", "slow")
NUM_DRILLS, SEED, LIMIT_S = 10, 7, 480.0
STRUCK = STAGES[:-1]
NODE_CPUS, STORE_BYTES = ENGINE_CPUS + 1, 150 * 2**20
SLOW_SHARE, SLOW_S = 0.8, 30.0
ACTORS = ("MapWorker(MapBatches(vLLMEngineStage", "RayTrainWorker")
"""Who does a stage's work: the node that has one of them is the one that is harmed."""


@dataclass(frozen=True)
class Plan:
    """What happens in a drill, from the seed alone."""

    kind: str
    stage: str
    share: float
    """Of the stage's rows or steps, when it happens."""


@dataclass(frozen=True)
class Expected:
    """What a run without faults came to."""

    output: Path
    ids: frozenset[tuple[str, str]]
    """Each generation's stage and id: base and tuned model have the same ids."""
    groups: frozenset[str]
    units: dict[str, int]
    """Rows or steps of each stage."""
    seconds: float


def plans(number: int, seed: int) -> list[Plan]:
    """Each kind and each stage equally often; which meet, and when, is of the seed's choosing."""
    rng = random.Random(seed)
    stages = rng.sample(STRUCK * -(-number // len(STRUCK)), number)
    return [Plan(KINDS[i % len(KINDS)], stage, rng.uniform(0.05, 0.8)) for i, stage in enumerate(stages)]


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Shares over all drills, and each drill's own counts."""
    with tempfile.TemporaryDirectory(prefix="tf-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        (folder / "ray").mkdir()  # where Ray's cluster class notes its address
        own = RAY_ENV | IDLE_WORKERS | {"HOME": scratch, "RAY_TMPDIR": scratch}
        with environment(**own), quiet(folder / "log"):
            ground = Ground(folder)
            try:
                expected = ground.expect()
                say(f"  without a fault: {expected.seconds:.0f} s, {expected.units}")
                drills = [Drill(ground, expected, number, plan).run() for number, plan in
                          enumerate(plans(NUM_DRILLS, SEED))]  # fmt: skip
            finally:
                ground.end()
    units = sum(drill["units"] for drill in drills)
    figures = {
        "completed_share": sum(drill["completed"] for drill in drills) / len(drills),
        "lost_rows": sum(drill["lost"] for drill in drills),
        "doubled_rows": sum(drill["doubled"] for drill in drills),
        "redone_share": sum(drill["redone"] for drill in drills) / units,
        "median_recovery_s": statistics.median(drill["recovered_after_s"] for drill in drills),
    }
    settings = {"drills": drills, "seed": SEED, "requests": NUM_REQUESTS, "evaluation_prompts": NUM_EVALUATED,
                "model": "random two-layer Llama", "nodes": f"a head without task CPUs, two of {NODE_CPUS}",
                "without_a_fault_s": expected.seconds, "units": expected.units,
                "redone": "rows that left the engine and optimizer steps that were done, more than once",
                "recovery": "from the fault to the next row or step", "slow": f"stopped {SLOW_SHARE:.0%} of "
                f"the time for {SLOW_S:.0f} s", "endpoint": "not part of a drill"}  # fmt: skip
    return figures, settings


class Ground:
    """A cluster with a head and two workers, a model and requests."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()
        tiny.save_tokenizer(folder / "model")
        tiny.save_model(folder / "model", folder / "model")
        lines = tiny.SAMPLE.read_text(encoding="utf-8").splitlines()
        (folder / "rows.jsonl").write_text("\n".join(lines[: NUM_REQUESTS + 2 * NUM_EVALUATED]), encoding="utf-8")
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray"),
                "object_store_memory": STORE_BYTES}  # fmt: skip
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.cluster.add_node(num_cpus=NODE_CPUS) for _ in range(2)]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """The command; always the same for one name."""
        given = {"output": str(self.folder / name), "model": str(self.folder / "model"),
                 "data": str(self.folder / "rows.jsonl"), "log": str(self.folder / f"{name}.ids"),
                 "address": self.cluster.address}  # fmt: skip
        command = [sys.executable, "-m", "tests.bench._cluster_faults_side", json.dumps(given)]
        with self.driver_log(name).open("ab") as sink:
            self.started.append(subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=sink))
        return self.started[-1]

    def end(self) -> None:
        """Nothing stays behind."""
        for process in self.started:
            process.kill()
            process.wait()
        self.cluster.shutdown()

    def driver_log(self, name: str) -> Path:
        """What the command printed."""
        return self.folder / f"{name}.driver"

    def expect(self) -> Expected:
        """Run the pipeline without a fault."""
        started = time.monotonic()
        process = self.start("expected")
        assert process.wait(2 * LIMIT_S) == 0, self.driver_log("expected").read_text(encoding="utf-8")[-3000:]
        output = self.folder / "expected"
        units = {stage: len(made_in(output / stage)) for stage in STRUCK} | {"train": len(step_lines(output))}
        ids = frozenset((stage, row.id) for stage in STRUCK for row in made_in(output / stage))
        groups = frozenset(group.id for group in iter_groups(output / "groups"))
        return Expected(output, ids, groups, units, time.monotonic() - started)

    def working(self) -> tuple[Any, bool]:
        """The worker node that does the work now, and whether one does; else any."""
        busy = [node for node in self.workers if nodes.titled(node, *ACTORS)]
        return (busy or self.workers)[0], bool(busy)

    def replace(self, node: Any) -> None:
        """A node that was lost comes back as another one, as an autoscaler would have it."""
        self.workers[self.workers.index(node)] = self.cluster.add_node(num_cpus=NODE_CPUS)


class Drill:
    """One run with one fault."""

    def __init__(self, ground: Ground, expected: Expected, number: int, plan: Plan) -> None:
        self.ground, self.expected, self.plan, self.name = ground, expected, plan, f"drill-{number}"
        self.output, self.hit_the_work = ground.folder / self.name, False
        self.before = STAGES[: STAGES.index(plan.stage)]

    def run(self) -> dict[str, Any]:
        """Take over what comes before, strike, let it go on or start it again, and count."""
        for stage in self.before:
            shutil.copytree(self.expected.output / stage, self.output / stage)
        started = time.monotonic()
        process = self.ground.start(self.name)
        with contextlib.ExitStack() as lasting:
            self._wait_for(process, max(1, int(self.plan.share * self.expected.units[self.plan.stage])))
            self._strike(process, lasting)
            recovered, starts = self._finish(process)
        found = {"kind": self.plan.kind, "stage": self.plan.stage, "share": round(self.plan.share, 2),
                 "node_was_at_work": self.hit_the_work, "starts": starts, "recovered_after_s": round(recovered, 1),
                 "seconds": round(time.monotonic() - started, 1), **self._counts()}  # fmt: skip
        say(f"  {found}")
        return found

    def _wait_for(self, process: subprocess.Popen[bytes], units: int) -> None:
        deadline = time.monotonic() + LIMIT_S
        while self._units() < units:
            assert process.poll() is None, self.ground.driver_log(self.name).read_text(encoding="utf-8")[-3000:]
            assert time.monotonic() < deadline, f"{self.name}: nothing was done in {LIMIT_S:.0f} s"
            time.sleep(0.02)

    def _strike(self, process: subprocess.Popen[bytes], lasting: contextlib.ExitStack) -> None:
        ground = self.ground
        node, self.hit_the_work = ground.working()
        if self.plan.kind == "driver":
            process.kill()
        elif self.plan.kind == "raylet":
            nodes.kill_raylet(node)
            ground.replace(node)
            lasting.callback(partial(nodes.remove, ground.cluster, node))
        elif self.plan.kind == "node":
            nodes.remove(ground.cluster, node)
            ground.replace(node)
        elif self.plan.kind == "store":
            lasting.enter_context(nodes.full_store(ground.cluster.address, STORE_BYTES, 2 * LIMIT_S))
        else:
            lasting.enter_context(nodes.slowed(node, SLOW_SHARE, SLOW_S))

    def _finish(self, process: subprocess.Popen[bytes]) -> tuple[float, int]:
        """Seconds to the next row or step, and how often the command was started; it is, up to three times."""
        struck, before, recovered, starts = time.monotonic(), self._units(), None, 1
        deadline = struck + LIMIT_S
        while process.poll() != 0:
            if recovered is None and self._units() > before:
                recovered = time.monotonic() - struck
            late = time.monotonic() > deadline
            if late:
                process.kill()
                process.wait()
            if process.poll() is not None and process.returncode != 0:
                if starts == 3:
                    break
                process, starts, deadline = self.ground.start(self.name), starts + 1, time.monotonic() + LIMIT_S
            time.sleep(0.05)
        return recovered if recovered is not None else time.monotonic() - struck, starts

    def _units(self) -> int:
        """Rows and steps so far, those that were done twice included."""
        return len(self._logged()) + (0 if "train" in self.before else len(step_lines(self.output)))

    def _logged(self) -> list[str]:
        log = self.ground.folder / f"{self.name}.ids"
        return log.read_text(encoding="ascii").split() if log.is_file() else []

    def _counts(self) -> dict[str, Any]:
        made = [(stage, row.id) for stage in STRUCK for row in made_in(self.output / stage)]
        steps = [line["step"] for line in read_log(self.output / "train" / "steps.jsonl")]
        groups = {group.id for group in iter_groups(self.output / "groups")}
        whole = all(read_record(self.output / stage) for stage in ("groups", "train", "report"))
        same = set(made) == self.expected.ids and groups == self.expected.groups
        same = same and steps == list(range(1, self.expected.units["train"] + 1))
        todo = [stage for stage in STRUCK if stage not in self.before]
        rows = sum(self.expected.units[stage] for stage in todo if stage != "train")
        redone = len(self._logged()) - rows
        if "train" in todo:
            redone += len(step_lines(self.output)) - len(steps)
        return {"completed": whole and same and len(made) == len(set(made)), "lost": len(self.expected.ids - set(made)),
                "doubled": len(made) - len(set(made)), "redone": redone,
                "units": sum(self.expected.units[stage] for stage in todo)}  # fmt: skip


def made_in(stage: Path) -> list[Generation]:
    """Generations of plans below a stage's folder."""
    folders = sorted(path.parent for path in stage.rglob("generations/*/plan")) or [stage]
    return [row for folder in folders for row in read_rows(folder / "generations", Generation)]


def step_lines(output: Path) -> list[str]:
    """Every optimizer step that was done, also those that an interruption undid."""
    log = output / "train" / "steps.jsonl"
    return log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
