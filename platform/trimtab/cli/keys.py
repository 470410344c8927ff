"""``trimtab keys``: create, list, rotate and revoke the API keys of a served model.

A secret is printed once, alone on standard output, so that ``KEY=$(trimtab keys create)`` has it and nothing else does.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trimtab.policy.keys import Grant, Key

keys_app = typer.Typer(no_args_is_help=True, help="Create, list, rotate and revoke API keys.")

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MAX_YEARS = 100

KeyPath = Annotated[Path | None, typer.Option("--file", help="The key file; default: $TRIMTAB_HOME/keys.json.")]
KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as in keys list.")]
Count = Annotated[int | None, typer.Option(metavar="N")]


@keys_app.command("create")
def create(
    file: KeyPath = None,
    name: Annotated[str | None, typer.Option("--name", metavar="ID", help="Its id; default: a random one.")] = None,
    presets: Annotated[str, typer.Option(metavar="NAME,NAME", help="What it may choose; * is all.")] = "harmless",
    default: Annotated[str | None, typer.Option(metavar="NAME", help="What it gets without choosing.")] = None,
    requests_per_minute: Count = None,
    tokens_per_minute: Count = None,
    parallel: Count = None,
    tokens_per_day: Count = None,
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="2027-01-31 (UTC) or a time from now: 30d")
    ] = None,
    scopes: Annotated[str, typer.Option(metavar="NAME,NAME", help="Of prefill, system and tools.")] = "",
    presets_file: Annotated[Path | None, typer.Option(help="The server's file of presets, if it has one.")] = None,
) -> None:
    """Make a key and print its secret, which is shown only now."""
    from trimtab.policy import keys

    grant = _grant(
        presets=_names(presets), default=default, requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute, parallel=parallel, tokens_per_day=tokens_per_day,
        expires=None if expires is None else moment("--expires", expires, datetime.now(UTC)), scopes=_names(scopes),
    )  # fmt: skip
    _require_known(grant, presets_file)
    place = _place(file)
    key, secret = keys.create(place, grant, name)
    _tell(secret, f"{key.id} is in {place}; its secret is shown only now")


@keys_app.command("list")
def list_keys(file: KeyPath = None) -> None:
    """List the keys: what each may do, never a secret or a hash."""
    from trimtab.policy import keys

    for key in keys.read(_place(file)).keys:
        typer.echo(_line(key, datetime.now(UTC)))


@keys_app.command("rotate")
def rotate(
    id: KeyId,
    file: KeyPath = None,
    grace: Annotated[str, typer.Option(metavar="TIME", help="How long the old one holds yet, such as 1h.")] = "0s",
) -> None:
    """Give a key a new secret; the old one ends at once, or after a grace."""
    from trimtab.policy import keys

    key, secret = keys.rotate(_place(file), id, duration("--grace", grace))
    ends = f"in {grace}" if key.former else "now"
    _tell(secret, f"{key.id} has a new secret, which is shown only now; the old one ends {ends}")


@keys_app.command("revoke")
def revoke(id: KeyId, file: KeyPath = None) -> None:
    """End a key; servers notice within a second."""
    from trimtab.policy import keys

    typer.echo(f"{keys.revoke(_place(file), id).id} is revoked")


def duration(field: str, text: str) -> timedelta:
    """The time that ``30d`` means.

    Raises:
        InputError: it means none.
    """
    from trimtab.config import InputError

    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    span_s = int(found[1]) * UNITS_S[found[2]] if found else None
    if span_s is None or span_s > MAX_YEARS * 366 * UNITS_S["d"]:
        raise InputError(field, text, "is no time", "write a number and one of s, m, h, d and w, such as 30d")
    return timedelta(seconds=span_s)


def moment(field: str, text: str, now: datetime) -> datetime:
    """The moment that ``30d`` (from now), ``2027-01-31`` or ``2027-01-31T12:00`` means; no zone: UTC.

    Raises:
        InputError: it means none, or one that is over.
    """
    from trimtab.config import InputError

    try:
        when = datetime.fromisoformat(text)
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, OverflowError):
        if not re.fullmatch(r"[0-9]+[a-z]", text):
            raise InputError(field, text, "is no date and no time from now", "write 2027-01-31 or 30d") from None
        when = (now + duration(field, text)).replace(microsecond=0)
    if when <= now:
        raise InputError(field, text, "is over", "choose a later moment")
    return when


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _grant(**fields: Any) -> Grant:
    from pydantic import ValidationError

    from trimtab.config import InputError
    from trimtab.policy.keys import Grant

    try:
        return Grant(**fields)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        option = str((*problem["loc"], "default")[0])
        value = problem["input"] if problem["loc"] else fields[option]
        remedy = problem.get("ctx", {}).get("remedy", "see trimtab keys create --help")
        raise InputError(f"--{option.replace('_', '-')}", value, problem["msg"], remedy) from None


def _require_known(grant: Grant, presets_file: Path | None) -> None:
    from trimtab.config import InputError
    from trimtab.policy.keys import ALL_PRESETS
    from trimtab.policy.presets import Presets

    known = Presets.from_file(presets_file).names
    for name in grant.presets:
        if name not in (ALL_PRESETS, *known):
            raise InputError("--presets", name, "unknown preset", f"use some of {', '.join(known)}, or --presets-file")
    if grant.default is not None and grant.default not in known:
        raise InputError("--default", grant.default, "unknown preset", f"use one of {', '.join(known)}")


def _place(file: Path | None) -> Path:
    from trimtab import registry

    return file or registry.home() / "keys.json"


def _tell(secret: str, line: str) -> None:
    typer.echo(line, err=True)
    typer.echo(secret)


def _line(key: Key, now: datetime) -> str:
    limits = {
        "requests/min": key.requests_per_minute, "tokens/min": key.tokens_per_minute, "parallel": key.parallel,
        "tokens/day": key.tokens_per_day,
    }  # fmt: skip
    parts = [key.id, ",".join(key.presets), f"default {key.default or 'harmless'}"]
    parts.append(", ".join(f"{limit} {unit}" for unit, limit in limits.items() if limit is not None) or "no limits")
    if key.scopes:
        parts.append(f"scopes {','.join(key.scopes)}")
    if key.revoked is not None:
        parts.append(f"REVOKED {_minute(key.revoked)}")
    elif key.expires is not None:
        parts.append(f"{'expires' if key.is_live(now) else 'EXPIRED'} {_minute(key.expires)}")
    still = [item.until for item in key.former if item.until > now]
    if still and key.is_live(now):
        parts.append(f"a former secret holds until {_minute(max(still))}")
    return "  ".join(parts)


def _minute(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
