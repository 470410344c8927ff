"""Reading a folder of ranked groups as Arrow, a batch at a time, and counting what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trimtab.config import InputError
from trimtab.console import Progress
from trimtab.files import AnyPath, parquet_source
from trimtab.schemas import SCHEMAS, RankedGroup
from trimtab.stores import store_errors_are_input_errors
from trimtab.synthesis.exports.pairs import Which, group_sizes, pair_index, response_texts, text_places

GROUPS_AT_ONCE = 1024
REMEDY = "run trimtab synthesize again, which redoes that part"


def batches(path: AnyPath) -> Iterator[pa.RecordBatch]:
    """The groups of one shard, at most ``GROUPS_AT_ONCE`` at a time.

    Raises:
        InputError: the file can't be read, lacks a column, or has a group without two responses.
    """
    import pyarrow.parquet as pq

    names = SCHEMAS[RankedGroup].names
    with store_errors_are_input_errors("groups", path):
        source = parquet_source(path)
    try:
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise InputError("groups", path, f"has no column {', '.join(missing)}", REMEDY)
            for batch in file.iter_batches(batch_size=GROUPS_AT_ONCE, columns=names):
                if batch.num_rows and group_sizes(batch).min() < 2:
                    raise InputError("groups", path, "holds a group with fewer than two responses", REMEDY)
                yield batch
    except PermissionError as error:
        raise InputError(
            "groups", path, "may not be read by this user", "give yourself the right to read it"
        ) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError("groups", path, f"is not readable Parquet ({error})", REMEDY) from error


def select(groups: pa.RecordBatch, configurations: Sequence[str] | None) -> pa.RecordBatch:
    """The groups of these configurations; None: all."""
    if configurations is None:
        return groups
    return groups.filter(pc.is_in(groups.column("configuration"), value_set=pa.array(configurations, pa.string())))


@dataclass
class Mean:
    """A mean that is summed up batch by batch; None over nothing."""

    total: int = 0
    count: int = 0

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None

    def add(self, total: int, count: int) -> None:
        self.total += total
        self.count += count


@dataclass
class Survey:
    """What the groups of a folder are: counts by configuration, system prompts, lengths."""

    available: Counter[str] = field(default_factory=Counter)
    """Groups of each configuration in the folder, selected or not."""
    num_groups: Counter[str] = field(default_factory=Counter)
    num_pairs: Counter[str] = field(default_factory=Counter)
    systems: dict[str, Counter[str | None]] = field(default_factory=dict)
    """For each configuration its system prompts, with their groups; None: no system message."""
    num_chars: dict[str, Mean] = field(default_factory=dict)
    """Mean characters of ``prompt``, ``chosen`` and ``rejected``, over pairs."""
    role_chars: dict[str, Mean] = field(default_factory=dict)
    """Mean characters of the responses of each role."""

    def add(self, groups: pa.RecordBatch, configurations: Sequence[str] | None, which: Which) -> None:
        """Count one batch of the folder."""
        self.available.update(groups.column("configuration").to_pylist())
        chosen = select(groups, configurations)
        index = pair_index(group_sizes(chosen), which)
        names, systems = (chosen.column(name).to_pylist() for name in ("configuration", "system"))
        counts = np.bincount(index.group, minlength=len(names)).tolist()
        for name, system, count in zip(names, systems, counts, strict=True):
            self.num_groups[name] += 1
            self.num_pairs[name] += count
            self.systems.setdefault(name, Counter())[system] += 1
        self._add_lengths(chosen, which)

    def _add_lengths(self, groups: pa.RecordBatch, which: Which) -> None:
        index = pair_index(group_sizes(groups), which)
        lengths = _num_chars(response_texts(groups))
        better, worse = text_places(groups, index)
        prompts = _num_chars(groups.column("prompt"))[index.group]
        for name, found in {"prompt": prompts, "chosen": lengths[better], "rejected": lengths[worse]}.items():
            self.num_chars.setdefault(name, Mean()).add(int(found.sum()), len(found))
        roles = pc.struct_field(pc.list_flatten(groups.column("responses")), "role").dictionary_encode()
        of_role = np.asarray(roles.indices)
        for number, role in enumerate(roles.dictionary.to_pylist()):
            found = lengths[of_role == number]
            self.role_chars.setdefault(role, Mean()).add(int(found.sum()), len(found))


def _num_chars(texts: pa.StringArray) -> np.ndarray:
    return np.asarray(pc.utf8_length(texts), dtype=np.int64)


def survey(files: Sequence[AnyPath], configurations: Sequence[str] | None, which: Which) -> Survey:
    """Read all shards once and count.

    Raises:
        InputError: a shard can't be read.
    """
    found = Survey()
    with Progress("reading groups", len(files), "shards") as progress:
        for done, path in enumerate(files, start=1):
            for groups in batches(path):
                found.add(groups, configurations, which)
            progress.update(done)
    return found
