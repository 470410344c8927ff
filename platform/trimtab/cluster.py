"""Connecting to Ray: a cluster where one is given, else a local one for this process; and whether it has room."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab import proxy
from trimtab.config import Config, InputError, placement
from trimtab.console import say
from trimtab.files import LocalPath

MIN_LOCAL_CPUS = 4
WAIT_FOR_NODES_S = 1200.0
"""So long a cluster may take to bring nodes before a job gives up: a cloud's GPU nodes take minutes."""
SURE_AFTER_S = 5.0
"""So long the autoscaler must say that it can't, with no node on its way."""
RAY_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # of 2 s: a look at the workers takes one checkpoint's report, no more
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Blocks that wait for an engine: a few times those in its hands, however large the object store is. Ray would read
    # the whole plan ahead, and the driver keeps some 50 kB of each block.
    "RAY_DATA_DOWNSTREAM_CAPACITY_OBJECT_STORE_BUDGET_UTIL_THRESHOLD": "0",
    "RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK": "0",  # it loads vLLM into every worker that a replica's child runs in
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "2",  # of 32 processes, each some 80 MB, for a plan of a few hundred files
    "TOKENIZERS_PARALLELISM": "false",
}
"""Ray's own settings, wherever it runs."""
LOCAL_ENV = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes the only node away: a process less
    "REPORTER_UPDATE_INTERVAL_MS": "15000",  # of 5 s: each look at the processes costs some 100 ms of a core
}
"""Those of a local Ray, which shares its cores with the work."""
Bundles = Sequence[Mapping[str, float]]
_local: dict[str, int] = {}  # what this process's own Ray has, while it runs
_proxy_folder = contextlib.ExitStack()  # the proxy's files, while it runs


class RayConfig(Config):
    """Which Ray to use."""

    address: str | None = placement(None)
    """A running cluster (``auto``, ``host:port``, ``ray://…``); none: ``$RAY_ADDRESS``, else a local one."""
    num_cpus: int | None = placement(None, ge=1)
    """Logical CPUs of a local Ray; none: the cores, at least 4 (the pipelines' light stages need slots)."""
    temp_dir: LocalPath | None = placement(None)
    """Where a local Ray keeps its sessions; none: a folder of this user below the system's temporary one."""

    @property
    def where(self) -> str | None:
        """The address of the cluster; None: a local Ray."""
        return self.address or os.environ.get("RAY_ADDRESS")

    @property
    def local_cpus(self) -> int:
        """Logical CPUs of a local Ray."""
        return self.num_cpus or max(MIN_LOCAL_CPUS, cores_of_this_host())

    @property
    def cpus_of_a_core(self) -> int:
        """What a task that keeps a core busy asks for, so that a local Ray doesn't start more of them than cores."""
        return 1 if self.where else max(1, self.local_cpus // cores_of_this_host())


def connect(config: RayConfig) -> None:
    """Connect this process once; later calls return at once. A handler of SIGTERM that the caller has set stays.

    Raises:
        InputError: the address can't be reached.
    """
    if _is_connected():
        return
    with sigterm_handler_stays():
        _connect(config)


@contextlib.contextmanager
def sigterm_handler_stays() -> Iterator[None]:
    """Keep the handler that this process has set, of which ``ray.init`` makes one that says nothing and exits."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(config: RayConfig) -> None:
    import ray

    address = config.where
    for name, value in (RAY_ENV if address else RAY_ENV | LOCAL_ENV).items():
        os.environ.setdefault(name, value)
    if address:
        try:
            ray.init(address=address, runtime_env={"env_vars": RAY_ENV})
        except (ConnectionError, ValueError, RuntimeError) as error:
            problem = f"no Ray cluster answers ({type(error).__name__})"
            raise InputError("ray.address", address, problem, "start it or leave the address out") from error
        return
    os.environ.update(proxy.environment(_proxy_folder.enter_context(proxy.private_folder()), cores_of_this_host()))
    ray.init(
        num_cpus=config.local_cpus,
        include_dashboard=False,
        _temp_dir=str(config.temp_dir or Path(tempfile.gettempdir()) / f"trimtab-ray-{os.getuid()}"),
    )
    _local["cpus"] = config.local_cpus


def disconnect() -> None:
    """Leave Ray; a local one that this process started ends with it."""
    import ray

    ray.shutdown()
    _local.clear()
    _proxy_folder.close()


def has_direct_proxy() -> bool:
    """Whether Ray Serve, in the Ray that this process is connected to, has the proxy for direct streaming."""
    import ray

    if _local:
        return os.environ.get(proxy.DIRECT_PROXY) == "1"
    look = ray.remote(num_cpus=0)(lambda name: os.environ.get(name) == "1")
    return bool(ray.get(look.remote(proxy.DIRECT_PROXY)))


@contextlib.contextmanager
def left_at_the_end() -> Iterator[None]:
    """Leave the Ray that the block connects to, so that what its workers still say is part of the block's noise."""
    before = _is_connected()
    try:
        yield
    finally:
        if not before and _is_connected():
            disconnect()


def _is_connected() -> bool:
    """Whether Ray is in use; doesn't load it."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def most_cpus() -> int | None:
    """Logical CPUs of the local Ray that ``connect`` started; None: a cluster, which may grow."""
    return _local.get("cpus")


def wait_for_room(bundles: Bundles, field: str, remedy: str) -> None:
    """Wait as ``room_for`` does, and ask no longer."""
    with room_for(bundles, field, remedy):
        pass


@contextlib.contextmanager
def room_for(bundles: Bundles, field: str, remedy: str, more: Sequence[Bundles] = ()) -> Iterator[None]:
    """Wait until the cluster has nodes for these bundles together, whoever uses them now; its autoscaler is asked.

    Ray itself would wait for ever, also for what no node of the cluster could ever be. What is asked for stays asked
    for while the block runs, so that all nodes start at once; whoever ends in it asks for nothing any more.

    Args:
        bundles: what is asked of Ray, such as ``[{"CPU": 4, "GPU": 1}]``.
        field: the setting that asks for it.
        remedy: how to ask for less.
        more: what will be needed besides, and is not waited for.

    Raises:
        InputError: a local Ray has not so much, the autoscaler has no node type that could, or the nodes did not come.
    """
    import ray

    if _local and not _fits(bundles):
        has = ", ".join(f"{ray.cluster_resources().get(name, 0):g} {name}" for name in ("CPU", "GPU"))
        raise InputError(field, _listed(bundles), f"this Ray has {has}", f"{remedy}, or raise ray.num_cpus")
    everything = [bundle for asked in (bundles, *more) for bundle in asked]
    if _local or _fits(everything):
        yield
        return
    groups = [ray.util.placement_group([dict(bundle) for bundle in asked]) for asked in (bundles, *more)]
    try:
        if not _fits(bundles):
            say(f"  waiting for nodes: no node of this cluster has {_listed(bundles)} yet")
        if problem := _problem_of_waiting(bundles):
            raise InputError(field, _listed(bundles), problem, f"{remedy}, or give the cluster larger or more nodes")
        yield
    finally:
        for group in groups:
            ray.util.remove_placement_group(group)


def _listed(bundles: Bundles) -> str:
    return " + ".join(", ".join(f"{amount:g} {name}" for name, amount in bundle.items()) for bundle in bundles)


def _problem_of_waiting(bundles: Bundles) -> str | None:
    """Wait for room; why there will be none."""
    started = time.monotonic()
    impossible_since: float | None = None
    while not _fits(bundles):
        now = time.monotonic()
        if now - started > WAIT_FOR_NODES_S:
            return f"no nodes for it came within {WAIT_FOR_NODES_S / 60:.0f} minutes"
        impossible_since = (impossible_since or now) if _is_impossible(bundles) else None
        if impossible_since and now - impossible_since > SURE_AFTER_S:
            return "more than this cluster can ever give, says its autoscaler"
        time.sleep(1)
    return None


def _fits(bundles: Bundles) -> bool:
    """Whether the nodes that are alive could hold the bundles side by side if nobody else used them."""
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in sorted(bundles, key=lambda bundle: -sum(bundle.values())):
        fitting = (node for node in nodes if all(node.get(name, 0) >= amount for name, amount in bundle.items()))
        room = next(fitting, None)
        if room is None:
            return False
        for name, amount in bundle.items():
            room[name] -= amount
    return True


def _is_impossible(bundles: Bundles) -> bool:
    """Whether the autoscaler (v2) says that no nodes it may start could hold the bundles, and none is on its way.

    Ray has no public call for it: this is where ``ray status`` gets its text from. Unknown through Ray's client.
    """
    import ray
    from ray.autoscaler.v2.sdk import GcsClient
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    if ray.util.client.ray.is_connected():
        return False
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    state = GetClusterStatusReply.FromString(client.get_cluster_status(timeout_s=10)).autoscaling_state
    if state.pending_instances or state.pending_instance_requests:
        return False
    refused = [[dict(asked.resources_bundle) for asked in gang.requests]
               for gang in state.infeasible_gang_resource_requests]  # fmt: skip
    return _sizes(bundles) in map(_sizes, refused)


def _sizes(bundles: Sequence[Mapping[str, Any]]) -> list[list[tuple[str, float]]]:
    """Bundles in an order of their own, to compare."""
    return sorted(sorted((name, float(amount)) for name, amount in bundle.items() if amount) for bundle in bundles)


def cores_of_this_host() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
