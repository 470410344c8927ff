"""A stage as a job of a cluster: what is sent, under which id, and what is refused before anything is sent.

Sent are this package (``py_modules``) and a folder with one file, the resolved configuration (``working_dir``), so the
same works from a checkout and from an installed wheel. The id is ``<stage>-<fingerprint>-<attempt>``: Ray refuses an id
that it has seen, so of two submits at the same moment one wins. Job records are readable by all who reach the
cluster: no secret may stand in them, and the job's processes take theirs from the nodes' environment.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trimtab.artifacts import fingerprint, write_text
from trimtab.config import Config, InputError
from trimtab.operations import cluster_jobs

CONFIG = "config.yaml"
EXCLUDES = ["__pycache__"]
ENV_VARS = {"HF_HUB_DISABLE_TELEMETRY": "1"}
"""All that a job's runtime environment sets; the same as in ``jobs/runtime_env.yaml``."""
SEEN, STILL_STARTING = "already exists", "No available agent"
"""Of Ray's answers: the id is taken; no node of a cluster that has just been started is ready for jobs."""
STARTING_S = 90.0
SECRET_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
SHORTEST_SECRET = 8
SECRET_TEXT = re.compile(
    r"\bsk-[\w-]{16,}|\bhf_\w{20,}|\bgh[pousr]_\w{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s@]*:[^/\s@]+@"
)
"""Keys of well-known services, private keys, and passwords in URLs."""


def submit(command: str, config: Config, address: str | None) -> str:
    """Start a stage as a job; its id.

    Args:
        command: the stage's command, such as ``evaluate prefill``.
        config: the stage's resolved configuration.
        address: of the cluster, as for ``cluster_jobs.connect``.

    Raises:
        InputError: the configuration can't be sent, no cluster takes it, or the same job is pending or running.
    """
    refuse_places_of_this_machine(config)
    refuse_secrets(config)
    client = cluster_jobs.connect(address)
    base = base_id(command, config)
    job = next_id(base, cluster_jobs.ours(client))
    with tempfile.TemporaryDirectory(prefix="trimtab-job-") as folder:
        write_text(Path(folder) / CONFIG, config.dump_yaml())
        return _send(client, job, command, Path(folder))


def base_id(command: str, config: Config) -> str:
    """The id without its attempt: the same for the same recipe into the same output."""
    inputs = {"output": str(getattr(config, "output", None))}
    return f"{command.replace(' ', '-')}-{fingerprint(command, config, inputs)}"


def next_id(base: str, jobs: list[Any]) -> str:
    """The id of the next attempt.

    Raises:
        InputError: an attempt is pending or running.
    """
    attempts = {job.submission_id: job for job in jobs if job.submission_id.rpartition("-")[0] == base}
    for job in attempts.values():
        if not cluster_jobs.has_ended(job):
            raise _runs_already(job.submission_id, f"this job is {str(job.status).lower()} already")
    return f"{base}-{max((int(name.rpartition('-')[2]) for name in attempts), default=0) + 1}"


def _runs_already(job: str, problem: str) -> InputError:
    return InputError("submit", job, problem, f"follow it: trimtab logs {job} --follow; or trimtab stop {job}")


def _send(client: Any, job: str, command: str, folder: Path) -> str:
    runtime_env = {
        "py_modules": [str(Path(__file__).parents[1])], "working_dir": str(folder), "excludes": EXCLUDES,
        "env_vars": ENV_VARS,
    }  # fmt: skip
    about = {cluster_jobs.STAGE_KEY: command}
    order = {"entrypoint": f"python -m trimtab.cli {command} --config {CONFIG}", "runtime_env": runtime_env,
             "metadata": about, "submission_id": job}  # fmt: skip
    until = time.monotonic() + STARTING_S
    while (problem := _refusal(client, order)) and STILL_STARTING in problem and time.monotonic() < until:
        time.sleep(1)
    if SEEN in problem:
        raise _runs_already(job, "another submit was a moment faster")
    if problem:
        raise InputError("submit", job, f"the cluster did not take it ({problem})", "look at its nodes: ray status")
    return job


def _refusal(client: Any, order: dict[str, Any]) -> str:
    """Submit; why the cluster did not take it, or nothing."""
    try:
        client.submit_job(**order)
    except RuntimeError as error:
        return str(error)
    return ""


def refuse_places_of_this_machine(config: Config) -> None:
    """A job runs in a folder of its own on another machine: relative paths would mean something else there.

    Raises:
        InputError: a path is relative.
    """
    for field, value in _leaves(config):
        path = Path(value.rpartition("=")[2]) if isinstance(value, str) else value
        if not isinstance(path, Path) or path.is_absolute():
            continue
        if not isinstance(value, str) or (os.sep in value and path.exists()):
            problem = "is relative, and a job runs in a folder of its own"
            raise InputError(field, value, problem, "give a path that all nodes see, or a URI")


def refuse_secrets(config: Config) -> None:
    """Configurations travel in packages and records that others can read; the value isn't shown.

    Raises:
        InputError: a value looks like a key, or is that of an environment variable whose name says so.
    """
    secrets = {name: value for name, value in os.environ.items()
               if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET}  # fmt: skip
    for field, value in _leaves(config):
        name = next((name for name, secret in secrets.items() if secret in str(value)), None)
        if name or SECRET_TEXT.search(str(value)):
            problem = f"holds the value of ${name}" if name else "looks like a key or a password"
            remedy = "set it in the environment of the cluster's nodes and name the variable"
            raise InputError(field, "(not shown)", f"{problem}, and jobs are readable", remedy)


def _leaves(value: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a configuration with its dotted name."""
    if isinstance(value, Config):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{field}.{name}".lstrip("."))
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _leaves(item, field)
    else:
        yield field, value
