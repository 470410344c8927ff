"""Jobs on a real local cluster that the test starts: token authentication, its own ports and folders."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
TRIMTAB = [sys.executable, "-m", "trimtab.cli"]
PLANTED = f"planted-{secrets.token_hex(16)}"
ID = re.compile(r"synthesize-[0-9a-f]{16}-\d+")


def _ports(num: int) -> list[int]:
    """Free ports below those that the system gives to connections, and above those of Ray's workers."""
    free: list[int] = []
    while len(free) < num:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(20000, 32000)))
            free.append(probe.getsockname()[1])
    return free


@pytest.fixture(scope="module")
def cluster_env() -> Iterator[dict[str, str]]:
    """Environment to reach a fresh head node; it is stopped by the process that was started."""
    port, dashboard, agent = _ports(3)
    with tempfile.TemporaryDirectory(prefix="tj-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"HOME": folder, "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(RAY).parent}:{env['PATH']}",
                "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "JUDGE_API_KEY": PLANTED,
                "PYTHONPATH": str(ROOT / "platform")}  # fmt: skip
        on_the_node = {name: value for name, value in env.items() if name != "PYTHONPATH"}  # a job brings the package
        command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
                   f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", "--num-cpus=4",
                   "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]  # fmt: skip
        log = (Path(folder) / "head.log").open("wb")
        head = subprocess.Popen(
            command, env=on_the_node, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_until_up(address, env, head, Path(folder) / "head.log")
            yield env | {"RAY_API_SERVER_ADDRESS": address}
        finally:
            head.terminate()
            head.wait(180)  # it ends what it started first
            log.close()


def _wait_until_up(address: str, env: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    headers = {"Authorization": f"Bearer {Path(env['RAY_AUTH_TOKEN_PATH']).read_text()}"}
    for _ in range(240):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{address}/api/jobs/", headers=headers, timeout=5).status_code == 200:
                return
        assert head.poll() is None, log.read_text()[-2000:]
        time.sleep(0.25)
    raise AssertionError(f"the head did not come up: {log.read_text()[-2000:]}")


def _start(env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*TRIMTAB, *arguments], env=env, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def _run(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    process = _start(env, *arguments)
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def _rows(path: Path) -> None:
    rows = [{"system": "Be kind.", "prompt": f"How are you, {i}?", "chosen": "Well.", "rejected": "Bad."}
            for i in range(3)]  # fmt: skip
    path.write_text(json.dumps(rows))


def _import_job(folder: Path) -> list[str]:
    recipe = f"recipe={{type: imported, data: {folder / 'rows.json'}}}"
    return ["synthesize", "--set", f"output={folder / 'out'}", "--set", recipe]


def test_job_imports_the_package_and_leaves_its_record(cluster_env: dict[str, str], tmp_path: Path) -> None:
    _rows(tmp_path / "rows.json")
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--",
               sys.executable, "jobs/synthesize_pairs.py", *_import_job(tmp_path)[1:]]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, env=cluster_env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["stage"] == "synthesize"
    assert record["counts"]["groups"] == 3


def test_failed_job_gives_its_exit_code_and_its_line_and_goes_on_as_the_next_attempt(
    cluster_env: dict[str, str], tmp_path: Path
) -> None:
    code, said = _run(cluster_env, "submit", *_import_job(tmp_path))
    first = ID.search(said)
    assert first, said
    assert first[0].endswith("-1")
    assert code == 2, said
    assert re.search(r"^trimtab: .*rows\.json", said, re.MULTILINE), said
    chatter = [line for line in said.splitlines() if "INFO" in line and "job_manager.py" not in line]
    assert chatter == [], "Ray's own, but for the line with which it begins each job's log"
    assert f"{first[0]}: failed" in said

    _rows(tmp_path / "rows.json")
    code, said = _run(cluster_env, "submit", *_import_job(tmp_path))
    assert code == 0, said
    assert f"{first[0][:-1]}2: succeeded" in said
    assert "synthesize: done" in said
    assert json.loads((tmp_path / "out" / "record.json").read_text())["counts"]["groups"] == 3
    assert PLANTED not in said

    code, listed = _run(cluster_env, "status")
    assert code == 0
    assert re.search(rf"{first[0]} +synthesize +FAILED", listed), listed
    assert re.search(rf"{first[0][:-1]}2 +synthesize +SUCCEEDED", listed), listed


@pytest.fixture
def waiting(cluster_env: dict[str, str], tmp_path: Path) -> Iterator[list[str]]:
    """A job that waits for an endpoint that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        engine = f"engine={{type: openai, model: m, base_url: 'http://127.0.0.1:{silent.getsockname()[1]}/v1'}}"
        yield ["synthesize", "--set", f"output={tmp_path / 'out'}", "--set", engine, "--set", "recipe.num_requests=2"]


def test_running_job_is_not_launched_twice_and_outlives_its_followers(
    cluster_env: dict[str, str], waiting: list[str]
) -> None:
    both = [_start(cluster_env, "submit", *waiting, "--no-wait") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    job = ID.search(said[0])
    assert job, said
    refused = said[[process.returncode for process in both].index(2)]
    code, again = _run(cluster_env, "submit", *waiting)
    assert code == 2
    for line in (refused, again):
        assert f"submit: {job[0]}: " in line
        assert f"trimtab logs {job[0]}" in line

    with _cuttable(cluster_env["RAY_API_SERVER_ADDRESS"]) as (url, cut):
        through = _start(cluster_env, "logs", job[0], "--follow", "--address", url)
        leaving = _start(cluster_env, "logs", job[0], "--follow")
        before = [_read_until(process, "log of the libraries") for process in (through, leaving)]
        os.killpg(leaving.pid, signal.SIGINT)
        goodbye, _ = leaving.communicate(timeout=60)
        assert leaving.returncode == 130
        assert f"trimtab stop {job[0]}" in goodbye
        cut()
        before[0] += _read_until(through, "connection lost")
        assert re.search(rf"{job[0]} +synthesize +RUNNING", _run(cluster_env, "status", job[0])[1])
        assert _run(cluster_env, "stop", job[0]) == (0, f"{job[0]}: stopped\n")
        rest, _ = through.communicate(timeout=120)
    assert through.returncode == 1
    assert f"{job[0]}: stopped" in rest
    assert (before[0] + rest).count("log of the libraries") == 1, "the log is shown once"

    code, resumed = _run(cluster_env, "submit", *waiting, "--no-wait")
    assert code == 0
    assert f"{job[0][:-1]}2: submitted" in resumed
    assert _run(cluster_env, "stop", f"{job[0][:-1]}2")[0] == 0


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"never said {text!r}: {said}")


@contextlib.contextmanager
def _cuttable(address: str) -> Iterator[tuple[str, Any]]:
    """A tunnel to the cluster, as ssh's would be, and a function that cuts every connection in it."""
    to = ("127.0.0.1", int(address.rpartition(":")[2]))
    ends: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept(server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = server.accept()[0], socket.create_connection(to)
                ends.extend((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def cut() -> None:
        while ends:
            end = ends.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, args=(server,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}", cut
        finally:
            cut()
            server.shutdown(socket.SHUT_RDWR)


def test_what_the_cluster_keeps_of_jobs_holds_no_secret(cluster_env: dict[str, str]) -> None:
    token = Path(cluster_env["RAY_AUTH_TOKEN_PATH"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{cluster_env['RAY_API_SERVER_ADDRESS']}/api/jobs/", headers=headers)
    jobs = [job for job in answer.json() if job["type"] == "SUBMISSION"]
    assert len(jobs) >= 3, "the tests before this one leave their jobs"
    assert not [secret for secret in (PLANTED, token) if secret in answer.text]
    ours = [job for job in jobs if job["metadata"]]
    assert {name for job in ours for name in job["runtime_env"]["env_vars"]} == {"HF_HUB_DISABLE_TELEMETRY"}
    session = Path(cluster_env["HOME"]) / "session_latest"
    for path in [*session.glob("runtime_resources/**/config.yaml"), *session.glob("logs/job-driver-*")]:
        assert PLANTED not in path.read_text(errors="replace"), path.name


def test_cluster_refuses_who_has_no_token(cluster_env: dict[str, str], tmp_path: Path) -> None:
    without = {name: value for name, value in cluster_env.items() if not name.startswith("RAY_AUTH_")}
    code, said = _run(without | {"HOME": str(tmp_path)}, "status")
    assert code == 2
    assert "refuses this token" in said
    assert "Traceback" not in said
