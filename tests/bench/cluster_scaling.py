"""What the cluster itself costs: a job's submission, nodes that come and go, and more engine actors at once.

Nodes are processes that Ray's real autoscaler starts by its fake multi-node provider; the engine sleeps 50 ms a batch.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import tiny
from tests.bench._cluster_engine import SLEEP_S
from tests.bench._cluster_fake import RAY, FakeCluster, autoscaling, environment
from tests.bench._cluster_scaling_side import BATCHES_PER_BLOCK, ENGINE_CPUS, NODE_CPUS, ROWS_PER_BATCH
from tests.bench._cluster_serve_side import REPLICAS
from tests.bench._training import ROOT, side
from trimtab.console import say

ACTORS = (4, 2, 1)
BATCHES, WARM_UP, SUBMISSIONS, IDLE_S, DOWN_LIMIT_S = 400, 400, 3, 20.0, 120.0


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds of submission and of nodes, and the rate of four actors against four times that of one."""
    with tempfile.TemporaryDirectory(prefix="tc-") as scratch:
        folder = Path(scratch)
        tiny.save_tokenizer(folder / "model")
        with autoscaling(NODE_CPUS, max(ACTORS), IDLE_S) as cluster:
            overhead = submissions(cluster, folder)
            say(f"  {overhead}")
            given = {"address": cluster.address, "folder": scratch, "model": str(folder / "model"),
                     "runs": [[max(ACTORS), WARM_UP], *([number, BATCHES] for number in ACTORS)],
                     "down_s": DOWN_LIMIT_S}  # fmt: skip
            asked = {"address": cluster.address, "folder": scratch, "down_s": DOWN_LIMIT_S}
            with environment(HOME=cluster.env["HOME"]):
                found = side("tests.bench._cluster_scaling_side", given, folder / "side.log")
                say(f"  {found}")
                served = side("tests.bench._cluster_serve_side", asked, folder / "serve.log")
                say(f"  {served}")
    first, *measured = found["runs"]
    rates = {made["actors"]: made["batches_per_s_and_actor"] for made in measured}
    figures = {
        "submit_overhead_s": overhead["submitted_s"] - overhead["in_process_s"],
        "scale_up_s": next(at for at, nodes in first["nodes"] if nodes >= max(ACTORS)),
        "scale_down_s": found["scale_down_s"],
        "efficiency_2": rates[2] / rates[1],
        "efficiency_4": rates[4] / rates[1],
        "serve_scale_up_s": next((at for at, nodes in served["nodes"] if nodes >= REPLICAS), None),
        "serve_scale_down_s": served["down"][-1][0] if served["left"] == 0 else None,
        "serve_failed_requests": served["answers"]["failed"],
    }
    settings = {"sleep_s": SLEEP_S, "rows_per_batch": ROWS_PER_BATCH, "batches_per_block": BATCHES_PER_BLOCK,
                "batches_per_actor": BATCHES,
                "engine_cpus": ENGINE_CPUS, "node_cpus": NODE_CPUS, "idle_timeout_s": IDLE_S,
                "submission": overhead, "runs": found["runs"],
                "scale_up_s": "from the call that generates, with no workers yet, to as many nodes as engines; "
                "the driver's import of Ray's vLLM processor is in it",
                "scale_down_s": "from the end of the last run to no nodes; the idle timeout is in it",
                "served": served, "serve": "replicas from none to three under load, a node each, and back to none",
                "rate": "batches of one actor, while all actors had work; a first run, on no nodes, has let the "
                "cheap stages import what they need"}  # fmt: skip
    return figures, settings


def submissions(cluster: FakeCluster, folder: Path) -> dict[str, Any]:
    """Seconds from the command to the first row on disk, as a job and in a process of its own; medians."""
    rows = [{"system": "Be kind.", "prompt": "How are you?", "chosen": "Well.", "rejected": "Bad."}]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    submit = [RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--runtime-env",
              "jobs/runtime_env.yaml", "--"]  # fmt: skip
    jobs = [first_row(cluster, folder, submit, f"job-{number}") for number in range(SUBMISSIONS)]
    here = [first_row(cluster, folder, [], f"here-{number}") for number in range(SUBMISSIONS)]
    return {"submitted_s": statistics.median(jobs), "in_process_s": statistics.median(here), "jobs": jobs, "here": here}


def first_row(cluster: FakeCluster, folder: Path, submit: list[str], name: str) -> float:
    """Seconds until a group stands on disk."""
    output = folder / name
    work = [sys.executable, "jobs/synthesize_pairs.py", "--set", f"output={output}", "--set", "recipe.type=imported",
            "--set", f"recipe.data={folder / 'rows.json'}"]  # fmt: skip
    started = time.monotonic()
    with (folder / f"{name}.log").open("wb") as sink:
        process = subprocess.Popen([*submit, *work], cwd=ROOT, env=cluster.env, stdout=sink, stderr=sink)
    while not list(output.glob("groups/*.parquet")):
        assert process.poll() in (None, 0), (folder / f"{name}.log").read_text(encoding="utf-8")[-2000:]
        assert time.monotonic() - started < 120, name
        time.sleep(0.02)
    seconds = time.monotonic() - started
    process.wait(120)
    return seconds
