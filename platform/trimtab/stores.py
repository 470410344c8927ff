"""What an object store refuses, told in one line: no such bucket, no credentials, no right, no answer.

Each store's client has errors of its own, and no base in common: they are known by the package that they come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trimtab.config import InputError
from trimtab.files import AnyPath

CLIENTS = ("botocore", "aiobotocore", "boto3", "aiohttp", "s3fs", "gcsfs", "google", "azure", "adlfs", "fsspec")
SHOWN_CHARS = 200
CHECK = "check the credentials in the environment of every node, and the bucket's policy"


@contextlib.contextmanager
def store_errors_are_input_errors(field: str, path: AnyPath) -> Iterator[None]:
    """Turn what a store says no to into one line with a remedy; a path of this machine is left alone.

    Raises:
        InputError: naming the field.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found = None if isinstance(path, Path) else store_problem(error)
        if found is None:
            raise
        raise InputError(field, path, *found) from error


def store_problem(error: BaseException | None) -> tuple[str, str] | None:
    """(problem, remedy) where a store is behind an error, however deep; None where none is."""
    while error is not None:
        found = _told(error)
        if found is not None:
            return found
        error = error.__cause__ or getattr(error, "cause", None) or error.__context__
    return None


def _told(error: BaseException) -> tuple[str, str] | None:
    said = " ".join(str(error).split())[:SHOWN_CHARS]
    name = type(error).__name__
    if "Credential" in name or "Credential" in said:
        return f"no credentials were found ({name}: {said})", CHECK
    if isinstance(error, PermissionError):
        return f"the store refuses it ({said})", CHECK
    if isinstance(error, FileNotFoundError) and "bucket" in said.lower():
        return "no such bucket", "make it or choose another"
    if type(error).__module__.partition(".")[0] in CLIENTS:
        remedy = "see that its endpoint is right and can be reached; the same command goes on"
        return f"the store does not answer as it should ({name}: {said})", remedy
    return None
