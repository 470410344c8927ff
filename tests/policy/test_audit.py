"""The audit log: whole lines, appended, for its owner's eyes alone; what can't be written is an error."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import InputError
from trimtab.policy.audit import AuditFile, NoAudit
from trimtab.policy.ports import Event

EVENT = Event(
    request_id="r1", key_id="ci", decision="allowed", status=200, preset="harmless", safety_hash="0" * 16, model="m",
    prompt_tokens=3, completion_tokens=4, seconds=0.5, first_token_s=0.1,
)  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_event_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "audit.jsonl"
    AuditFile(path, lambda: datetime(2030, 1, 2, 3, 4, 5, 678_900, tzinfo=UTC)).write(EVENT)
    (line,) = _lines(path)
    assert line["time"] == "2030-01-02T03:04:05.678+00:00"
    assert {name: line[name] for name in line if name != "time"} == vars(EVENT)
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        audit = AuditFile(path)
        audit.write(Event(f"r{number}", "-", "invalid_key", 401))
        audit.close()
    assert [line["request_id"] for line in _lines(path)] == ["r0", "r1", "r2"]


def test_lines_of_several_writers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audits = [AuditFile(path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: audits[n % 4].write(Event(f"r{n}", "k" * 60, "allowed", 200)), range(400)))
    assert {line["request_id"] for line in _lines(path)} == {f"r{number}" for number in range(400)}


def test_what_a_caller_named_can_not_make_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    named = '"}\n{"decision": "allowed"}\u2028\x1b[0m\ud800'
    AuditFile(path).write(Event(named, "-", "allowed", 200, model="m" * 10_000))
    (line,) = path.read_bytes().split(b"\n")[:-1]
    assert line.isascii()
    assert json.loads(line)["request_id"] == named
    assert len(line) < 1500


def test_a_moved_log_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditFile(path)
    audit.write(EVENT)
    path.rename(tmp_path / "audit.jsonl.1")
    audit.write(EVENT)
    assert len(_lines(path)) == len(_lines(tmp_path / "audit.jsonl.1")) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    audit = AuditFile(Path("/dev/full"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        audit.write(EVENT)


def test_a_line_that_was_cut_is_an_error_and_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    audit = AuditFile(path)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, raw: write(descriptor, raw[:10]))
        with pytest.raises(OSError, match=r"^10 of \d+ bytes"):
            audit.write(EVENT)
    audit.write(EVENT)
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[1])["request_id"] == "r1"


@pytest.mark.parametrize("place", [".", "file/audit.jsonl", "link.jsonl"])
def test_a_place_that_can_not_be_appended_to_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"^audit: .*can't be appended to \(.+\); choose a file"):
        AuditFile(tmp_path / place)
    assert not (tmp_path / "elsewhere").exists()


def test_no_audit_keeps_nothing() -> None:
    NoAudit().write(EVENT)
