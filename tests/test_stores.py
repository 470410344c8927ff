"""What a store says no to becomes one line with a remedy; other errors stay what they are."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from upath import UPath

from trimtab.artifacts import disk_errors_are_input_errors, file_fingerprint
from trimtab.config import InputError
from trimtab.files import located
from trimtab.sources import read_json_rows
from trimtab.stores import store_errors_are_input_errors, store_problem

BUCKET = FileNotFoundError("The specified bucket does not exist")
UNREACHABLE = EndpointConnectionError(endpoint_url="http://127.0.0.1:1")
REFUSED = ClientError({"Error": {"Code": "SlowDown", "Message": "Reduce your request rate"}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BUCKET, "no such bucket; make it or choose another"),
        (PermissionError("Access Denied"), r"the store refuses it \(Access Denied\); check the credentials"),
        (NoCredentialsError(), r"no credentials were found \(NoCredentialsError: Unable to locate .*; check the"),
        (UNREACHABLE, r"the store does not answer as it should \(EndpointConnectionError: .*127.0.0.1.*; see that"),
        (REFUSED, r"the store does not answer as it should \(ClientError: .*Reduce your request rate"),
    ],
    ids=["bucket", "denied", "credentials", "endpoint", "other"],
)  # fmt: skip
def test_refusal_deep_in_a_chain_is_one_line(store: UPath, error: Exception, line: str) -> None:
    with pytest.raises(InputError) as told, store_errors_are_input_errors("groups", store):
        raise RuntimeError("outer") from error
    assert re.match(rf"groups: memory://bucket/runs: {line}", str(told.value))
    assert "\n" not in str(told.value)
    with (
        pytest.raises(InputError, match=rf"^output: memory://bucket/runs: {line}"),
        disk_errors_are_input_errors(store),
    ):
        raise error


def test_error_of_a_worker_is_looked_into() -> None:
    task = RuntimeError("a task failed")
    task.cause = BUCKET  # type: ignore[attr-defined]  # where Ray keeps it
    assert store_problem(task) == ("no such bucket", "make it or choose another")


def test_other_errors_and_local_paths_are_left_alone(tmp_path: Path, store: UPath) -> None:
    for place, error in ((store, KeyError("x")), (store, ConnectionError("Ray")), (tmp_path, UNREACHABLE)):
        with pytest.raises(type(error)), store_errors_are_input_errors("data", place):
            raise error
        with pytest.raises(type(error)), disk_errors_are_input_errors(place):
            raise error


def test_full_disk_is_told_for_a_store_too(store: UPath) -> None:
    with pytest.raises(InputError, match="no space left on the disk"), disk_errors_are_input_errors(store):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_store_that_cannot_be_asked_is_not_an_absent_file(store: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str, **_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(store.fs), "info", refuse)
    with pytest.raises(InputError, match=r"^data: memory://.*: the store refuses it \(Access Denied\)"):
        list(read_json_rows("data", store / "rows.jsonl"))


def test_inputs_are_read_from_a_store(tmp_path: Path, store: UPath) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": "Ünë\u2028 line"}, {"prompt": "b"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_text('[{"prompt": "Ünë\u2028 line"},\r\n{"prompt": "b"}]', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Ünë\u2028 line"}\r\n{"prompt": "b"}\n', encoding="utf-8")
    for path in tmp_path.iterdir():
        (store / path.name).write_bytes(path.read_bytes())
        assert list(read_json_rows("data", store / path.name)) == rows == list(read_json_rows("data", path))
        assert file_fingerprint(store / path.name) == file_fingerprint(path)
    with pytest.raises(InputError, match=r"^data: memory://bucket/runs/absent\.jsonl: no such file; give the path"):
        list(read_json_rows("data", located(f"{store}/absent.jsonl")))
