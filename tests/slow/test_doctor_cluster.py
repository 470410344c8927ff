"""``trimtab doctor`` on a real cluster: its head, its token, its nodes' versions, and what it listens on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.drill]
START_S = 120


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def token_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A head on this machine's own address that asks for a token: (GCS address, environment)."""
    gcs, dashboard, agent = _free_ports(3)
    with tempfile.TemporaryDirectory(prefix="td-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text("0123456789abcdef" * 4, encoding="ascii")
        token.chmod(0o600)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment = clean | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1",
                   "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
                   f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
                   f"--temp-dir={folder}", "--object-store-memory=80000000", "--disable-usage-stats"]  # fmt: skip
        with (Path(folder) / "log").open("wb") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(gcs, head, Path(folder) / "log")
            yield f"127.0.0.1:{gcs}", environment
        finally:
            os.killpg(head.pid, signal.SIGTERM)
            head.wait(60)


def _wait_for(port: int, head: subprocess.Popen[bytes], log: Path) -> None:
    import time

    for _ in range(START_S * 2):
        assert head.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        if "Ray runtime started" in log.read_text(encoding="utf-8"):
            return
        time.sleep(0.5)
    raise AssertionError(f"no head on port {port}")


def _doctor(environment: dict[str, str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and check -> finding."""
    command = [sys.executable, "-c", "from trimtab.cli import main; main()", "doctor", "--json", *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ran.stderr == ""
    return ran.returncode, {found["check"]: found for found in json.loads(ran.stdout)["findings"]}


def test_a_cluster_is_looked_at_node_by_node(token_cluster: tuple[str, dict[str, str]]) -> None:
    address, environment = token_cluster
    _, found = _doctor(environment, "--address", address)
    assert found["cluster.reachable"] == found["cluster.reachable"] | {"level": "ok", "found": address}
    assert found["cluster.nodes"] == found["cluster.nodes"] | {
        "level": "ok", "found": "1, with the same versions as here",
    }  # fmt: skip
    assert found["cluster.clocks"]["level"] == "ok"
    assert found["ray.token"]["level"] == found["ray.token_file"]["level"] == "ok"


def test_a_wrong_token_is_a_finding_and_no_traceback(token_cluster: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = token_cluster
    token = tmp_path / "token"
    token.write_text("f" * 64, encoding="ascii")
    token.chmod(0o600)
    code, found = _doctor(environment | {"RAY_AUTH_TOKEN_PATH": str(token)}, "--address", address)
    assert code == 1
    assert found["cluster.nodes"]["level"] == "error"
