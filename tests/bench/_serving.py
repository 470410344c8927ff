"""What the serving benchmarks have in common: servers as processes, and one asyncio process that asks them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import tiny
from tests.bench._serving_side import vllm_server
from tests.bench._training import ROOT
from tests.ports import serving_port
from trimtab.cluster import RayConfig
from trimtab.config import InputError
from trimtab.policy import keys
from trimtab.serving import ServeConfig

START_S = 300
STOP_S = 60
REQUEST_S = 120


class Side:
    """A running server."""

    def __init__(self, side: str, config: ServeConfig, folder: Path) -> None:
        self.side, self.config = side, config
        self.url = f"http://{config.host}:{config.port}/v1"
        self.log = folder / f"{side}.log"
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        given = {"side": side, "config": config.model_dump(mode="json"), "log": str(self.log)}
        command = [sys.executable, "-m", "tests.bench._serving_side", json.dumps(given)]
        if side == "vllm_server":
            command, more = vllm_server(config)
            env |= more
        with self.log.open("ab") as sink:
            output = sink if side == "vllm_server" else subprocess.PIPE
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=output,
                                            stderr=sink, start_new_session=True)  # fmt: skip

    def wait(self) -> None:
        """Until it answers."""
        if self.side != "vllm_server":
            self._reply()
        deadline = time.monotonic() + START_S
        while not _is_open(self.config.port):
            assert self.process.poll() is None, self.end_of_log()
            assert time.monotonic() < deadline, self.end_of_log()
            time.sleep(0.5)

    def deploy(self, config: ServeConfig) -> None:
        """Change what it serves; returns when Serve has done so."""
        assert self.process.stdin is not None
        self.process.stdin.write(config.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()
        self._reply()

    def processes(self, title: str) -> list[psutil.Process]:
        """The processes of this server whose title holds a text."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in below if title in _title(process)]

    def cpu_s(self) -> float:
        """CPU seconds that its processes, those that run now, have taken."""
        total = 0.0
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += sum(process.cpu_times()[:2])
        return total

    def stop(self) -> None:
        """End it, by its own shutdown where it does that in time."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        below = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        if self.side == "vllm_server" and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        for process in [*below, psutil.Process(self.process.pid)] if self.process.poll() is None else below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def _reply(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{"):
                return
        raise AssertionError(self.end_of_log())

    def end_of_log(self) -> str:
        """What it said last."""
        return f"{self.side}: {self.log.read_text(encoding='utf-8', errors='replace')[-3000:]}"


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def sides(names: tuple[str, ...], config: Callable[[str, Path], ServeConfig]) -> Iterator[dict[str, Side]]:
    """Servers by name, started one after the other, all ended with the block.

    Args:
        config: from a side's name and a folder of this run to its configuration.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ts-", ignore_cleanup_errors=True)))
        running = {}
        for name in names:
            running[name] = side = Side(name, config(name, folder), folder)
            stack.callback(side.stop)
            side.wait()
        yield running


def placed(folder: Path, name: str, **fields: Any) -> ServeConfig:
    """A configuration with a port and a Ray of its own."""
    return ServeConfig(port=serving_port(), ray=RayConfig(temp_dir=folder / f"ray-{name[0]}", num_cpus=8), **fields)


def key_file(path: Path, grants: dict[str, keys.Grant]) -> dict[str, str]:
    """Keys with these ids in a file; their secrets."""
    try:
        return {name: keys.create(path, grant, name)[1] for name, grant in grants.items()}
    except InputError as error:
        raise AssertionError(str(error)) from error


def tiny_model(folder: Path, **size: int) -> Path:
    """The random two-layer model, or one of another size (see ``tiny.save_model``)."""
    path = folder / "model"
    path.mkdir()
    tiny.save_tokenizer(path)
    tiny.save_model(path, path, **size)
    return path


@dataclass
class Answer:
    """What came of one request."""

    status: int = 0
    """0: no answer."""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: int = 0
    """Parts of the text."""
    usage: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    """The stream came to its end, or the error was whole."""
    left: bool = False
    """We went away before."""
    error: str = ""
    started: float = 0.0
    """By ``time.monotonic``, as ``done``."""
    done: float = 0.0
    first_s: float | None = None

    @property
    def lost(self) -> bool:
        """Neither an end nor an error came, and we had not gone."""
        return not self.ended and not self.left


async def ask(
    session: Any, url: str, body: dict[str, Any], secret: str | None, leave_after: int | None = None,
    pause_s: float = 0.0,
) -> Answer:  # fmt: skip
    """One streaming chat request.

    Args:
        leave_after: go away after so many parts of the text.
        pause_s: wait so long before each part is read.
    """
    import aiohttp

    answer = Answer(started=time.monotonic())
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        async with session.post(f"{url}/chat/completions", json=body | {"stream": True}, headers=headers) as response:
            answer.status, answer.headers = response.status, {k.lower(): v for k, v in response.headers.items()}
            if response.status != 200:
                answer.error = (await response.text())[:300]
                answer.ended = True
            else:
                await _read(response, answer, leave_after, pause_s)
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    answer.done = time.monotonic()
    return answer


async def _read(response: Any, answer: Answer, leave_after: int | None, pause_s: float) -> None:
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            answer.ended = True
            continue
        event = json.loads(line[6:])
        if "error" in event:
            answer.error = str(event["error"])[:300]
            return
        answer.usage = event.get("usage") or answer.usage
        if event.get("choices") and event["choices"][0]["delta"].get("content"):
            answer.first_s = answer.first_s or time.monotonic() - answer.started
            answer.chunks += 1
            if leave_after is not None and answer.chunks >= leave_after:
                answer.left = True
                response.close()
                return
        if pause_s:
            await asyncio.sleep(pause_s)


async def in_parallel(num_clients: int, one: Callable[[Any, int], Any], num_requests: int) -> list[Answer]:
    """So many clients make all requests between them.

    Args:
        one: from the session and a request's number to its answer, awaited.
    """
    import aiohttp

    numbers, answers = iter(range(num_requests)), []
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_S)

    async def client(session: Any) -> None:
        for number in numbers:
            answers.append(await one(session, number))

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
    return answers
