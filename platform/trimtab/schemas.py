"""The rows on disk, each with its Arrow schema. What crosses a stage's boundary is one of these.

``RankedGroup`` is the unit of data, storage, training and resume: N answers to one (system, prompt),
best first. C²-SYN groups have N = 6, CST pairs N = 2; preference pairs are a view of a group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from trimtab.files import AnyPath, arrow_paths, files_in, parquet_source, whole_file

AnyRow = TypeVar("AnyRow", bound="Row")

_text = pa.string()
_message = pa.struct([("role", _text), ("content", _text)])
_response = pa.struct([("role", _text), ("text", _text), ("num_prefill_chars", pa.int32())])


CONTENT_CHARS = 500
"""So much of a quarantined row is kept."""


def make_id(*parts: object) -> str:
    """A short deterministic id of a recipe's parts: the same parts give the same id on every machine."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:20]


class Row(BaseModel):
    """Base of the rows: frozen, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def reason_of(error: ValueError) -> str:
    """One line on why a row can't be used."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    field = "".join(f"{part}: " for part in first["loc"][:1])
    return str(first.get("ctx", {}).get("error", f"{field}{first['msg']}"))  # without pydantic's "Value error, "


class Request(Row):
    """A source row that passed the checks: a prompt, a full harmful response (FHR), perhaps a safe response."""

    id: str
    prompt: str
    harmful: str
    safe: str | None = None
    source_row: int
    category: str | None = None
    """What kind of request it is, where the source says so; several are joined by ``; ``."""


class Response(Row):
    """One answer of a group. ``num_prefill_chars`` of its text were given to the model, not written by it."""

    role: str
    text: str
    num_prefill_chars: int = 0


class RankedGroup(Row):
    """N ≥ 2 answers to one (system, prompt), best first; the first ``num_demonstrations`` are worth imitating."""

    id: str
    source: str
    configuration: str
    system: str | None = None
    prompt: str
    responses: tuple[Response, ...]
    num_demonstrations: int = 1

    @model_validator(mode="after")
    def _check(self) -> RankedGroup:
        texts = [response.text for response in self.responses]
        if len(texts) < 2:
            raise ValueError(f"responses: a group needs at least 2, this has {len(texts)}; drop or mend the group")
        if any(not text.strip() for text in texts):
            raise ValueError(f"responses[{[bool(t.strip()) for t in texts].index(False)}] is empty; drop the group")
        if len(set(texts)) < len(texts):
            raise ValueError("responses: two are equal; a preference between equals says nothing, drop one")
        if not 1 <= self.num_demonstrations <= len(texts):
            raise ValueError(f"num_demonstrations: {self.num_demonstrations} of {len(texts)} responses; use 1 to N")
        return self

    @property
    def num_pairs(self) -> int:
        """N·(N−1)/2, the pairs that ``pairs`` gives."""
        return len(self.responses) * (len(self.responses) - 1) // 2

    def flip(self, configuration: str, system: str | None) -> RankedGroup:
        """The same responses in reverse order under the opposite system prompt (CST, arXiv 2404.00495)."""
        return RankedGroup(
            id=make_id(self.id, "flip", configuration, system), source=self.source, configuration=configuration,
            system=system, prompt=self.prompt, responses=self.responses[::-1], num_demonstrations=1,
        )  # fmt: skip


class PreferencePair(Row):
    """One ordered pair of a group, in TRL's words."""

    group_id: str
    system: str | None
    prompt: str
    chosen: str
    rejected: str
    rank_chosen: int
    rank_rejected: int


def pairs(group: RankedGroup) -> Iterator[PreferencePair]:
    """All N·(N−1)/2 pairs of a group: ``responses[i] ≻ responses[j]`` for i < j."""
    for i, j in combinations(range(len(group.responses)), 2):
        yield PreferencePair(
            group_id=group.id, system=group.system, prompt=group.prompt, chosen=group.responses[i].text,
            rejected=group.responses[j].text, rank_chosen=i, rank_rejected=j,
        )  # fmt: skip


class PlanRow(Row):
    """One generation to be made: messages, the text that opens the assistant turn, and how to sample."""

    id: str
    request_id: str
    kind: str
    system: str | None = None
    prompt: str
    prefill: str = ""
    reopen: bool = False
    """Close the turn behind ``prefill`` and open a new one, instead of continuing it."""
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    shard: int = 0
    """The part of the plan, and so of the groups, that the row belongs to."""


class Generation(Row):
    """What an engine wrote for a plan row; ``error`` is empty unless the row failed."""

    id: str
    text: str
    num_prompt_tokens: int
    num_tokens: int
    error: str = ""
    shard: int = 0
    seconds: float = 0.0
    """Time that the row spent in the engine, waiting included."""
    finished_at: float = 0.0
    """When the engine was done with it, in seconds since 1970; 0 where not known."""


class PrefillCase(Row):
    """A C²-EVAL case: the assistant turn opened with the first k words or tokens of opener + harmful response."""

    id: str
    request_id: str
    k: int
    prompt: str
    prefill: str
    num_units: int
    """Words or tokens in the prefill: fewer than k where the whole response was shorter."""
    path: int = 0
    """Which of the samples from the same prefill."""


class Verdict(Row):
    """A judge's answer for one case. ``unparsed`` is counted, never guessed."""

    id: str
    request_id: str
    group: str
    """What the case is averaged with: ``k`` of a prefill case, the preset of an answer."""
    prompt: str
    prefill: str = ""
    text: str
    verdict: Literal["yes", "no", "unparsed"]
    score: float | None = None
    """From 0 to 1, where the judge was asked for a grade."""
    raw: str | None = None
    """The judge's own words; None where it gave no answer, and for rules."""
    error: str | None = None
    """Why the judge gave no answer."""
    category: str | None = None
    """The request's, where its source names one."""


class Attempt(Row):
    """What an attack on one prompt came to."""

    id: str
    request_id: str
    attack: str
    kind: str
    outcome: Literal["success", "failure", "refused", "unparsed"]
    """``refused``: the renderer or the endpoint did not let it through. ``unparsed``: nobody can say."""
    score: float | None = None
    """From 0 to 1, where the judge was asked for a grade."""
    reason: str = ""
    """Why it was refused, or could not be judged."""


class RetentionRow(Row):
    """A benign prompt: this model's own answer, and its loss on the base model's answer."""

    id: str
    prompt: str
    answer: str
    scored: str
    """The base model's answer, on which ``nll`` is measured."""
    nll: float
    """Mean negative log-likelihood per token of ``scored`` under this model, in nats."""
    num_tokens: int


class ScoredDocument(Row):
    """A document of an ability task and what the model's answer to it scored by one metric."""

    id: str
    task: str
    metric: str
    document: str
    """Hash of the document, as the harness gives it; a task may hold one twice."""
    value: float


class Quarantined(Row):
    """A row that could not be used, and why."""

    source_row: int
    reason: str
    content: str
    stage: Literal["source", "plan", "generation", "group"] = "source"
    """Where it fell out; ``generation`` rows are what ``--retry-quarantined`` takes up again."""
    id: str = ""
    """The plan row (``generation``) or request (``plan``, ``group``)."""
    attempts: int = 0
    """How often the engine has tried."""


SCHEMAS: dict[type[Row], pa.Schema] = {
    Request: pa.schema([("id", _text), ("prompt", _text), ("harmful", _text), ("safe", _text),
                        ("source_row", pa.int64()), ("category", _text)]),
    RankedGroup: pa.schema([("id", _text), ("source", _text), ("configuration", _text), ("system", _text),
                            ("prompt", _text), ("responses", pa.list_(_response)), ("num_demonstrations", pa.int32())]),
    PreferencePair: pa.schema([("group_id", _text), ("system", _text), ("prompt", _text), ("chosen", _text),
                               ("rejected", _text), ("rank_chosen", pa.int32()), ("rank_rejected", pa.int32())]),
    PlanRow: pa.schema([("id", _text), ("request_id", _text), ("kind", _text), ("system", _text), ("prompt", _text),
                        ("prefill", _text), ("reopen", pa.bool_()), ("max_tokens", pa.int32()),
                        ("temperature", pa.float64()), ("top_p", pa.float64()), ("seed", pa.int64()),
                        ("shard", pa.int32())]),
    Generation: pa.schema([("id", _text), ("text", _text), ("num_prompt_tokens", pa.int32()),
                           ("num_tokens", pa.int32()), ("error", _text), ("shard", pa.int32()),
                           ("seconds", pa.float64()), ("finished_at", pa.float64())]),
    PrefillCase: pa.schema([("id", _text), ("request_id", _text), ("k", pa.int32()), ("prompt", _text),
                            ("prefill", _text), ("num_units", pa.int32()), ("path", pa.int32())]),
    Verdict: pa.schema([("id", _text), ("request_id", _text), ("group", _text), ("prompt", _text), ("prefill", _text),
                        ("text", _text), ("verdict", _text), ("score", pa.float64()), ("raw", _text),
                        ("error", _text), ("category", _text)]),
    Attempt: pa.schema([("id", _text), ("request_id", _text), ("attack", _text), ("kind", _text), ("outcome", _text),
                        ("score", pa.float64()), ("reason", _text)]),
    RetentionRow: pa.schema([("id", _text), ("prompt", _text), ("answer", _text), ("scored", _text),
                             ("nll", pa.float64()), ("num_tokens", pa.int32())]),
    ScoredDocument: pa.schema([("id", _text), ("task", _text), ("metric", _text), ("document", _text),
                               ("value", pa.float64())]),
    Quarantined: pa.schema([("source_row", pa.int64()), ("reason", _text), ("content", _text), ("stage", _text),
                            ("id", _text), ("attempts", pa.int32())]),
}  # fmt: skip


def write_rows(path: AnyPath, cls: type[AnyRow], rows: Iterable[AnyRow]) -> int:
    """Write rows to one Parquet file, whole or not at all. Returns the count."""
    table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=SCHEMAS[cls])
    write_table(path, table)
    return int(table.num_rows)


def write_table(path: AnyPath, table: pa.Table) -> None:
    """Write a Parquet file whole or not at all, its folder where it lacks."""
    import pyarrow.parquet as pq

    with whole_file(path) as part:
        pq.write_table(table, part, write_page_checksum=True)


def read_rows(path: AnyPath, cls: type[AnyRow]) -> list[AnyRow]:
    """Read the rows of a ``.parquet`` file, or of all those of a folder (none where there is no such folder)."""
    return read_files([path] if path.suffix == ".parquet" else files_in(path), cls)


def read_files(files: Sequence[AnyPath], cls: type[AnyRow], shard: int | None = None) -> list[AnyRow]:
    """Read the rows of Parquet files, or only those of one shard, in the files' order.

    A column that an older version didn't write holds its default.
    """
    import pyarrow.dataset as pads

    if not files:
        return []
    wanted = None if shard is None else pads.field("shard") == shard
    filesystem, paths = arrow_paths(files)
    table = pads.dataset(paths, schema=SCHEMAS[cls], filesystem=filesystem).to_table(filter=wanted)
    return [cls.model_validate(row) for row in _with_defaults(table, cls).to_pylist()]


def _with_defaults(table: pa.Table, cls: type[Row]) -> pa.Table:
    """The table with a field's default in the place of null, which no field with such a default may hold."""
    import pyarrow.compute as pc

    for number, (name, info) in enumerate(cls.model_fields.items()):
        if isinstance(info.default, bool | int | float | str) and table[name].null_count:
            table = table.set_column(number, table.schema.field(number), pc.fill_null(table[name], info.default))
    return table


def readable(path: AnyPath) -> bool:
    """Whether a Parquet file can be read to its end, with the checksums of its pages where it has them.

    Raises:
        PermissionError: this process may not read it. A store's errors are raised too: they say nothing of the file.
    """
    import pyarrow.parquet as pq

    source = parquet_source(path)
    try:
        pq.ParquetFile(source, page_checksum_verification=True).read()
    except PermissionError:
        raise
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def group_files(output: AnyPath) -> list[AnyPath]:
    """The Parquet files of ranked groups below an output of ``trimtab synthesize``, one for each shard, in order."""
    return files_in(output / "groups", "[0-9]*.parquet")


def group_file(output: AnyPath, shard: int = 0) -> AnyPath:
    """Where the groups of a shard stand."""
    return output / "groups" / f"{shard:05d}.parquet"


def iter_groups(output: AnyPath) -> Iterator[RankedGroup]:
    """The ranked groups of an output of ``trimtab synthesize``, shard by shard: one shard in memory at a time."""
    for path in group_files(output):
        yield from read_rows(path, RankedGroup)
