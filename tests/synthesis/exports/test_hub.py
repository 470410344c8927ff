"""What goes to the Hub: nothing unasked; the dataset folder, once asked; one line where that fails."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.synthesis.test_export import export, files_of, two_shards
from trimtab.artifacts import read_record
from trimtab.config import InputError


class StandInHub(ThreadingHTTPServer):
    """Answers what a push asks of the Hub, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.refuses = False
        self.asked: list[str] = []
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}


class _HubHandler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_GET(self) -> None:
        self._answer(401, {"error": "Invalid credentials"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.server.refuses or self.headers["Authorization"] != "Bearer hf_test":
            self._answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer(200, {"url": f"{self.server.url}/datasets/me/pairs"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif self.path == "/api/datasets/me/pairs/preupload/main":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for file in json.loads(body)["files"]]  # fmt: skip
            self._answer(200, {"files": files})
        elif self.path == "/api/datasets/me/pairs/commit/main":
            for item in map(json.loads, body.splitlines()):
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self._answer(200, {"commitUrl": f"{self.server.url}/datasets/me/pairs/commit/{'a' * 40}",
                               "commitOid": "a" * 40})  # fmt: skip
        else:
            self._answer(404, {"error": "not found"})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The Hub's client may use the network, with a token of the test's own."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield monkeypatch
    close_session()


@pytest.fixture
def stand_in_hub(online: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """A small real server in the place of the Hub."""
    with StandInHub() as server:
        online.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Two shards."""
    return two_shards(tmp_path / "groups")


def test_push_sends_the_dataset_folder_and_nothing_else(groups: Path, stand_in_hub: StandInHub) -> None:
    output, first = export(groups, "trl", "dataset")
    assert stand_in_hub.asked == []
    assert export(groups, "trl", "dataset", push_to="me/pairs")[1] == first
    assert stand_in_hub.created == [{"name": "pairs", "organization": "me", "type": "dataset", "visibility": "private"}]
    folder = output / "dataset"
    assert stand_in_hub.files == {name: (folder / name).read_bytes() for name in files_of(folder)}


def test_public_only_when_said(groups: Path, stand_in_hub: StandInHub) -> None:
    export(groups, "dataset", push_to="me/pairs", private=False)
    assert stand_in_hub.created[0]["visibility"] == "public"


def test_refused_push_is_one_line_and_the_same_command_sends_it_later(groups: Path, stand_in_hub: StandInHub) -> None:
    stand_in_hub.refuses = True
    with pytest.raises(InputError, match=r"^push_to: me/pairs: was not reached or refuses \(.*401.*HF_TOKEN") as raised:
        export(groups, "dataset", push_to="me/pairs")
    assert "\n" not in str(raised.value)
    assert read_record(groups.parent / "out") is not None
    stand_in_hub.refuses = False
    export(groups, "dataset", push_to="me/pairs")
    assert "README.md" in stand_in_hub.files


def test_unreachable_hub_is_one_line_and_the_export_is_complete(groups: Path, online: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:  # bound and not listening: nobody answers
        probe.bind(("127.0.0.1", 0))
        online.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{probe.getsockname()[1]}")
        with pytest.raises(InputError, match=r"^push_to: me/pairs: was not reached .* is complete; see that HF_TOKEN"):
            export(groups, "dataset", push_to="me/pairs")
    output = groups.parent / "out"
    assert read_record(output) is not None
    assert files_of(output / "dataset")[0] == "README.md"


@pytest.mark.parametrize(
    ("formats", "repository", "expected"),
    [
        (("trl",), "me/pairs", "only the format dataset can be sent; add dataset to formats"),
        (("dataset",), "me//pairs!", "is no repository id .*; write it as owner/name"),
    ],
)
def test_push_that_cannot_work_is_refused_before_the_work(
    groups: Path, formats: tuple[str, ...], repository: str, expected: str
) -> None:
    with pytest.raises(InputError, match=rf"^push_to: {repository}: {expected}$"):
        export(groups, *formats, push_to=repository)
    assert not (groups.parent / "out").exists()
