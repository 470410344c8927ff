"""Files that must be private, writable, whole or harmless: secrets, ``$TRIMTAB_HOME``, model folders."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path

from trimtab import models
from trimtab.config import InputError
from trimtab.operations.doctor.findings import Finding

POINTER_BYTES = 1024
LFS, ANNEX = b"version https://git-lfs", b"/annex/objects/"
FETCH = {"git-lfs": "git -C {} lfs pull", "git-annex": "git -C {} annex get ."}
INDEX = "model.safetensors.index.json"


def secret_file(check: str, path: Path, why: str) -> Finding:
    """A file that its owner alone may read.

    A file that others may read but not reach, since a folder above it is closed, is a warning.
    """
    if not path.is_file():
        return Finding(check, "error", f"{path}: no such file", why, f"install -m 600 /dev/null {path}  # and write it")
    mode = stat.S_IMODE(path.stat().st_mode)
    shown = f"{path}: mode {mode:04o}"
    if not mode & 0o077:
        return Finding(check, "ok", shown)
    return Finding(check, "error" if reachable_by_others(path) else "warning", shown, why, f"chmod 600 {path}")


def reachable_by_others(path: Path) -> bool:
    """Whether another user of this machine gets as far as the file and may read or write it."""
    above = all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)
    return above and bool(path.stat().st_mode & 0o006)


def home_writable(home: Path) -> Finding:
    """Whether ``$TRIMTAB_HOME`` takes files: models, the registry, logs."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home, prefix=".doctor-"):
            return Finding("files.home", "ok", str(home))
    except OSError as error:
        return Finding("files.home", "error", f"{home}: {error.strerror}", "models are fetched and registered there",
                       "export TRIMTAB_HOME=… to a folder that this user may write")  # fmt: skip


def model_folder(reference: str) -> list[Finding]:
    """Whether a model is here, whole, and holds nothing that runs code; nothing is downloaded."""
    folder = Path(reference).expanduser()
    known = reference in models.EMBEDDED or "@" in reference
    if not folder.is_dir() and not known:
        remedy = f"hf download {reference} --local-dir …  # and give the folder"
        shown = f"{reference}: no such folder here"
        return [Finding("model.folder", "error", shown, "a run would look for it on the Hub", remedy)]
    if folder.is_dir() and (pointers := find_pointers(folder)):
        return pointers
    try:
        found = folder if folder.is_dir() else models.resolve(reference)
        models.check_folder(found)
    except InputError as error:
        _, _, problem, remedy = error.__reduce__()[1]
        return [Finding("model.folder", "error", f"{reference}: {problem}", "it would be refused", remedy)]
    return [missing_shards(found) or Finding("model.folder", "ok", f"{found}: safetensors, no code")]


def find_pointers(folder: Path) -> list[Finding]:
    """Files that stand for others, which git-lfs or git-annex has not fetched."""
    found = []
    for path in sorted(folder.iterdir()):
        kind = pointer_kind(path)
        if kind:
            shown = f"{path.name} is a pointer of {kind}"
            found.append(
                Finding("model.pointer", "error", shown, "the weights are not here", FETCH[kind].format(folder))
            )
    return found


def pointer_kind(path: Path) -> str | None:
    """git-lfs or git-annex, where a file is a pointer of theirs; a broken link of annex's as well."""
    if path.is_symlink() and not path.exists():
        return "git-annex" if "annex/objects" in os.readlink(path) else None
    if not path.is_file() or path.stat().st_size > POINTER_BYTES:
        return None
    start = path.read_bytes()
    return "git-lfs" if start.startswith(LFS) else "git-annex" if start.startswith(ANNEX) else None


def missing_shards(folder: Path) -> Finding | None:
    """A finding where the index of the weights names files that are not there."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return Finding("model.folder", "error", f"{path} is no index", "loading stops there", "fetch the folder again")
    lacking = sorted(name for name in named if not (folder / str(name)).is_file())
    if not lacking:
        return None
    shown = f"{len(lacking)} of {len(named)} weight files are missing ({lacking[0]})"
    return Finding("model.folder", "error", shown, "loading stops there", "fetch the folder again")
