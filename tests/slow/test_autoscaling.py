"""Ray's real autoscaler with nodes that are processes: a job brings them up, they go when it ends, and what can't be.

The engine is the benchmarks' stand-in here, which sleeps: what is tested are the nodes. The benchmark
``cluster_faults`` loses nodes under real engines.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench._cluster_fake import FakeCluster, autoscaling
from tests.bench._cluster_scaling_side import ENGINE_CPUS, NODE_CPUS
from trimtab.cluster import wait_for_room
from trimtab.config import InputError

pytestmark = [pytest.mark.slow, pytest.mark.drill]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> Iterator[FakeCluster]:
    """A head without task CPUs, and up to three workers that are not there."""
    with autoscaling(NODE_CPUS, 3, idle_s=8) as found:
        yield found


def test_job_that_no_cluster_of_these_nodes_can_ever_hold_is_refused_in_one_line(
    cluster: FakeCluster, tiny_model: Path, small_source: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "from trimtab.cli import main; main()", "synthesize"]
    for item in (f"output={tmp_path / 'out'}", f"model={tiny_model}", f"recipe.source.data={small_source}",
                 "recipe.source.num_evaluation_prompts=4", f"ray.address={cluster.address}",
                 "engine.cpus_per_actor=64"):  # fmt: skip
        command += ["--set", item]
    started = time.monotonic()
    done = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "engine.cpus_per_actor: 64 CPU + 1 CPU: more than this cluster can ever give" in done.stderr
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 60


def test_local_ray_that_is_too_small_says_so_at_once(ray_session: None) -> None:
    with pytest.raises(InputError, match=r"num_workers: 64 CPU \+ 1 CPU: this Ray has \d+ CPU, 0 GPU; use fewer"):
        wait_for_room([{"CPU": 64}, {"CPU": 1}], "num_workers", "use fewer")
    wait_for_room([{"CPU": 1}], "num_workers", "use fewer")


def test_job_brings_nodes_up_spreads_its_actors_and_they_go_away(
    cluster: FakeCluster, tiny_model: Path, tmp_path: Path
) -> None:
    given = {"address": cluster.address, "folder": str(tmp_path), "model": str(tiny_model), "runs": [[2, 30]],
             "down_s": 60}  # fmt: skip
    command = [sys.executable, "-m", "tests.bench._cluster_scaling_side", json.dumps(given)]
    path = os.pathsep.join([str(ROOT), cluster.env.get("PYTHONPATH", "")])
    env = cluster.env | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (ran,) = found["runs"]
    assert ran["nodes"][0][1] == 0
    assert (ran["used_actors"], ran["used_nodes"]) == (2, 2)
    assert found["left"] == 0
    assert NODE_CPUS < 2 * ENGINE_CPUS  # a node holds one engine
