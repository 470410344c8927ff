"""API keys: who may choose which presets, within which limits; and the file that they stand in.

A secret is 256 random bits, shown once; the file has its SHA-256 and nothing to get it back from. The file is JSON
and no YAML, in which an unquoted hash can be a number. It is written beside, synced and renamed, under a lock, so that
neither a full disk nor two writers lose a key; and it isn't read where others than its owner could read or write it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from trimtab.artifacts import disk_errors_are_input_errors
from trimtab.config import Config, InputError
from trimtab.policy.ports import Refused
from trimtab.safety import DEFAULT_PRESET

ALL_PRESETS = "*"
OPEN_ID = "open"
PREFIX, SECRET_BYTES = "tt-", 32
BEARER = re.compile(rb"[Bb]earer ([!-~]{1,256})")
"""The one form of an Authorization header that is looked at."""
CHECK_S = 1.0
"""How often a key file is looked at for changes."""
MAX_FILE_BYTES = 16 * 2**20
LOCK_TIMEOUT_S = 30.0

Limit = Annotated[int, Field(ge=1, le=10**12)]
PresetName = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z0-9_]*)$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Table = list[tuple[bytes, float, "Key"]]
"""(hash, the second in which it ends, key) of all secrets."""

_log = logging.getLogger(__name__)


class Grant(Config):
    """What a key may do."""

    presets: tuple[PresetName, ...] = Field((DEFAULT_PRESET,), min_length=1)
    """The presets that its requests may choose; ``*`` stands for all."""
    default: PresetName | None = None
    """The preset of a request that chooses none; none: harmless."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    """Tokens of prompts and answers."""
    parallel: Limit | None = None
    """Requests in flight."""
    tokens_per_day: Limit | None = None
    """Tokens of prompts and answers on a day in UTC."""
    expires: AwareDatetime | None = None
    """The moment from which on it is no key any more."""
    scopes: tuple[Literal["prefill", "system", "tools"], ...] = ()
    """What its requests may hold besides: an open assistant turn, system turns under ours, tools."""

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default is not None and not self.allows(self.default):
            problem = f"the key may not choose {self.default}"
            raise PydanticCustomError(
                "default", "{problem}", {"problem": problem, "remedy": "choose one of its presets"}
            )
        return self

    def allows(self, preset: str) -> bool:
        """Whether its requests may choose this preset."""
        return preset != ALL_PRESETS and (preset in self.presets or ALL_PRESETS in self.presets)


class Former(Config):
    """A secret that was replaced and holds for a while yet."""

    sha256: Digest = Field(repr=False)
    until: AwareDatetime


class Key(Grant):
    """A key as it stands in the file."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    """Its public name, in listings, metrics and the audit log."""
    sha256: Digest = Field(repr=False)
    """The hash of its secret."""
    former: tuple[Former, ...] = ()
    revoked: AwareDatetime | None = None
    """Since when it is none any more; it stays in the file so that its id isn't given away again."""
    created: AwareDatetime | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or now < self.expires)


class KeyRing(Config):
    """A key file's content."""

    version: Literal[1] = 1
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        ids = [key.id for key in self.keys]
        if len(set(ids)) < len(ids):
            raise PydanticCustomError("ids", "two keys have the same id")
        return self

    def named(self, id: str) -> Key:
        """The key of this id.

        Raises:
            InputError: there is none, or it is revoked.
        """
        key = next((key for key in self.keys if key.id == id), None)
        if key is None:
            raise InputError("id", id, "no such key", "see trimtab keys list")
        if key.revoked is not None:
            raise InputError("id", id, "is revoked", "create another key")
        return key

    def replaced(self, key: Key) -> KeyRing:
        """The ring with this key in the place of the one of its id."""
        return KeyRing(keys=tuple(key if other.id == key.id else other for other in self.keys))


class Keys(Protocol):
    """Who is asking."""

    def find(self, authorization: bytes | None) -> Key:
        """The key that an Authorization header shows.

        Raises:
            Refused: 401; missing, malformed, unknown, revoked and expired look alike.
        """


class Open:
    """The keys of a server on loopback without a key file: everybody has the one key, which is harmless only."""

    _key = Key(id=OPEN_ID, sha256="0" * 64)

    def find(self, authorization: bytes | None) -> Key:
        """The one key, whatever the header."""
        return self._key


class KeyFile:
    """The keys of a file, read anew when it changes; content that can't be used leaves those that were."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """
        Args:
            clock: seconds since the epoch.

        Raises:
            InputError: the file can't be used.
        """
        self._path, self._clock = path, clock
        self._checked, self._seen = clock(), _state_of(path)
        self._table = _table(read(path))

    def find(self, authorization: bytes | None) -> Key:
        """The key that an Authorization header shows.

        Raises:
            Refused: 401.
        """
        now = self._clock()
        self._read_if_changed(now)
        return _matching(self._table, authorization, now)

    def _read_if_changed(self, now: float) -> None:
        if 0 <= now - self._checked < CHECK_S:
            return
        self._checked = now
        try:
            state = _state_of(self._path)
            if state != self._seen:
                self._seen = state
                self._table = _table(read(self._path))
        except InputError as error:
            _log.error("the keys that were read before go on: %s", error)


def _table(ring: KeyRing) -> Table:
    rows = []
    for key in ring.keys:
        ends = [moment.timestamp() for moment in (key.expires, key.revoked) if moment is not None]
        end = min([*ends, float("inf")])
        rows.append((bytes.fromhex(key.sha256), end, key))
        rows += [(bytes.fromhex(item.sha256), min(end, item.until.timestamp()), key) for item in key.former]
    return rows


def _matching(table: Table, authorization: bytes | None, now: float) -> Key:
    """The key of a header's secret, which is compared with all that there are, whichever fits."""
    shown = BEARER.fullmatch(authorization or b"")
    digest = hashlib.sha256(shown[1] if shown else b"").digest()
    found: tuple[float, Key] | None = None
    for stored, end, key in table:
        if hmac.compare_digest(stored, digest):
            found = end, key
    if shown is None or found is None or now >= found[0]:
        raise Refused(401, "invalid_key", "no valid API key: send the header Authorization: Bearer KEY")
    return found[1]


def _state_of(path: Path) -> tuple[int, ...]:
    """What changes when the file is replaced, written or given other rights; empty: it isn't there."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def read(path: Path) -> KeyRing:
    """The keys of a file.

    Raises:
        InputError: it is missing, no key file, or others than its owner have rights to it. No content is shown.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode) or mode & 0o077:
                problem = f"others than its owner can read or write it (mode {stat.S_IMODE(mode):04o})"
                raise InputError("keys", path, problem, f"chmod 600 {path}")
            raw = file.read(MAX_FILE_BYTES)
        return KeyRing.model_validate_json(raw)
    except FileNotFoundError:
        raise InputError("keys", path, "no such file", "make one with trimtab keys create") from None
    except OSError as error:
        raise InputError("keys", path, f"can't be read ({error.strerror})", "see its path and its owner") from None
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in found["loc"])
        raise InputError("keys", path, f"is no key file ({place}: {found['msg']})", "mend it") from None


def create(path: Path, grant: Grant, id: str | None = None) -> tuple[Key, str]:
    """Add a key to a file, which is made where there is none.

    Returns:
        The key and its secret, which stands nowhere else.

    Raises:
        InputError: the id is taken or none, or the file can't be read or written.
    """
    secret = new_secret()
    id = f"key-{secrets.token_hex(4)}" if id is None else id
    fields: dict[str, Any] = {**dict(grant), "id": id, "sha256": _digest(secret), "created": _now()}
    if grant.default is None and not grant.allows(DEFAULT_PRESET):
        problem = f"a request without a preset would get {DEFAULT_PRESET}, which the key doesn't have"
        raise InputError("--default", "none", problem, "choose one of its presets")
    if id == OPEN_ID:
        raise InputError("--name", id, "is the name of a server without keys", "choose another")
    try:
        key = Key.model_validate(fields)
    except ValidationError:
        raise InputError("--name", id, "can't be an id", "use at most 64 letters, digits, dots, dashes and _") from None
    with _changing(path) as ring:
        if any(other.id == id for other in ring.keys):
            raise InputError("--name", id, "there is a key of this id", "choose another, or rotate it")
        _write(path, KeyRing(keys=(*ring.keys, key)))
    return key, secret


def rotate(path: Path, id: str, grace: timedelta = timedelta(0)) -> tuple[Key, str]:
    """Give a key a new secret; the old one holds for ``grace`` yet, and without any, all old ones end at once.

    Raises:
        InputError: there is no such key, or the file can't be read or written.
    """
    secret, now = new_secret(), _now()
    with _changing(path) as ring:
        key = ring.named(id)
        if not key.is_live(now):
            raise InputError("id", id, "has expired", "create another key")
        still = tuple(item for item in key.former if item.until > now) if grace else ()
        former = (*still, Former(sha256=key.sha256, until=now + grace)) if grace else ()
        key = key.model_copy(update={"sha256": _digest(secret), "former": former})
        _write(path, ring.replaced(key))
    return key, secret


def revoke(path: Path, id: str) -> Key:
    """End a key, at once.

    Raises:
        InputError: there is no such key, or the file can't be read or written.
    """
    with _changing(path) as ring:
        key = ring.named(id).model_copy(update={"revoked": _now(), "former": ()})
        _write(path, ring.replaced(key))
    return key


def new_secret() -> str:
    """256 random bits, behind a prefix by which scanners for leaked secrets can know them."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[KeyRing]:
    """Hold the file's lock; gives what is in the file, or an empty ring where there is none yet."""
    from filelock import FileLock, Timeout

    target = path.resolve()
    with disk_errors_are_input_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with FileLock(target.with_name(f".{target.name}.lock"), timeout=LOCK_TIMEOUT_S, mode=0o600):
                yield read(path) if path.exists() else KeyRing()
        except Timeout:
            raise InputError("keys", path, "another process is changing it", "try again") from None


def _write(path: Path, ring: KeyRing) -> None:
    """Replace the file, whole or not at all: another file is written, synced, and renamed."""
    target = path.resolve()
    part = target.with_name(f".{target.name}.part")
    part.unlink(missing_ok=True)
    values = ring.model_dump(mode="json", exclude_none=True)
    values["keys"] = [{"id": key["id"], **key} for key in values["keys"]]
    text = json.dumps(values, indent=2) + "\n"
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            _keep_owner(target, file.fileno())
            os.fsync(file.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(target.parent)


def _keep_owner(target: Path, descriptor: int) -> None:
    """A file that root changes for a service stays the service's."""
    if target.exists() and os.geteuid() == 0:
        before = target.stat()
        os.fchown(descriptor, before.st_uid, before.st_gid)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
