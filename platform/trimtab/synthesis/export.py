"""The export stage: ranked groups in the forms that other tools take, shard by shard, and on request to the Hub.

A file is written whole or not at all and kept when the stage goes on after an interruption. Nothing is
sent anywhere unless ``push_to`` names a repository.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import pyarrow as pa
from pydantic import Field

from trimtab.artifacts import Outcome, Record, require_record, run_stage, write_text
from trimtab.config import Config, InputError, placement
from trimtab.console import Progress, say
from trimtab.files import AnyPath, Location, is_file, whole_file
from trimtab.schemas import SCHEMAS, RankedGroup, group_files
from trimtab.synthesis.exports import hub
from trimtab.synthesis.exports.dataset_card import dataset_card
from trimtab.synthesis.exports.pairs import TRL_SCHEMA, Which, json_lines, trl_pairs
from trimtab.synthesis.exports.survey import REMEDY, Survey, batches, select, survey

STAGE = "export"

Format = Literal["trl", "jsonl", "ranked", "dataset"]


class ExportConfig(Config):
    """``trimtab export``: write ranked groups for other tools."""

    output: Location = placement()
    """Folder of the output, or its URI; each format has its place in it, beside record.json."""
    groups: Location = placement()
    """Output of ``trimtab synthesize``, a folder or its URI."""
    formats: tuple[Format, ...] = Field(("trl",), min_length=1)
    """``trl``: pairs/*.parquet, TRL's conversational preference rows; ``jsonl``: pairwise_dataset.jsonl as released
    with Course-Correction, which has no system prompt, so several configurations get a file each; ``ranked``:
    ranked/*.parquet, the groups as they are; ``dataset``: dataset/, the TRL rows with a card, for ``load_dataset``."""
    pairs: Which = "all"
    """Pairs of a group: all C(N,2) of them, the adjacent ones, or the best response with the worst."""
    configurations: tuple[str, ...] | None = Field(None, min_length=1)
    """Only groups of these safety configurations; none: all."""
    license: str | None = None
    """The licence that the card states, by its name on the Hub such as cc-by-nc-4.0."""
    push_to: str | None = placement(None)
    """A dataset repository of the Hugging Face Hub (owner/name) to send dataset/ to; none: nothing is sent."""
    private: bool = placement(True)
    """Whether a repository that the push makes is private."""


def run(config: ExportConfig) -> Record:
    """Write the groups in the formats asked for. Running it again goes on, or skips what is done.

    Raises:
        InputError: the groups or the configuration can't be used, or the Hub can't be reached.
    """
    source = require_record("groups", config.groups, "synthesize")
    if config.push_to is not None:
        _check_push(config, config.push_to)

    def work(output: AnyPath) -> Outcome:
        return _export(config, source, output)

    record = run_stage(STAGE, config.output, config, {"groups": source.fingerprint}, work)
    if config.push_to is not None:
        hub.push(config.output / "dataset", config.push_to, config.private)
    return record


def _check_push(config: ExportConfig, repository: str) -> None:
    if "dataset" not in config.formats:
        raise InputError("push_to", repository, "only the format dataset can be sent", "add dataset to formats")
    hub.check_repository(repository)


def _export(config: ExportConfig, source: Record, output: AnyPath) -> Outcome:
    files = group_files(config.groups)
    found = survey(files, config.configurations, config.pairs)
    _check_groups(config, source, found)
    parts = [part for kind in config.formats for part in _parts(kind, config, files, found, output)]
    with Progress("writing", sum(len(part.shards) for part in parts), "shards") as progress:
        steps = (step for part in parts for step in _write(part, config.pairs))
        for done, _ in enumerate(steps, start=1):
            progress.update(done)
    if "dataset" in config.formats:
        card = dataset_card(found, source, config.groups, config.pairs, config.license)
        write_text(output / "dataset" / "README.md", card)
    counts = {"groups": found.num_groups.total(), "pairs": found.num_pairs.total(), "shards": len(files)}
    say(f"  {counts['groups']} ranked groups = {counts['pairs']} preference pairs as {', '.join(config.formats)}")
    return Outcome(counts=counts, results={"pairs_by_configuration": dict(found.num_pairs)})


def _check_groups(config: ExportConfig, source: Record, found: Survey) -> None:
    expected, held = source.counts.get("groups"), found.available.total()
    if expected is not None and held != expected:
        raise InputError("groups", config.groups, f"holds {held} of the {expected} groups of its record", REMEDY)
    if not held:
        raise InputError("groups", config.groups, "holds no groups", "give the output of trimtab synthesize")
    unknown = [name for name in config.configurations or () if name not in found.available]
    if unknown:
        there = ", ".join(f"{name} ({count} groups)" for name, count in sorted(found.available.items()))
        raise InputError("configurations", ", ".join(unknown), "matches no group", f"use some of: {there}")


class Part(NamedTuple):
    """One file to write, and the shards of groups that go into it."""

    path: AnyPath
    kind: Format
    shards: Sequence[AnyPath]
    configurations: Sequence[str] | None


def _parts(kind: Format, config: ExportConfig, files: Sequence[AnyPath], found: Survey, output: AnyPath) -> list[Part]:
    """The files of one format: one a shard, or for ``jsonl`` one a configuration."""
    if kind == "jsonl":
        single = len(found.num_groups) == 1
        names = {name: "" if single else f"-{quote(name, safe='')}" for name in found.num_groups}
        return [Part(output / f"pairwise_dataset{end}.jsonl", kind, files, [name]) for name, end in names.items()]
    paths = {
        "trl": [output / "pairs" / file.name for file in files],
        "ranked": [output / "ranked" / file.name for file in files],
        "dataset": [output / "dataset" / "data" / f"train-{number:05d}-of-{len(files):05d}.parquet"
                    for number in range(len(files))],
    }  # fmt: skip
    return [Part(path, kind, [file], config.configurations) for path, file in zip(paths[kind], files, strict=True)]


def _write(part: Part, which: Which) -> Iterator[None]:
    """Write a file unless it is there, whole or not at all; yields after each of its shards."""
    if is_file(part.path):
        yield from (None for _ in part.shards)
        return
    with whole_file(part.path) as path, _sink(path, part.kind, which) as put:
        for shard in part.shards:
            for groups in batches(shard):
                put(select(groups, part.configurations))
            yield


@contextlib.contextmanager
def _sink(path: Path, kind: Format, which: Which) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """What takes batches of groups and writes them to a file in one of the formats."""
    import pyarrow.parquet as pq

    if kind == "jsonl":
        with path.open("w", encoding="utf-8", newline="\n") as stream:
            yield lambda groups: stream.writelines(json_lines(groups, which))
        return
    schema = SCHEMAS[RankedGroup] if kind == "ranked" else TRL_SCHEMA
    # Dictionary arrays are stored as they are, beyond the 1 MiB at which Parquet gives up a dictionary of its own
    # making; without Arrow's schema in the file readers see plain strings all the same.
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False, write_page_checksum=True) as writer:

        def put(groups: pa.RecordBatch) -> None:
            table = pa.Table.from_batches([groups]) if kind == "ranked" else trl_pairs(groups, which)
            if table.num_rows:
                writer.write_table(table)

        yield put
