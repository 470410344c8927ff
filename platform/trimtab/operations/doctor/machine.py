"""What this machine gives: accelerators, disk, shared memory, open files, cores. Each check takes plain numbers."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from trimtab.operations.doctor.findings import Finding, Level

GIB = 2**30
QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA's major version -> the least driver (NVIDIA's release notes, minor-version compatibility)."""
OBJECT_STORE_SHARE = 0.3
"""Of the memory that Ray takes for its object store, in shared memory."""
RAY_FULL_SHARE = 0.95
"""Ray spills nothing to a disk that is fuller (``RAY_local_fs_capacity_threshold``)."""
LITTLE_DISK, TOO_LITTLE_DISK = 20 * GIB, GIB
MANY_FILES, FEW_FILES = 65536, 8192


@dataclass(frozen=True)
class Gpu:
    """One line of ``nvidia-smi``."""

    name: str
    memory_mib: int
    driver: str


def gpus() -> list[Gpu] | None:
    """The GPUs that the driver shows; None: no driver."""
    if shutil.which(QUERY[0]) is None:
        return None
    try:
        ran = subprocess.run(QUERY, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return []
    return parse_gpus(ran.stdout) if ran.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """The answer of ``nvidia-smi`` to ``QUERY``; lines that are none are left out."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    return [Gpu(row[0], int(row[1]), row[2]) for row in rows if len(row) == 3 and row[1].isdigit()]


def accelerators(found: list[Gpu] | None, extra: str | None, cuda: str | None) -> Finding:
    """Whether the installed build and the machine's accelerators belong together.

    Args:
        found: GPUs; None: no driver.
        extra: ``cpu`` or ``gpu``, as installed.
        cuda: the CUDA version that torch is built for.
    """
    check = "machine.accelerators"
    if not found:
        shown = "no NVIDIA driver" if found is None else "nvidia-smi shows no GPU"
        if extra == "gpu":
            return Finding(check, "error", shown, "vllm needs a GPU, and this is its CUDA build",
                           "nvidia-smi  # mend the driver, or: pip install 'trimtab[cpu]'")  # fmt: skip
        return Finding(check, "note", f"{shown}: CPU", "a small model runs; large ones need a GPU")
    shown = f"{len(found)} x {found[0].name}, {found[0].memory_mib / 1024:.0f} GiB, driver {found[0].driver}"
    if extra == "cpu":
        return Finding(check, "warning", shown, "the CPU build is installed, so they stay idle", "make setup EXTRA=gpu")
    least = LEAST_DRIVER.get(int((cuda or "0").partition(".")[0]), 0)
    if int(found[0].driver.partition(".")[0]) < least:
        return Finding(check, "error", f"{shown}; torch is built for CUDA {cuda}", f"CUDA {cuda} needs driver {least}",
                       f"install NVIDIA driver {least} or later")  # fmt: skip
    return Finding(check, "ok", shown)


def free_disk(name: str, folder: Path) -> Finding:
    """Room where an output, or a Ray's temporary files, will be; the nearest folder that is there is asked."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    usage = shutil.disk_usage(place)
    return disk_room(name, str(folder), usage.free, usage.total)


def disk_room(name: str, folder: str, free: int, total: int) -> Finding:
    """What so many free bytes are good for."""
    shown = f"{free / GIB:.1f} of {total / GIB:.0f} GiB free in {folder}"
    remedy = f"du -xh --max-depth=2 {folder} | sort -h | tail  # and free some, or choose another folder"
    check = f"disk.{name}"
    if free < TOO_LITTLE_DISK:
        return Finding(check, "error", shown, "a run stops when the disk is full", remedy)
    if name == "ray" and free < (1 - RAY_FULL_SHARE) * total:
        return Finding(
            check, "error", shown, f"Ray spills nothing to a disk that is fuller than {RAY_FULL_SHARE:.0%}", remedy
        )
    if free < LITTLE_DISK:
        return Finding(check, "warning", shown, "models, checkpoints and spilled objects take tens of GiB", remedy)
    return Finding(check, "ok", shown)


def shared_memory(total: int | None, memory: int) -> Finding:
    """Whether ``/dev/shm`` holds the object store that Ray will make.

    Args:
        total: size of ``/dev/shm``; None: there is none.
        memory: memory that this process may use.
    """
    needed = OBJECT_STORE_SHARE * memory
    shown = (
        "no /dev/shm" if total is None else f"{total / GIB:.1f} GiB, Ray wants {needed / GIB:.1f} for its object store"
    )
    if total is not None and total >= needed:
        return Finding("machine.shared_memory", "ok", shown)
    remedy = f"docker run --shm-size={needed / GIB:.0f}g …, or mount an emptyDir with medium: Memory"
    why = "Ray then keeps its objects on disk, many times slower"
    return Finding("machine.shared_memory", "warning", shown, why, remedy)


def open_files(soft: int, hard: int) -> Finding:
    """The limit on open files: Ray takes some for each worker, a server for each request."""
    if soft < 0 or soft >= MANY_FILES:
        return Finding("machine.open_files", "ok", "no limit" if soft < 0 else str(soft))
    level: Level = "warning" if soft < FEW_FILES else "note"
    raised = f"ulimit -n {min(hard, MANY_FILES) if hard > 0 else MANY_FILES}  # in the shell that starts Ray"
    beyond = f"raise nofile in /etc/security/limits.conf, or docker run --ulimit nofile={MANY_FILES}"
    why = "a head node of many workers runs out of them"
    return Finding("machine.open_files", level, f"{soft} (at most {hard})", why, beyond if hard == soft else raised)


def cores(usable: int, quota: float | None, omp_threads: str | None) -> Finding:
    """Cores that this process sees, what a container grants of them, and OpenMP's own setting.

    Args:
        usable: cores of the process's affinity.
        quota: cores' worth of time that the control group grants; None: no limit.
    """
    check = "machine.cores"
    if quota is not None and quota < usable:
        least = max(1, int(quota))
        return Finding(check, "warning", f"{usable} cores, of which the container grants {quota:g}",
                       "OpenMP starts a thread a core, and they wait for one another",
                       f"export OMP_NUM_THREADS={least}; ray start --num-cpus={least} …")  # fmt: skip
    if omp_threads and omp_threads.isdigit() and int(omp_threads) < usable:
        return Finding(check, "note", f"{usable} cores, OMP_NUM_THREADS={omp_threads}",
                       "torch computes on so few where nothing else is said", "unset OMP_NUM_THREADS")  # fmt: skip
    return Finding(check, "ok", f"{usable} cores")


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that the control group grants (version 2, else 1); None: no limit."""
    unified = root / "cpu.max"
    if unified.is_file():
        given, _, period = unified.read_text(encoding="ascii").strip().partition(" ")
        return None if given == "max" else int(given) / int(period or 100_000)
    old = root / "cpu" / "cpu.cfs_quota_us"
    if old.is_file():
        quota = int(old.read_text(encoding="ascii"))
        return None if quota <= 0 else quota / int((root / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return None


def memory_limit(memory: int, root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may use: the machine's, or less where its control group says so."""
    for path in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        if path.is_file():
            given = path.read_text(encoding="ascii").strip()
            return memory if given == "max" else min(memory, int(given))
    return memory
