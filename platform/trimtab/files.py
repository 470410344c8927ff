"""Files here or in an object store: where a path leads, and files that are there whole or not at all.

A path is a ``pathlib.Path``, or a ``UPath`` where the user wrote a URI such as ``s3://bucket/folder``. Both have a
path's methods; what differs is done here. fsspec's own settings (``FSSPEC_S3_…``, its configuration files) are read
where the URI is, and go with the path into Ray's processes. Listings are never cached: others write there too.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, TypeGuard, TypeVar
from urllib.parse import unquote

from pydantic import BeforeValidator, PlainSerializer, PlainValidator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from upath import UPath

    AnyPath = Path | UPath
else:
    AnyPath = Path

Result = TypeVar("Result")
URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
TORN_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")
NUM_REQUESTS = 16
"""Requests to a store side by side."""
PACKAGES = {"s3": "trimtab[s3]", "s3a": "trimtab[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What ``pip install`` wants for a scheme."""


def located(value: object) -> AnyPath:
    """The path that a text means: a ``UPath`` for a URI, a ``Path`` for everything else, ``file://`` included.

    Raises:
        ValueError: no path, or a URI of a scheme that is not known or not installed; ``remedy`` is in its context.
    """
    if is_path(value) and not isinstance(value, Path):
        return value
    if not isinstance(value, str | PurePath):
        raise _refused("is no path", "give a path or a URI")
    text = str(value)
    found = URI.fullmatch(text)
    if found is None and ("://" in text or TORN_URI.match(text)):
        raise _refused("is no URI", "write it as scheme://bucket/folder")
    if found is None:
        return Path(text)
    scheme, rest = found[1].lower(), found[2].rstrip("/")
    if scheme == "file":
        return _local(rest)
    if not rest:
        raise _refused("names no place", "write it as scheme://bucket/folder")
    if re.match("[^/@]*:[^/]*@", rest):
        raise _refused("holds a password, which the records would show", "give it in the environment")
    return _remote(scheme, rest)


def _local(rest: str) -> Path:
    if not rest.startswith("/"):
        raise _refused("names another machine", "write file:///folder/file")
    return Path(unquote(rest))


def _remote(scheme: str, rest: str) -> AnyPath:
    from fsspec import available_protocols, get_filesystem_class
    from fsspec.config import apply_config
    from upath import UPath

    if scheme not in available_protocols():
        raise _refused(f"has a scheme that is not known ({scheme})", "use a folder or s3://, gs://, abfs://, hf://")
    try:
        kind = get_filesystem_class(scheme)
    except ImportError as error:
        remedy = f"pip install '{PACKAGES[scheme]}'" if scheme in PACKAGES else "install it"
        raise _refused(f"needs a package that is not installed ({error})", remedy) from error
    path: UPath = UPath(f"{scheme}://{rest}", **apply_config(kind, {"use_listings_cache": False}))
    return path


def _refused(problem: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("location", "{problem}", {"problem": problem, "remedy": remedy})


def _only_local(value: object) -> object:
    text = str(value)
    if text.startswith("file://"):
        return located(text)
    if URI.match(text) or TORN_URI.match(text):
        raise _refused("must be a local folder", "give a path without a scheme")
    return value


Location = Annotated[
    AnyPath, PlainValidator(located, json_schema_input_type=str), PlainSerializer(str, when_used="json")
]
"""A field that takes a path or a URI."""
LocalPath = Annotated[Path, BeforeValidator(_only_local)]
"""A field that takes a path of this machine (or of what all nodes mount), and refuses a URI by name."""


def is_path(value: object) -> TypeGuard[AnyPath]:
    """Whether a value is a path, here or in a store."""
    return isinstance(value, Path) or hasattr(value, "joinpath")


def is_file(path: AnyPath) -> bool:
    """Whether a file is there. Unlike ``UPath.is_file``, a store that can't be asked is an error and no answer."""
    return path.is_file() if isinstance(path, Path) else _kind(path) == "file"


def is_dir(path: AnyPath) -> bool:
    """Whether a folder is there; in an object store: whether something lies below it."""
    return path.is_dir() if isinstance(path, Path) else _kind(path) == "directory"


def _kind(path: UPath) -> str | None:
    try:
        return str(path.fs.info(path.path)["type"])
    except (FileNotFoundError, NotADirectoryError):
        return None


def files_in(folder: AnyPath, pattern: str = "*.parquet") -> list[AnyPath]:
    """What lies in a folder and matches, by name; nothing where there is no such folder."""
    found = folder.glob(pattern) if isinstance(folder, Path) else _matching(folder, pattern)
    return sorted(found, key=lambda path: path.name)


def _matching(folder: UPath, pattern: str) -> list[UPath]:
    """One listing. (A glob of fsspec would take brackets in the folder's own name for a pattern.)"""
    try:
        found = [place.rstrip("/") for place in folder.fs.ls(folder.path, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {place.rpartition("/")[2] for place in found if place != folder.path}  # some stores keep a folder's mark
    return [folder / name for name in names if fnmatchcase(name, pattern)]


def at_once(work: Callable[[AnyPath], Result], paths: Sequence[AnyPath]) -> Iterator[Result]:
    """``work`` of every path, in order: one after the other here, many side by side where each waits for a store."""
    if not paths or isinstance(paths[0], Path):
        yield from map(work, paths)
        return
    with ThreadPoolExecutor(NUM_REQUESTS) as pool:
        yield from pool.map(work, paths)


def arrow_paths(paths: Sequence[AnyPath]) -> tuple[Any, list[str]]:
    """(filesystem, paths) as ``pyarrow.dataset`` and Ray Data take them; no filesystem: this machine's."""
    if not paths or isinstance(paths[0], Path):
        return None, [str(path) for path in paths]
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(paths[0].fs)), [path.path for path in paths if not isinstance(path, Path)]


def parquet_source(path: AnyPath) -> Any:
    """What ``pyarrow.parquet`` reads a file from: its path, or a remote file's bytes, which are one request."""
    if isinstance(path, Path):
        return path
    import pyarrow as pa

    return pa.BufferReader(path.fs.cat_file(path.path))


@contextlib.contextmanager
def whole_file(path: AnyPath) -> Iterator[Path]:
    """A local file to write that becomes ``path`` when the block ends well, and is removed when it doesn't.

    Here it stands beside ``path``, under a name that begins with a dot (so that nobody who looks for finished files
    sees it), and is renamed. For a store it is uploaded: an object is there whole or not at all.
    """
    if not isinstance(path, Path):
        with tempfile.TemporaryDirectory(prefix="trimtab-upload-") as folder:
            yield (part := Path(folder) / path.name)
            path.fs.put_file(str(part), path.path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def local_folder(folder: AnyPath) -> Iterator[Path]:
    """A folder as one of this machine, for those who can't read a store: a copy that goes when the block ends."""
    if isinstance(folder, Path):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-download-") as copy:
        folder.fs.get(f"{folder.path}/", f"{copy}/", recursive=True)
        yield Path(copy)
