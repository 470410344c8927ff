"""Whether a Ray cluster answers, and whether its nodes have what this machine has."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from trimtab.artifacts import versions as versions_here
from trimtab.config import InputError
from trimtab.operations.doctor.findings import Finding

CONNECT_S = 5.0
ASK_S = 60.0
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
        return compare_nodes(versions_here(), _versions_of_nodes())
    except InputError as error:
        remedy = "ray status --address …  # with the same token"
        return [Finding("cluster.nodes", "error", str(error), NO_ANSWER, remedy)]
    finally:
        cluster.disconnect()


def _versions_of_nodes() -> dict[str, dict[str, str] | None]:
    """Node's address -> versions of its packages; None of a node that doesn't answer in time."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    wanted = tuple(versions_here())

    def look() -> dict[str, str]:  # travels by value: a node may not have this package
        import contextlib
        import platform
        from importlib import metadata

        found = {"python": platform.python_version()}
        for name in wanted:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found.setdefault(name, metadata.version(name))
        return found

    alive = [node for node in ray.nodes() if node["Alive"]]
    asked = {}
    for node in alive:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[ray.remote(look).options(num_cpus=0, scheduling_strategy=there).remote()] = node["NodeManagerAddress"]
    done, late = ray.wait(list(asked), num_returns=len(asked), timeout=ASK_S)
    return {asked[ref]: ray.get(ref) for ref in done} | {asked[ref]: None for ref in late}


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
    return found or [Finding("cluster.nodes", "ok", f"{len(there)} nodes, the same versions as here")]
