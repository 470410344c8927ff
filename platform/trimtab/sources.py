"""Source rows in the PKU-SafeRLHF format: reading, checking, and the one split that every stage shares.

A bad row inside a good file is quarantined with its reason and counted; the run fails only when
more than the configured share is bad. Requests are split by normalized prompt, near-duplicates
(MinHash) together, so that no stage trains on what another measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trimtab.config import Config, InputError
from trimtab.files import AnyPath, Location, is_file, parquet_source
from trimtab.near_duplicates import Sketches, normalize
from trimtab.schemas import CONTENT_CHARS, Quarantined, Request, make_id
from trimtab.stores import store_errors_are_input_errors

FIELDS: dict[str, type] = {
    "prompt": str, "response_0": str, "response_1": str, "is_response_0_safe": bool, "is_response_1_safe": bool,
}  # fmt: skip
DATA_FILE = "the path of a .jsonl, .json or .parquet file"
CATEGORIES = "; "
"""Between the categories of one request."""


class SourceConfig(Config):
    """Where requests come from and how they are split."""

    data: Location | None = None
    """A PKU-SafeRLHF-format file (.jsonl, .json or .parquet), or its URI; none: the sample shipped with trimtab."""
    num_evaluation_prompts: int = 48
    """Distinct prompts held out for evaluation; the rest is for training."""
    num_validation_prompts: int = Field(0, ge=0)
    """Distinct prompts besides, for choosing a checkpoint while training; neither trained nor reported on."""
    split: Literal["evaluation", "validation", "all"] = "evaluation"
    """Which held-out prompts an evaluation measures; ``all``: every prompt of a file on which nothing is trained, such
    as a released benchmark."""
    split_seed: int = 0
    max_bad_share: float = 0.01
    """The run fails when more than this share of the rows is bad."""

    def identity(self) -> dict[str, Any]:
        """The path is no identity: the content's hash is an input of the stage."""
        return {name: value for name, value in super().identity().items() if name != "data"}

    @property
    def path(self) -> AnyPath:
        """The file to read."""
        return self.data or Path(__file__).parent / "data" / "sample_requests.jsonl"


def read_requests(config: SourceConfig) -> tuple[list[Request], list[Quarantined]]:
    """The usable rows of the file, in file order, and the quarantined ones.

    A row is usable when at least one response is unsafe; the first unsafe one is the full harmful response.
    A row that repeats another is set aside with the bad ones, but is none: it doesn't count against their share.

    Raises:
        InputError: the file is missing, empty, no JSON, or has too many bad rows.
    """
    rows = list(enumerate(read_json_rows("data", config.path)))
    requests, bad = [], []
    for number, row in rows:
        reason = _problem(row)
        if reason:
            bad.append(Quarantined(source_row=number, reason=reason, content=json.dumps(row)[:CONTENT_CHARS]))
        elif (request := _to_request(number, row)) is not None:
            requests.append(request)
    refuse_too_many_bad("data", config.path, bad, len(rows), config.max_bad_share)
    if not requests:
        raise InputError(
            "data", config.path, "no row has an unsafe response", "give rows with is_response_N_safe=false"
        )
    once, repeated = _each_once(requests)
    return once, [*bad, *repeated]


def _each_once(requests: list[Request]) -> tuple[list[Request], list[Quarantined]]:
    """The first request of each id, and the rows that repeat one (published sets hold such rows)."""
    first: dict[str, Request] = {}
    repeated = []
    for request in requests:
        seen = first.setdefault(request.id, request)
        if seen is not request:
            reason = f"repeats row {seen.source_row + 1} (same prompt and harmful response)"
            repeated.append(
                Quarantined(source_row=request.source_row, reason=reason, content=request.prompt[:CONTENT_CHARS])
            )
    return list(first.values()), repeated


def refuse_too_many_bad(field: str, path: AnyPath, bad: list[Quarantined], total: int, max_share: float) -> None:
    """Fail when the quarantined share is above the limit, naming the first bad row."""
    if len(bad) > max_share * total:
        first = bad[0]
        problem = f"{len(bad)} of {total} rows are bad (row {first.source_row + 1}: {first.reason})"
        raise InputError(field, path, problem, f"mend them or raise max_bad_share ({max_share})")


def _problem(row: Any) -> str | None:
    if not isinstance(row, dict):
        return "is not a JSON object"
    for field, kind in FIELDS.items():
        if field not in row:
            return f"field {field} is missing"
        if type(row[field]) is not kind:
            return f"field {field} is {type(row[field]).__name__}, not {kind.__name__}"
    for field in ("prompt", "response_0", "response_1"):
        if not row[field].isascii() and not is_unicode(row[field]):
            return f"field {field} is not valid Unicode text"
    if not row["prompt"].strip():
        return "field prompt is empty"
    return None


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON can hold lone surrogates, which nothing else takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_request(number: int, row: dict[str, Any]) -> Request | None:
    for which, other in ((0, 1), (1, 0)):
        if not row[f"is_response_{which}_safe"] and row[f"response_{which}"].strip():
            safe = row[f"response_{other}"].strip() if row[f"is_response_{other}_safe"] else None
            harmful = row[f"response_{which}"].strip()
            return Request(
                id=make_id("request", row["prompt"], harmful), prompt=row["prompt"].strip(), harmful=harmful,
                safe=safe or None, source_row=number, category=category_of(row, f"response_{which}_harm_category"),
            )  # fmt: skip
    return None


def category_of(row: Mapping[str, Any], judged: str = "") -> str | None:
    """What a row says that its request is about: a text ``category``, or PKU-SafeRLHF's table of yes and no.

    Args:
        judged: the field of that table.

    Returns:
        The category, several joined by ``; ``; None where the row has none, or none that is Unicode text.
    """
    marked = row.get(judged)
    named = [str(name) for name, holds in marked.items() if holds is True] if isinstance(marked, dict) else []
    given = row.get("category")
    found = given.strip() if isinstance(given, str) else CATEGORIES.join(named)
    return found if found and is_unicode(found) else None


def read_json_rows(field: str, path: AnyPath) -> Iterator[Any]:
    """Rows of a .jsonl, .json (a list) or .parquet file.

    Raises:
        InputError: missing, empty or unreadable, naming the line.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(field, path)
        return
    text = read_text(field, path, DATA_FILE)
    if not text.strip():
        raise InputError(field, path, "is empty", "give a file with at least one row")
    if path.suffix == ".json":
        yield from _json_list(field, path, text)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _json_line(field, path, number, line)


def require_file(field: str, path: AnyPath, wanted: str = DATA_FILE) -> None:
    """A file that the user names must be there.

    Raises:
        InputError: it isn't, or its store can't be asked.
    """
    with store_errors_are_input_errors(field, path):
        if not is_file(path):
            raise InputError(field, path, "no such file", f"give {wanted}")


def read_text(field: str, path: AnyPath, wanted: str) -> str:
    """The text of a file that the user names.

    Args:
        wanted: what to give instead, for the message.

    Raises:
        InputError: it isn't there or is no UTF-8 text, or its store can't be asked.
    """
    require_file(field, path, wanted)
    try:
        with store_errors_are_input_errors(field, path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(field, path, f"is not UTF-8 text ({error.reason})", f"give {wanted}") from error


def small_text(field: str, path: AnyPath, wanted: str) -> str:
    """``read_text`` of what a recipe asks for at every request: a remote one is read once in a process."""
    return read_text(field, path, wanted) if isinstance(path, Path) else _text_once(field, path, wanted)


_text_once = lru_cache(maxsize=8)(read_text)


def _json_line(field: str, path: AnyPath, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        if number == 1:
            raise InputError(field, path, f"line 1 is not JSON ({error})", "give a JSON Lines file") from error
        return line


def _json_list(field: str, path: AnyPath, text: str) -> list[Any]:
    try:
        rows = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(field, path, f"is not JSON ({error})", "mend the file") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(field, path, "is not a list of rows", "give a JSON list or a JSON Lines file")
    return rows


def _parquet_rows(field: str, path: AnyPath) -> list[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(field, path)
    with store_errors_are_input_errors(field, path):
        source = parquet_source(path)
    try:
        rows: list[Any] = pq.read_table(source).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(field, path, f"is not readable Parquet ({error})", "make the file again") from error
    if not rows:
        raise InputError(field, path, "is empty", "give a file with at least one row")
    return rows


def split_requests(
    requests: list[Request], config: SourceConfig, sketches: Sketches | None = None
) -> tuple[list[Request], list[Request]]:
    """(training, held out) requests. Whole clusters of near-duplicate prompts go to one side.

    The draw is a seeded hash of the normalized prompt, so it doesn't depend on the file's order. First the
    evaluation prompts are drawn, then those of validation from the rest; ``config.split`` says which are meant. Of
    ``all`` none is left for training.

    Args:
        sketches: keeps the prompts' sketches for who looks at them again.

    Raises:
        InputError: fewer distinct prompts than asked for, with at least one left for training.
    """
    if config.split == "all":
        return [], requests
    sketches = sketches or Sketches()
    evaluation, rest = _drawn(requests, config.num_evaluation_prompts, config.split_seed, sketches)
    validation, training = _drawn(rest, config.num_validation_prompts, config.split_seed, sketches)
    sides = (("num_evaluation_prompts", evaluation, rest), ("num_validation_prompts", validation, training))
    for field, held, left in sides:
        count: int = getattr(config, field)
        if len({normalize(request.prompt) for request in held}) < count or not left:
            distinct = len({normalize(request.prompt) for request in [*held, *left]})
            problem = f"{distinct} distinct prompts cannot hold out {count} and leave any"
            raise InputError(field, count, problem, "lower it or add rows")
    return training, (evaluation if config.split == "evaluation" else validation)


def _drawn(requests: list[Request], count: int, seed: int, sketches: Sketches) -> tuple[list[Request], list[Request]]:
    """(held out, the rest), in file order."""
    places = hold_out([request.prompt for request in requests], count, seed, sketches) if count else set()
    held = [request for place, request in enumerate(requests) if place in places]
    return held, [request for place, request in enumerate(requests) if place not in places]


def hold_out(prompts: Sequence[str], count: int, seed: int, sketches: Sketches | None = None) -> set[int]:
    """Places of the prompts held out: whole clusters of near-duplicates, until ``count`` distinct ones are reached."""
    clusters: dict[int, list[int]] = {}
    for place, label in enumerate((sketches or Sketches()).labels(prompts)):
        clusters.setdefault(label, []).append(place)
    drawn = sorted(clusters.values(), key=lambda places: min(_draw(prompts[place], seed) for place in places))
    held: set[int] = set()
    distinct: set[str] = set()
    for places in drawn:
        if len(distinct) >= count:
            break
        held.update(places)
        distinct.update(normalize(prompts[place]) for place in places)
    return held


def _draw(prompt: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\x1f{normalize(prompt)}".encode()).hexdigest()
