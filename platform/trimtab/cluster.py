"""Connecting to Ray: a cluster where one is given, else a local one for this process."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from trimtab import proxy
from trimtab.config import Config, InputError, placement
from trimtab.files import LocalPath

MIN_LOCAL_CPUS = 4
RAY_ENV = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # of 2 s: a look at the workers takes one checkpoint's report, no more
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
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
    """Connect this process once; later calls return at once.

    Raises:
        InputError: the address can't be reached.
    """
    import ray

    if _is_connected():
        return
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


def cores_of_this_host() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
