"""Doing harm to a node of ``ray.cluster_utils.Cluster``, whose nodes are processes of this machine."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

FILL = """
import json, sys, time
import numpy, ray
given = json.loads(sys.argv[1])
ray.init(address=given["address"], log_to_driver=False)
held = [ray.get(ray.put(numpy.ones(given["bytes"], dtype=numpy.uint8))) for _ in range(given["number"])]
print("full", flush=True)
time.sleep(given["seconds"])
"""
FILL_PART, FILL_LIMIT_S = 10 * 2**20, 60.0


def processes_of(node: Any) -> list[psutil.Process]:
    """All processes that a node's own processes have started."""
    starters = [info.process.pid for infos in node.all_processes.values() for info in infos]
    return [child for pid in starters for child in _below(pid)]


def _below(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def titled(node: Any, *titles: str) -> list[psutil.Process]:
    """Processes of a node whose title holds one of these texts."""
    found = []
    for process in processes_of(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(title in " ".join(process.cmdline()) for title in titles):
                found.append(process)
    return found


def remove(cluster: Any, node: Any) -> None:
    """A machine that is gone takes all its processes along."""
    lost = processes_of(node)
    cluster.remove_node(node, allow_graceful=False)
    for victim in lost:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()


def kill_raylet(node: Any) -> None:
    """kill -9 of the raylet alone; what it had started must see by itself that it is gone."""
    for info in node.all_processes["raylet"]:
        info.process.kill()
        info.process.wait()


@contextlib.contextmanager
def slowed(node: Any, share: float, seconds: float) -> Iterator[None]:
    """While the block runs, and for so long at most, a node's processes stand still for ``share`` of the time."""
    stop = threading.Event()
    thread = threading.Thread(target=_slow, args=(node, share, time.monotonic() + seconds, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _slow(node: Any, share: float, until: float, stop: threading.Event) -> None:
    while not stop.is_set() and time.monotonic() < until:
        own = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos]
        stopped = [*own, *processes_of(node)]
        _send(stopped, signal.SIGSTOP)
        try:
            stop.wait(share)
        finally:
            _send(stopped, signal.SIGCONT)
        stop.wait(1 - share)


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextlib.contextmanager
def full_store(address: str, store_bytes: int, seconds: float) -> Iterator[None]:
    """While the block runs, the head's object store is held full by another driver of the cluster."""
    given = {"address": address, "bytes": FILL_PART, "number": store_bytes // FILL_PART, "seconds": seconds}
    command = [sys.executable, "-c", FILL, json.dumps(given)]
    filler = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert filler.stdout is not None
        ready, _, _ = select.select([filler.stdout], [], [], FILL_LIMIT_S)
        said = filler.stdout.readline().strip() if ready else b""
        assert said == b"full", "the store could not be filled"
        yield
    finally:
        filler.kill()
        filler.communicate()
