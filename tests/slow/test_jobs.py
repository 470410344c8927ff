"""A job submitted to a real local cluster that the test starts, with its own ports and folders."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")


def _ports(num: int) -> list[int]:
    probes = [socket.socket() for _ in range(num)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def cluster_env() -> Iterator[dict[str, str]]:
    """Environment to reach a fresh head node; it is stopped by the process that was started."""
    port, dashboard, agent = _ports(3)
    with tempfile.TemporaryDirectory(prefix="tj-", ignore_cleanup_errors=True) as folder:
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        env |= {"HOME": folder, "RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(RAY).parent}:{env['PATH']}"}
        command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}",
                   f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}", "--num-cpus=4",
                   "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]  # fmt: skip
        log = (Path(folder) / "head.log").open("wb")
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            address = f"http://127.0.0.1:{dashboard}"
            _wait_until_up(address, env, head, Path(folder) / "head.log")
            yield env | {"RAY_API_SERVER_ADDRESS": address}
        finally:
            head.terminate()
            head.wait(30)
            log.close()


def _wait_until_up(address: str, env: dict[str, str], head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(60):
        ran = subprocess.run([RAY, "job", "list", "--address", address], env=env, capture_output=True, check=False)
        if ran.returncode == 0:
            return
        assert head.poll() is None, log.read_text()[-2000:]
        time.sleep(1)
    raise AssertionError(f"the head did not come up: {log.read_text()[-2000:]}")


def test_job_imports_the_package_and_leaves_its_record(cluster_env: dict[str, str], tmp_path: Path) -> None:
    rows = [{"system": "Be kind.", "prompt": f"How are you, {i}?", "chosen": "Well.", "rejected": "Bad."}
            for i in range(3)]  # fmt: skip
    source, config = tmp_path / "rows.json", tmp_path / "job.yaml"
    source.write_text(json.dumps(rows))
    config.write_text(
        json.dumps({"output": str(tmp_path / "out"), "recipe": {"type": "imported", "data": str(source)}})
    )
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--",
               sys.executable, "jobs/synthesize_pairs.py", "--config", str(config)]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, env=cluster_env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["stage"] == "synthesize"
    assert record["counts"]["groups"] == 3


def test_job_with_a_bad_config_fails_with_its_one_line(cluster_env: dict[str, str], tmp_path: Path) -> None:
    command = [RAY, "job", "submit", "--working-dir", ".", "--runtime-env", "jobs/runtime_env.yaml", "--",
               sys.executable, "jobs/train_dpo.py", "--set", f"output={tmp_path / 'out'}",
               "--set", "data=[/nowhere]"]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, env=cluster_env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode != 0
    assert "trimtab: " in ran.stdout + ran.stderr
    assert not (tmp_path / "out").exists()
