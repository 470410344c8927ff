"""The registry: trained models as name@version, and the version that an alias such as ``production`` means.

A folder at ``$TRIMTAB_HOME``: an entry is one JSON file, written whole, that names the model's folder and its
fingerprint. ``promote`` moves an alias, and only to a model whose evaluations pass the gates.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from trimtab.artifacts import Record, require_record, write_text
from trimtab.config import Config, InputError, placement
from trimtab.files import URI, LocalPath

NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
ALIASES = "aliases.json"


def home() -> Path:
    """``$TRIMTAB_HOME``, by default ``~/.trimtab``: fetched models, the registry, and logs of outputs in a store.

    Raises:
        InputError: it is set to a URI.
    """
    given = os.environ.get("TRIMTAB_HOME")
    if given and URI.match(given):
        raise InputError("TRIMTAB_HOME", given, "must be a local folder", "give a path without a scheme")
    return Path(given or Path.home() / ".trimtab")


def refuse_bad_name(name: str) -> None:
    """Names are letters, digits, dots, dashes and underscores.

    Raises:
        InputError: the name is none.
    """
    if not NAME.fullmatch(name):
        raise InputError("name", name, "is no name of a model", "use letters, digits, dots, dashes and underscores")


def register(name: str, folder: Path, fingerprint: str) -> str:
    """Add a model folder as the next version of a name; one that is registered already keeps its version.

    Returns:
        ``name@version``.
    """
    from filelock import FileLock

    refuse_bad_name(name)
    shelf = home() / "registry" / name
    shelf.mkdir(parents=True, exist_ok=True)
    with FileLock(shelf / ".lock"):
        known = versions(name)
        for version, entry in known.items():
            if entry["fingerprint"] == fingerprint and entry["folder"] == str(folder.resolve()):
                return f"{name}@{version}"
        version = max(known, default=0) + 1
        entry = {"folder": str(folder.resolve()), "fingerprint": fingerprint,
                 "created": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
        write_text(shelf / f"{version}.json", json.dumps(entry, indent=2))
    return f"{name}@{version}"


def versions(name: str) -> dict[int, dict[str, Any]]:
    """The entries of a name by version."""
    found = (home() / "registry" / name).glob("[0-9]*.json")
    return {int(path.stem): json.loads(path.read_text(encoding="utf-8")) for path in sorted(found)}


def names() -> list[str]:
    """All registered names."""
    return sorted(path.name for path in (home() / "registry").glob("*") if path.is_dir())


def aliases(name: str) -> dict[str, int]:
    """The aliases of a name and the versions they mean."""
    path = home() / "registry" / name / ALIASES
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def is_reference(reference: str) -> bool:
    """Whether a reference is ``name@version`` or ``name@alias``."""
    name, at, version = reference.partition("@")
    return bool(at and NAME.fullmatch(name) and version and "/" not in version)


def entry_of(reference: str) -> dict[str, Any]:
    """The entry that ``name@version`` or ``name@alias`` means, with its ``name`` and ``version``.

    Raises:
        InputError: there is none.
    """
    name, _, wanted = reference.partition("@")
    known, moved = versions(name), aliases(name)
    if not known:
        have = ", ".join(names()) or "none"
        raise InputError("model", reference, "is not registered", f"registered names: {have}")
    version = int(wanted) if wanted.isdigit() else moved.get(wanted)
    if version is None or version not in known:
        have = ", ".join([*map(str, known), *moved])
        raise InputError("model", reference, "no such version", f"{name} has {have}")
    return {"name": name, "version": version, **known[version]}


class Gates(Config):
    """What a model must reach to be promoted; none: not looked at."""

    corr_mean: float | None = 0.1
    """At least this Corr_mean."""
    s0: float | None = None
    """At least this S0."""
    s1: float | None = None
    """At least this S1."""
    benign_nll: float | None = None
    """At most this loss per token on the base's benign answers, in nats."""
    bound: Literal["value", "interval"] = "value"
    """``interval``: the cautious end of the 95 % interval must pass, not the value alone."""


class PromoteConfig(Config):
    """``trimtab model promote``: let an alias mean a model, if its evaluations pass the gates."""

    model: str = placement()
    """``name@version``."""
    alias: str = "production"
    prefill: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate prefill`` for this model."""
    configurable: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate configurable`` for this model."""
    retention: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate retention`` for this model."""
    gates: Gates = Gates()


def promote(config: PromoteConfig) -> dict[str, float]:
    """Move the alias; what the gates looked at.

    Raises:
        InputError: an evaluation is missing, is of another model, or falls below its gate.
    """
    from filelock import FileLock

    refuse_bad_name(config.alias)
    if not is_reference(config.model):
        raise InputError("model", config.model, "is not name@version", "register it: trimtab train --set name=NAME")
    entry = entry_of(config.model)
    seen = {gate: _passed(config, gate, entry) for gate in ("corr_mean", "s0", "s1", "benign_nll")
            if getattr(config.gates, gate) is not None}  # fmt: skip
    shelf = home() / "registry" / entry["name"]
    with FileLock(shelf / ".lock"):
        moved = aliases(entry["name"]) | {config.alias: entry["version"]}
        write_text(shelf / ALIASES, json.dumps(moved, indent=2))
    return seen


SOURCES = {
    "corr_mean": ("prefill", "evaluate prefill", "corr_mean"),
    "s0": ("configurable", "evaluate configurable", "s0"),
    "s1": ("configurable", "evaluate configurable", "s1"),
    "benign_nll": ("retention", "evaluate retention", "nll"),
}
"""Gate -> (field of PromoteConfig, command that makes it, name of its number)."""


def _passed(config: PromoteConfig, gate: str, entry: dict[str, Any]) -> float:
    field, stage, name = SOURCES[gate]
    folder: Path | None = getattr(config, field)
    if folder is None:
        remedy = f"give the output of trimtab {stage}, or set gates.{gate}=null"
        raise InputError(field, "none", f"gate {gate} needs it", remedy)
    record = require_record(field, folder, stage)
    if record.inputs.get("model") != entry["fingerprint"]:
        raise InputError(field, folder, "is an evaluation of another model", f"evaluate {config.model}")
    return _compared(config.gates, gate, record, name)


def _compared(gates: Gates, gate: str, record: Record, name: str) -> float:
    limit: float = getattr(gates, gate)
    most = gate == "benign_nll"
    estimate = record.results[name]
    value = estimate["value"] if gates.bound == "value" else estimate["high" if most else "low"]
    if value is None or (value > limit if most else value < limit):
        shown = "nothing was scored" if value is None else f"{value:.3f} ({gates.bound})"
        problem = f"the model has {shown}"
        raise InputError(f"gates.{gate}", limit, problem, "train further, or change the gate with a reason")
    return float(value)
