"""Ray's real autoscaler on one machine: a head without task CPUs, and worker nodes that are processes.

The provider is Ray's own ``FakeMultiNodeProvider``; nodes come and go as the autoscaler decides. Each cluster has its
own ports, folder and home, and ends with the processes that it started.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

RAY = str(Path(sys.executable).parent / "ray")
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider"
STORE_BYTES = 150 * 2**20
IDLE_WORKERS = {"RAY_num_workers_soft_limit": "12"}
"""Ray keeps as many idle processes as a node has CPUs. With the few of these nodes it would start one for each task of
a cheap stage, and each start takes seconds of the cores that all nodes share."""


@dataclass(frozen=True)
class FakeCluster:
    """A head that listens on loopback."""

    address: str
    """Of the GCS, for ``ray.init``."""
    dashboard: str
    """Of the Jobs API."""
    env: dict[str, str]
    """Environment of a process that uses it."""
    folder: Path
    """Where it has everything."""


def workers() -> list[dict[str, Any]]:
    """The worker nodes that are alive on the connected cluster."""
    import ray

    return [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]]


def free_ports(num: int) -> list[int]:
    """Ports of loopback that nothing listens on now."""
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@contextlib.contextmanager
def autoscaling(cpus: int, most: int, idle_s: float, resources: dict[str, int] | None = None) -> Iterator[FakeCluster]:
    """A cluster with no workers, which may have up to ``most`` of ``cpus`` CPUs, each gone after ``idle_s`` of rest."""
    gcs, dashboard, agent, client = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="ta-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        config = _config(f"127.0.0.1:{gcs}", cpus, most, idle_s, resources or {})
        (folder / "autoscaling.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        command = [
            RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--min-worker-port=0",
            "--max-worker-port=0", f"--temp-dir={scratch}", "--num-cpus=0", f"--object-store-memory={STORE_BYTES}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
            f"--autoscaling-config={folder / 'autoscaling.yaml'}",
        ]  # fmt: skip
        env = _clean_env(folder)
        found = FakeCluster(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", env, folder)
        with running(command, env | _head_env(), folder / "head.log") as head:
            wait_until(lambda: _answers(found), 90, head, folder / "head.log")
            yield found


def _config(gcs: str, cpus: int, most: int, idle_s: float, resources: dict[str, int]) -> dict[str, Any]:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

    worker = {"CPU": cpus, "object_store_memory": STORE_BYTES, **resources}
    nobody = {"node_config": {}, "resources": {"CPU": 0}, "min_workers": 0, "max_workers": 0}
    return {
        "cluster_name": "drill", "max_workers": most, "idle_timeout_minutes": idle_s / 60, "upscaling_speed": 100,
        "provider": {"type": "external", "module": f"{PROVIDER}.FakeMultiNodeProvider", "gcs_address": gcs,
                     "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True},
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: nobody,
            "worker": {"node_config": {}, "resources": worker, "min_workers": 0, "max_workers": most},
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE, "auth": {}, "file_mounts": {}, "cluster_synced_files": [],
        "initialization_commands": [], "setup_commands": [], "head_setup_commands": [], "worker_setup_commands": [],
        "head_start_ray_commands": [], "worker_start_ray_commands": [], "file_mounts_sync_continuously": False,
    }  # fmt: skip


def _clean_env(folder: Path) -> dict[str, str]:
    from trimtab.cluster import RAY_ENV

    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return env | RAY_ENV | {"HOME": str(folder), "PATH": f"{Path(RAY).parent}:{env['PATH']}", "HF_HUB_OFFLINE": "1"}


def _head_env() -> dict[str, str]:
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    return {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    } | IDLE_WORKERS  # fmt: skip


def _answers(cluster: FakeCluster) -> bool:
    """Whether the Jobs API is there: the last thing of a head that comes up."""
    import httpx

    try:
        return httpx.get(f"{cluster.dashboard}/api/version", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """This process's environment with these values, until the block ends."""
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, together with all that it started."""
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=env, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield process
    finally:
        below = descendants(process.pid)  # of a process that is gone nobody knows them any more
        process.kill()
        kill(below)
        process.wait()


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one, which need not be there any more."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    """kill -9; psutil takes no other process for one that is gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def wait_until(
    ready: Callable[[], bool], limit_s: float, process: subprocess.Popen[bytes] | None = None, log: Path | None = None,
    every_s: float = 0.2,
) -> float:  # fmt: skip
    """Seconds until ``ready``; it fails with the log's end where the process ends, or the time does."""
    started = time.monotonic()
    while not ready():
        said = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log and log.is_file() else ""
        assert process is None or process.poll() is None, f"it ended with {process.returncode}: {said}"
        assert time.monotonic() - started < limit_s, f"not within {limit_s:.0f} s: {said}"
        time.sleep(every_s)
    return time.monotonic() - started
