"""The jobs of trimtab on a cluster: who runs, what they print, how they end. Speaks Ray's Jobs API.

A log is followed over a WebSocket, which ends with every tunnel, proxy or laptop that goes to sleep. Ray sends it from
its beginning each time, so what was shown is counted and a lost connection is taken up where it broke off.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trimtab.config import InputError
from trimtab.console import say

if TYPE_CHECKING:
    from rich.table import Table

STAGE_KEY = "trimtab_stage"
"""Of a job's metadata: its presence makes a job one of ours."""
ADDRESS_ENV = "RAY_API_SERVER_ADDRESS"
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
"""Ray's loggers that tell of uploads and closed connections, each with a level of its own."""
SILENCE_S = 60.0
"""A log that says nothing for so long is asked for again: the connection may be gone without a word."""
GIVE_UP_S = 600.0
"""A cluster that has not answered for so long is given up."""
STOP_S = 30.0
"""Ray asks a driver to end, and kills it after some seconds."""


def connect(address: str | None) -> Any:
    """A client of the cluster's Jobs API; what the user typed wins over the environment, which Ray prefers.

    Args:
        address: the dashboard's URL or a cluster's address; None: ``$RAY_API_SERVER_ADDRESS``, ``$RAY_ADDRESS``, or the
            cluster that runs on this machine.

    Raises:
        InputError: nothing answers there, or it refuses the token.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    if address:
        os.environ[ADDRESS_ENV] = address
    shown = address or os.environ.get(ADDRESS_ENV) or os.environ.get("RAY_ADDRESS") or "this machine"
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token file"
        raise InputError("--address", shown, "refuses this token", remedy) from error
    except (OSError, RuntimeError, ValueError) as error:
        remedy = "start a cluster, or forward its dashboard: ray dashboard cluster.yaml"
        raise InputError("--address", shown, f"no Ray cluster answers ({type(error).__name__})", remedy) from error


def ours(client: Any) -> list[Any]:
    """Ray's details of all jobs that trimtab submitted, the latest first."""
    found = [job for job in client.list_jobs() if STAGE_KEY in (job.metadata or {})]
    return sorted(found, key=lambda job: job.start_time or 0, reverse=True)


def details(client: Any, job: str) -> Any:
    """Ray's details of one job.

    Raises:
        InputError: the cluster knows no such job.
    """
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise InputError("job", job, "the cluster knows no such job", "list them: trimtab status") from error


def has_ended(job: Any) -> bool:
    """Whether a job is over, in whichever way."""
    return bool(job.status.is_terminal())


def exit_code(job: Any) -> int:
    """The exit code of a job that has ended: its driver's, or 1 where that died or was stopped."""
    if job.status == "SUCCEEDED":
        return 0
    code = job.driver_exit_code
    return code if code is not None and 0 < code < 128 else 1


def jobs_table(jobs: list[Any]) -> Table:
    """Id, stage, state and since when, a row for each job."""
    from rich.table import Table

    table = Table("job", "stage", "state", "since", box=None, pad_edge=False)
    for job in jobs:
        since = job.end_time or job.start_time
        shown = datetime.fromtimestamp(since / 1000).astimezone().isoformat(" ", "seconds") if since else ""
        table.add_row(job.submission_id, (job.metadata or {}).get(STAGE_KEY, ""), str(job.status), shown)
    return table


def stop(client: Any, job: str) -> Any:
    """Stop a job and wait for its end; one that has ended stays as it is.

    Raises:
        InputError: the cluster knows no such job.
    """
    details(client, job)
    client.stop_job(job)
    until = time.monotonic() + STOP_S
    while not has_ended(now := details(client, job)) and time.monotonic() < until:
        time.sleep(0.2)
    return now


def follow(client: Any, job: str, write: Callable[[str], object]) -> Any:
    """Write a job's log as it grows, through lost connections, until the job has ended; its details then.

    Raises:
        InputError: the cluster knows no such job, or has not answered for ``GIVE_UP_S``.
    """
    log, line = _Log(write), _Line(job)
    details(client, job)
    while True:
        with line.may_break():
            asyncio.run(_tail(client, job, log))
            now = client.get_job_info(job)
            if has_ended(now):
                return now
        time.sleep(line.pause_s)


async def _tail(client: Any, job: str, log: _Log) -> None:
    """Take what the cluster sends until it ends the connection or is silent for too long."""
    log.rewind()
    async with contextlib.aclosing(client.tail_job_logs(job)) as chunks, asyncio.timeout(SILENCE_S) as limit:
        async for chunk in chunks:
            limit.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
            log.take(chunk)


class _Log:
    """Writes a text once that is sent from its beginning more than once."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._shown = self._at = 0

    def rewind(self) -> None:
        """The text begins again."""
        self._at = 0

    def take(self, text: str) -> None:
        """The text's next part."""
        new = text[max(0, self._shown - self._at) :]
        self._at += len(text)
        if new:
            self._shown = self._at
            self._write(new)


class _Line:
    """The connection to a cluster: how long it has been broken."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._broken_since: float | None = None
        self.pause_s = 1.0

    @contextlib.contextmanager
    def may_break(self) -> Iterator[None]:
        """Bear a lost connection, and say so once.

        Raises:
            InputError: it has been lost for too long.
        """
        from aiohttp import ClientError

        try:
            yield
            self._broken_since, self.pause_s = None, 1.0
        except TimeoutError:
            pass  # silence; whether the cluster is still there shows at once
        except (ClientError, OSError, RuntimeError) as error:
            self._wait_longer(error)

    def _wait_longer(self, error: Exception) -> None:
        now = time.monotonic()
        if self._broken_since is None:
            self._broken_since = now
            say(f"{self._job}: connection lost ({type(error).__name__}), trying again")
        self.pause_s = min(2 * self.pause_s, 30.0)
        if now - self._broken_since > GIVE_UP_S:
            problem = f"the cluster has not answered for {GIVE_UP_S:.0f} s"
            raise InputError("job", self._job, problem, "it may still run: trimtab logs ID --follow") from error
