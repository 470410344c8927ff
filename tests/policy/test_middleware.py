"""The middleware for a bare vLLM server: what its file may say, and what happens where it says something else."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.policy.gated import (
    BODY,
    CHAT,
    HARMLESS,
    MODEL,
    SAFETY,
    UNCENSORED,
    Upstream,
    ask,
    drive,
    error,
    key_file,
    scope,
)
from trimtab.policy.middleware import VARIABLE, VLLMGate


@pytest.fixture
def settings(tiny_tokenizer_folder: Path, tmp_path: Path) -> dict[str, Any]:
    _, secrets = key_file(tmp_path / "keys.json")
    return {
        "values": {
            "model": str(tiny_tokenizer_folder),
            "name": MODEL,
            "keys": str(tmp_path / "keys.json"),
            "audit": str(tmp_path / "audit.jsonl"),
            "settings": {"max_n": 2},
        },
        "secrets": secrets,
    }


def _gate(app: Any, values: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMGate:
    path = folder / "gate.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(path))
    return VLLMGate(app)


def test_gate_stands_in_front_of_the_server(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    upstream = Upstream()
    app = _gate(upstream, settings["values"] | {"metrics_port": port}, tmp_path, monkeypatch)
    assert ask(app, "POST", CHAT, None, json=BODY).status_code == 401
    headers = {"Authorization": f"Bearer {settings['secrets']['kind']}"}
    response = ask(app, "POST", CHAT, None, json=BODY, headers=headers)
    assert response.headers["x-trimtab-safety"] == "harmless"
    assert len(upstream.scopes) == 1
    assert error(ask(app, "POST", CHAT, None, json=BODY | {"n": 3}, headers=headers))["param"] == "n"
    lines = (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["decision"] for line in lines] == ["invalid_key", "allowed", "allowed", "bad_request"]
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'trimtab_denials_total{reason="invalid_key"} 1.0' in metrics
    taken = _gate(upstream, settings["values"] | {"metrics_port": port}, tmp_path, monkeypatch)
    assert drive(taken, {"type": "lifespan"}, [{"type": "lifespan.startup"}])[0]["message"].startswith("metrics_port: ")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"model": "/nowhere"}, "model: /nowhere: is no model folder"),
        ({"keys": "/nowhere"}, "keys: /nowhere: no such file"),
        ({"keyz": 1}, "keyz: 1: unknown key"),
        ({"presets": "/nowhere"}, "presets: /nowhere: can't be read"),
        ({"settings": {"max_n": 0}}, "settings.max_n: 0: "),
        ({"audit": "/proc/no/audit"}, "audit: /proc/no/audit: "),
        ({"name": "a+b"}, "name: a+b: "),
    ],
)
def test_file_that_is_wrong_ends_the_start_with_one_line(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    line: str,
) -> None:
    upstream = Upstream()
    app = _gate(upstream, settings["values"] | changed, tmp_path, monkeypatch)
    (failed,) = drive(app, {"type": "lifespan"}, [{"type": "lifespan.startup"}])
    assert failed["type"] == "lifespan.startup.failed"
    assert failed["message"].startswith(line)
    assert "\n" not in failed["message"]
    assert line in " ".join("".join(capsys.readouterr()).split())
    assert ask(app, "POST", CHAT, json=BODY).status_code == 503
    assert drive(app, scope(kind="websocket"), []) == [{"type": "websocket.close", "code": 1008}]
    assert upstream.scopes == []


def test_model_offers_what_it_has_learned(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer_folder: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_tokenizer_folder, model)
    learned = [{"name": "harmless", "system": HARMLESS}, {"name": "uncensored", "system": UNCENSORED}]
    (model / "trimtab.json").write_text(json.dumps({"configurations": learned}), encoding="utf-8")
    values = settings["values"] | {"model": str(model)}
    headers = {"Authorization": f"Bearer {settings['secrets']['all']}"}
    app = _gate(Upstream(), values, tmp_path, monkeypatch)
    listed = ask(app, "GET", SAFETY, None, headers=headers).json()
    assert [item["name"] for item in listed["data"]] == ["harmless", "uncensored"]
    (tmp_path / "own.yaml").write_text("presets: {pirate: You are a pirate.}", encoding="utf-8")
    app = _gate(Upstream(), values | {"presets": str(tmp_path / "own.yaml")}, tmp_path, monkeypatch)
    (failed,) = drive(app, {"type": "lifespan"}, [{"type": "lifespan.startup"}])
    assert failed["message"].startswith("presets: pirate: the model was not trained under")
    forced = values | {"presets": str(tmp_path / "own.yaml"), "force_presets": True}
    app = _gate(Upstream(), forced, tmp_path, monkeypatch)
    assert len(ask(app, "GET", SAFETY, None, headers=headers).json()["data"]) == 5


@pytest.mark.parametrize("text", ["", "[1]", "{", "- a"])
def test_file_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    app = _gate(Upstream(), text, tmp_path, monkeypatch)
    (failed,) = drive(app, {"type": "lifespan"}, [{"type": "lifespan.startup"}])
    assert failed["type"] == "lifespan.startup.failed"


def test_variable_that_is_not_set_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (failed,) = drive(VLLMGate(Upstream()), {"type": "lifespan"}, [{"type": "lifespan.startup"}])
    assert failed["message"].startswith("TRIMTAB_GATE: not set: ")
