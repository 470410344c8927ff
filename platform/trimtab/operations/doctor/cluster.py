"""Whether a Ray cluster answers, and whether its nodes have what this machine has."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trimtab.artifacts import versions as versions_here
from trimtab.config import InputError
from trimtab.operations.doctor.findings import Finding

CONNECT_S = 5.0
ASK_S = 60.0
SKEW_S = 10.0
CURRENT = Path("ray_current_cluster")
"""Where ``ray start`` leaves its address, below Ray's temporary folder."""
NO_ANSWER = "jobs and stages would not find it"


def endpoint(address: str, ray_folder: Path) -> tuple[str, int] | None:
    """Host and port behind an address (``auto``, ``host:port``, ``ray://…``, ``http://…``); None: it names none.

    Args:
        ray_folder: Ray's temporary folder, which knows what ``auto`` is.
    """
    if address == "auto":
        path = ray_folder / CURRENT
        return endpoint(path.read_text(encoding="utf-8").strip(), ray_folder) if path.is_file() else None
    if not re.match(r"(ray|https?)://", address):
        address = f"//{address}"
    try:
        parts = urlsplit(address)
        port = parts.port or {"http": 80, "https": 443, "ray": 10001}.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def reachable(address: str, ray_folder: Path) -> Finding:
    """Whether something listens behind an address."""
    check, place = "cluster.reachable", endpoint(address, ray_folder)
    if place is None:
        shown = "no Ray was started on this machine" if address == "auto" else f"{address} is no address"
        return Finding(check, "error", shown, NO_ANSWER, "ray start --head, or give host:port")
    try:
        with socket.create_connection(place, timeout=CONNECT_S):
            return Finding(check, "ok", f"{place[0]}:{place[1]}")
    except OSError as error:
        remedy = "start the cluster, open a tunnel (ray dashboard cluster.yaml), or unset RAY_ADDRESS"
        return Finding(check, "error", f"{place[0]}:{place[1]}: {error}", NO_ANSWER, remedy)


def nodes(address: str) -> list[Finding]:
    """Whether all nodes of a cluster have this machine's versions: a small task on each.

    A dashboard's address is for submitted jobs alone; through it no task is sent.
    """
    if address.startswith("http"):
        return [Finding("cluster.nodes", "note", "not looked at", "through a dashboard's address no task is sent",
                        "run doctor on a node, or with --address ray://HOST:10001")]  # fmt: skip
    from trimtab import cluster

    try:
        cluster.connect(cluster.RayConfig(address=address))
        started = time.time()
        seen = _seen_on_nodes()
        clocks = {node: look.clock for node, look in seen.items() if look}
        versions = {node: look.versions if look else None for node, look in seen.items()}
        return [*compare_nodes(versions_here(), versions), clock_skew(clocks, started, time.time())]
    except InputError as error:
        remedy = "ray status --address …  # with the same token"
        return [Finding("cluster.nodes", "error", str(error), NO_ANSWER, remedy)]
    finally:
        cluster.disconnect()


@dataclass(frozen=True)
class Look:
    """What a node says of itself."""

    versions: dict[str, str]
    clock: float


def _seen_on_nodes() -> dict[str, Look | None]:
    """Node's address -> what it says; None of a node that doesn't answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = tuple(versions_here())

    def look() -> tuple[dict[str, str], float]:  # travels by value: a node may not have this package
        import contextlib
        import platform
        import time
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in wanted:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(name))
        return found, time.time()

    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(look).options(num_cpus=0, scheduling_strategy=there)
            asked[task.remote()] = node["NodeManagerAddress"]
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ASK_S)
    return {asked[ref]: Look(*ray.get(ref)) for ref in done} | dict.fromkeys((asked[ref] for ref in late), None)


def clock_skew(clocks: Mapping[str, float], started: float, ended: float) -> Finding:
    """Whether the nodes' clocks agree with this one, as far as can be told.

    Args:
        clocks: node -> what its clock said at some moment between ``started`` and ``ended``.
    """
    skews = {node: max(started - clock, clock - ended) for node, clock in clocks.items()}
    worst = max(skews, key=lambda node: skews[node], default="")
    if not worst or skews[worst] < SKEW_S:
        return Finding("cluster.clocks", "ok", f"within {SKEW_S:.0f} s")
    shown = f"{worst}: at least {skews[worst]:.0f} s from this machine's"
    return Finding("cluster.clocks", "warning", shown, "leases on stores and credentials end by the clock",
                   "timedatectl set-ntp true  # on every node")  # fmt: skip


def compare_nodes(here: Mapping[str, str], there: Mapping[str, Mapping[str, str] | None]) -> list[Finding]:
    """What differs between this machine and each node; ``trimtab`` itself may be missing, since jobs bring it along."""
    found = []
    for node, versions in sorted(there.items()):
        if versions is None:
            found.append(Finding("cluster.nodes", "error", f"{node} does not answer", "tasks that land there wait",
                                 f"ray list nodes  # and the raylet's log on {node}"))  # fmt: skip
            continue
        differ = [f"{name} {versions.get(name, 'missing')} (here {version})" for name, version in here.items()
                  if versions.get(name) != version and not (name == "trimtab" and name not in versions)]  # fmt: skip
        if differ:
            found.append(Finding("cluster.nodes", "error", f"{node}: {', '.join(differ)}",
                                 "what one process pickles another can't read, and results depend on the node",
                                 "install jobs/constraints/ on every node, then restart it"))  # fmt: skip
    return found or [Finding("cluster.nodes", "ok", f"{len(there)}, with the same versions as here")]
