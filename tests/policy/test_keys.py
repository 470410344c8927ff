"""Keys: one way to fail, every stored hash compared, and a file that neither a full disk nor two writers tear."""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.config import InputError
from trimtab.policy import keys
from trimtab.policy.keys import Grant, Key, KeyFile, KeyRing, Open
from trimtab.policy.ports import Refused

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self, now: datetime = NOW) -> None:
        self.now = now.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def _bearer(secret: str) -> bytes:
    return b"Bearer " + secret.encode()


def _write(path: Path, *found: dict[str, Any], **fields: Any) -> None:
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_text(json.dumps({"version": 1, "keys": found} | fields), encoding="utf-8")


def _refusal(keys: keys.Keys, authorization: bytes | None) -> tuple[object, ...]:
    with pytest.raises(Refused) as caught:
        keys.find(authorization)
    error = caught.value
    return error.status, error.reason, error.message, error.param, error.retry_after_s


def test_a_secret_is_256_bits_and_the_file_has_its_hash_alone(path: Path) -> None:
    key, secret = keys.create(path, Grant(presets=("harmless", "uncensored")), "ci")
    assert len(secret) == len("tt-") + 43
    assert secret not in path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    assert KeyFile(path).find(_bearer(secret)) == key
    assert keys.create(path, Grant())[1] != secret


def test_nothing_shows_a_hash(path: Path) -> None:
    key, _ = keys.create(path, Grant())
    assert key.sha256 not in repr(key)
    assert key.sha256 not in str(keys.read(path))


def test_every_failure_looks_the_same(path: Path) -> None:
    _, good = keys.create(path, Grant(), "good")
    _, expired = keys.create(path, Grant(expires=NOW), "expired")
    _, revoked = keys.create(path, Grant(), "revoked")
    keys.revoke(path, "revoked")
    _, former = keys.create(path, Grant(), "rotated")
    keys.rotate(path, "rotated")
    found = KeyFile(path, Clock())
    shown = [
        None, b"", b"Bearer", b"Bearer ", good.encode(), b"Basic " + good.encode(), _bearer(good) + b" ",
        b"Bearer  " + good.encode(), _bearer(good) + b"\n", _bearer(good[:-1]), _bearer("x" * 100_000),
        _bearer("tt-\xe9"), _bearer(expired), _bearer(revoked), _bearer(former), b"\xff\x00",
    ]  # fmt: skip
    assert len({_refusal(found, header) for header in shown}) == 1
    assert _refusal(found, None)[:2] == (401, "invalid_key")
    assert found.find(_bearer(good)).id == "good"
    assert found.find(b"bearer " + good.encode()).id == "good"


def test_every_stored_hash_is_compared_whichever_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [keys.create(path, Grant(), f"k{number}")[1] for number in range(5)]
    keys.rotate(path, "k4", timedelta(days=9999))
    found = KeyFile(path)
    compared: list[bytes] = []
    compare: Callable[[bytes, bytes], bool] = hmac.compare_digest

    def counting(stored: bytes, shown: bytes) -> bool:
        compared.append(stored)
        return compare(stored, shown)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for secret in (secrets[0], secrets[4]):
        found.find(_bearer(secret))
    for header in (None, b"nonsense", _bearer("tt-unknown")):
        _refusal(found, header)
    assert len(compared) == 5 * 6
    assert len(set(compared)) == 6


@given(st.binary(max_size=300), st.integers(0, 45), st.integers(0, 255))
def test_only_the_very_secret_is_a_key(noise: bytes, place: int, byte: int) -> None:
    secret = keys.new_secret().encode()
    key = Key(id="k", sha256=hashlib.sha256(secret).hexdigest())
    table = keys._table(KeyRing(keys=(key,)))
    changed = secret[:place] + bytes([byte]) + secret[place + 1 :]
    for header in (noise, b"Bearer " + noise, b"Bearer " + changed):
        if header != b"Bearer " + secret:
            with pytest.raises(Refused):
                keys._matching(table, header, 0.0)
    assert keys._matching(table, b"Bearer " + secret, 0.0) == key


def test_a_key_expires_at_its_moment(path: Path) -> None:
    _, secret = keys.create(path, Grant(expires=NOW + timedelta(seconds=10)))
    clock = Clock()
    found = KeyFile(path, clock)
    clock.now += 9.9
    found.find(_bearer(secret))
    clock.now += 0.1
    _refusal(found, _bearer(secret))


def test_rotating_with_a_grace_lets_both_hold_for_a_while(path: Path) -> None:
    _, old = keys.create(path, Grant(), "ci")
    key, new = keys.rotate(path, "ci", timedelta(hours=1))
    (former,) = key.former
    clock = Clock(former.until - timedelta(seconds=1))
    found = KeyFile(path, clock)
    assert found.find(_bearer(old)).id == found.find(_bearer(new)).id == "ci"
    clock.now += 1
    _refusal(found, _bearer(old))
    assert found.find(_bearer(new)).id == "ci"


def test_rotating_without_a_grace_ends_all_old_ones_at_once(path: Path) -> None:
    secrets = [keys.create(path, Grant(parallel=3), "ci")[1]]
    secrets.append(keys.rotate(path, "ci", timedelta(days=1))[1])
    secrets.append(keys.rotate(path, "ci", timedelta(days=1))[1])
    found = KeyFile(path)
    assert {found.find(_bearer(secret)).id for secret in secrets} == {"ci"}
    secrets.append(keys.rotate(path, "ci")[1])
    found = KeyFile(path)
    for secret in secrets[:-1]:
        _refusal(found, _bearer(secret))
    assert found.find(_bearer(secrets[-1])).parallel == 3


def test_a_revoked_key_ends_with_its_former_secrets_and_keeps_its_id(path: Path) -> None:
    _, old = keys.create(path, Grant(), "ci")
    _, new = keys.rotate(path, "ci", timedelta(days=1))
    keys.revoke(path, "ci")
    found = KeyFile(path)
    for secret in (old, new):
        _refusal(found, _bearer(secret))
    with pytest.raises(InputError, match=r"^--name: ci: there is a key of this id; "):
        keys.create(path, Grant(), "ci")
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(InputError, match=r"^id: ci: is revoked; "):
            change(path, "ci")
        with pytest.raises(InputError, match=r"^id: absent: no such key; "):
            change(path, "absent")


def test_an_expired_key_is_not_rotated(path: Path) -> None:
    keys.create(path, Grant(expires=datetime(2020, 1, 1, tzinfo=UTC)), "ci")
    with pytest.raises(InputError, match=r"^id: ci: has expired; "):
        keys.rotate(path, "ci")


@pytest.mark.parametrize("id", ["", "-", "a b", "a/b", "ä", "x" * 65, "open", "a\n"])
def test_ids_are_plain(path: Path, id: str) -> None:
    with pytest.raises(InputError, match=r"^--name: "):
        keys.create(path, Grant(), id)
    assert not path.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"presets": ()}, {"presets": ("a b",)}, {"presets": ("honest",), "default": "uncensored"}, {"parallel": 0},
        {"requests_per_minute": -1}, {"tokens_per_day": 1.5}, {"scopes": ("admin",)}, {"expires": datetime(2030, 1, 1)},
        {"other": 1},
    ],
)  # fmt: skip
def test_what_a_grant_can_not_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Grant(**fields)


def test_a_key_without_harmless_needs_a_default(path: Path) -> None:
    with pytest.raises(InputError, match=r"^--default: none: a request without a preset would get harmless"):
        keys.create(path, Grant(presets=("honest",)))
    keys.create(path, Grant(presets=("honest",), default="honest"))


def test_what_a_key_allows() -> None:
    assert Grant().allows("harmless")
    assert not Grant().allows("uncensored")
    assert Grant(presets=("*",)).allows("uncensored")
    assert not Grant(presets=("*",)).allows("*")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_file_that_others_have_rights_to_is_refused(path: Path, mode: int) -> None:
    keys.create(path, Grant())
    path.chmod(mode)
    for use in (keys.read, KeyFile, lambda path: keys.create(path, Grant())):
        with pytest.raises(InputError, match=rf"^keys: .*\(mode {mode:04o}\); chmod 600 {path}$"):
            use(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2, "keys": []}', '{"version": 1, "keys": [{"id": "a", "sha256": "s3cret"}]}']
)
def test_broken_files_are_one_line_that_shows_no_content(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"^keys: [^\n]+ is no key file \([^\n]+\); mend it$") as caught:
        KeyFile(path)
    assert "s3cret" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    for place in (tmp_path / "absent.json", tmp_path / "absent" / "keys.json"):
        with pytest.raises(InputError, match=r"^keys: .*: no such file; make one with trimtab keys create$"):
            KeyFile(place)


def test_two_keys_of_one_id_are_refused(path: Path) -> None:
    _write(path, {"id": "a", "sha256": "1" * 64}, {"id": "a", "sha256": "2" * 64})
    with pytest.raises(InputError, match="two keys have the same id"):
        keys.read(path)


def test_a_changed_file_is_read_anew_within_a_second(path: Path) -> None:
    _, first = keys.create(path, Grant(), "first")
    clock = Clock()
    found = KeyFile(path, clock)
    _, second = keys.create(path, Grant(), "second")
    keys.revoke(path, "first")
    clock.now += 0.9
    assert found.find(_bearer(first)).id == "first"
    _refusal(found, _bearer(second))
    clock.now += 0.2
    assert found.find(_bearer(second)).id == "second"
    _refusal(found, _bearer(first))


def test_content_that_can_not_be_used_leaves_the_keys_that_were(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, secret = keys.create(path, Grant())
    clock = Clock()
    found = KeyFile(path, clock)
    good = path.read_bytes()
    for change in (lambda: path.write_bytes(b"{"), path.unlink, lambda: (path.touch(0o644), path.chmod(0o644))):
        change()
        caplog.clear()
        for _ in range(3):
            clock.now += 2
            found.find(_bearer(secret))
        (record,) = caplog.records
        assert record.levelno == logging.ERROR
        assert secret not in record.getMessage()
    path.chmod(0o600)
    path.write_bytes(good.replace(b'"harmless"', b'"uncensored"'))
    clock.now += 2
    assert found.find(_bearer(secret)).presets == ("uncensored",)


def test_a_clock_that_went_back_stops_no_reading(path: Path) -> None:
    _, secret = keys.create(path, Grant(), "ci")
    clock = Clock()
    found = KeyFile(path, clock)
    path.write_bytes(path.read_bytes().replace(b'"harmless"', b'"uncensored"'))
    clock.now -= 10**6
    assert found.find(_bearer(secret)).presets == ("uncensored",)


def test_two_writers_lose_nothing(path: Path) -> None:
    code = f"""
from pathlib import Path
from trimtab.policy.keys import Grant, create
for number in range(8):
    create(Path({str(path)!r}), Grant(), f"p{{number}}")
"""
    other = subprocess.Popen([sys.executable, "-c", code])
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: keys.create(path, Grant(), f"t{number}")[1], range(16)))
    assert other.wait(60) == 0
    ids = {key.id for key in keys.read(path).keys}
    assert ids == {f"p{number}" for number in range(8)} | {f"t{number}" for number in range(16)}
    found = KeyFile(path)
    assert len({found.find(_bearer(secret)).id for secret in made}) == 16


def test_a_full_disk_leaves_the_keys_that_were(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = keys.create(path, Grant(), "ci")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for change in (
        lambda: keys.create(path, Grant()),
        lambda: keys.rotate(path, "ci"),
        lambda: keys.revoke(path, "ci"),
    ):
        with pytest.raises(InputError, match=r"no space left on the disk; free some space"):
            change()
    assert path.read_bytes() == before
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f".{path.name}.lock"}
    assert KeyFile(path).find(_bearer(secret)).id == "ci"


def test_what_a_killed_writer_left_is_in_nobodys_way(path: Path) -> None:
    keys.create(path, Grant(), "first")
    path.with_name(f".{path.name}.part").write_text("torn", encoding="utf-8")
    keys.create(path, Grant(), "second")
    assert [key.id for key in keys.read(path).keys] == ["first", "second"]


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    keys.create(real, Grant(), "first")
    link.symlink_to(real)
    keys.create(link, Grant(), "second")
    assert link.is_symlink()
    assert not link.with_name(".link.json.lock").exists()
    assert [key.id for key in keys.read(real).keys] == ["first", "second"]


@pytest.mark.parametrize("header", [None, b"", b"Bearer anything"])
def test_a_server_without_keys_is_harmless_only(header: bytes | None) -> None:
    key = Open().find(header)
    assert (key.id, key.presets, key.scopes) == ("open", ("harmless",), ())
