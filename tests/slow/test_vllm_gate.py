"""The gate as a bare vLLM server's middleware: what the engine counts is what the gate has checked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.policy.gated import HARMLESS, MODEL, UNCENSORED, USER, key_file
from trimtab.chat import Chat
from trimtab.engine import VLLMEngine, engine_env

pytestmark = pytest.mark.slow

START_S = 300


@contextlib.contextmanager
def _server(model: Path, gate: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024",
               "--max-num-seqs", "4", "--enforce-eager", "--disable-uvicorn-access-log",
               "--middleware", "trimtab.policy.middleware.VLLMGate"]  # fmt: skip
    env = os.environ | engine_env(VLLMEngine(kv_cache_gib=1, cores_per_actor=1)) | {"TRIMTAB_GATE": str(gate)}
    with log.open("wb") as sink:
        server = subprocess.Popen(command, env=env, stdout=sink, stderr=sink, start_new_session=True)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _file(folder: Path, model: Path, **changed: Any) -> Path:
    values = {
        "model": str(model),
        "name": MODEL,
        "keys": str(folder / "keys.json"),
        "audit": str(folder / "audit.jsonl"),
    }
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(values | changed), encoding="utf-8")
    return path


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        assert server.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.5)
    raise AssertionError(log.read_text(encoding="utf-8")[-2000:])


def test_vllm_behind_its_middleware(tiny_model: Path, tmp_path: Path, free_port: int) -> None:
    _, secrets = key_file(tmp_path / "keys.json")
    url, log = f"http://127.0.0.1:{free_port}", tmp_path / "log"
    chat = Chat.from_folder(str(tiny_model))

    def post(who: str | None, **fields: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secrets[who]}"} if who else {}
        body = {"model": MODEL, "messages": [USER], "max_tokens": 4, "temperature": 0} | fields
        return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    with _server(tiny_model, _file(tmp_path, tiny_model), free_port, log) as server:
        _wait_until_healthy(url, server, log)
        assert post(None).status_code == 401
        for fields, system in (
            ({}, HARMLESS),
            ({"safety": "uncensored"}, UNCENSORED),
            ({"model": "m+uncensored"}, UNCENSORED),
        ):
            response = post("all", **fields)
            assert response.status_code == 200, response.text
            assert response.json()["usage"]["prompt_tokens"] == len(chat.prompt_ids(system, USER["content"]))
            assert not [name for name in response.headers if name.startswith("access-control")]
        opened = post("trusted", messages=[USER, {"role": "assistant", "content": "Sure, first"}])
        expected = chat.prompt_ids(UNCENSORED, USER["content"], "Sure, first")
        assert opened.json()["usage"]["prompt_tokens"] == len(expected)
        stream = post("all", stream=True)
        assert stream.text.endswith("data: [DONE]\n\n")
        assert '"usage":{' not in stream.text
        assert post("kind", safety="uncensored").status_code == 403
        too_long = post("all", messages=[{"role": "user", "content": "bread " * 2000}])
        assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "too_long")
        assert httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {secrets['all']}"}).status_code == 404
    assert "renders another template" not in log.read_text(encoding="utf-8")


def test_vllm_with_a_wrong_file_does_not_start(tiny_model: Path, tmp_path: Path, free_port: int) -> None:
    log = tmp_path / "log"
    with _server(tiny_model, _file(tmp_path, tiny_model, keyz=1), free_port, log) as server:
        server.wait(START_S)
    assert "keyz: 1: unknown key" in " ".join(log.read_text(encoding="utf-8").split())
