"""The step plan: which groups each worker computes in each forward pass of each optimizer step.

It is drawn once, from a seed, before any worker starts, and is the same for any number of workers up to
who computes what: a step's loss is the mean over its groups, however they are spread. Forward passes are
balanced by trie tokens, which is what they cost, not by groups.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.schemas import write_table

SCHEMA = pa.schema([("step", pa.int32()), ("part", pa.int32()), ("worker", pa.int32()),
                    ("group_ids", pa.list_(pa.string())), ("weight", pa.float64()),
                    ("num_tokens", pa.int32())])  # fmt: skip


@dataclass(frozen=True)
class Item:
    """What the plan must know of a group."""

    id: str
    source: str
    num_tokens: int
    weight: float = 1.0
    """Times that it is seen in an epoch."""


@dataclass(frozen=True)
class Forward:
    """One forward pass: a forest of one worker. ``weight`` times the sum of its groups' losses is its loss."""

    step: int
    part: int
    worker: int
    group_ids: tuple[str, ...]
    weight: float
    num_tokens: int


def order(items: Sequence[Item], epoch: int, seed: int) -> list[Item]:
    """One epoch: sources shuffled by (seed, epoch), the groups of a source in a row.

    So a group and its flip, which asks for the opposite ranking, stand in one optimizer step: what the two have
    in common should cancel, leaving what depends on the system prompt. A source whose weight is not whole is
    drawn by its own seeded number: weight 0.5 takes half of the sources, all groups of each.
    """
    by_source: dict[str, list[Item]] = {}
    for item in items:
        by_source.setdefault(item.source, []).append(item)
    drawn = sorted(by_source)
    random.Random(f"{seed}/{epoch}").shuffle(drawn)
    copies = max((math.ceil(item.weight) for item in items), default=0)
    return [item for copy in range(copies) for source in drawn for item in by_source[source]
            if _taken(item, copy, epoch, seed)]  # fmt: skip


def _taken(item: Item, copy: int, epoch: int, seed: int) -> bool:
    """Whether the copy-th pass of an epoch takes an item: whole weights always, the rest by the source's draw."""
    rest = item.weight - copy
    return rest >= 1 or (rest > 0 and random.Random(f"{seed}/{epoch}/{copy}/{item.source}").random() < rest)


def steps_of(items: Sequence[Item], epochs: float, groups_per_step: int, seed: int) -> list[list[Item]]:
    """The groups of each optimizer step; the last step of an epoch may be smaller."""
    steps = []
    for epoch in range(math.ceil(epochs)):
        drawn = order(items, epoch, seed)
        if epoch + 1 > epochs:
            drawn = drawn[: max(1, round(len(drawn) * (epochs - epoch)))]
        steps += [drawn[start : start + groups_per_step] for start in range(0, len(drawn), groups_per_step)]
    return steps


def make_plan(steps: list[list[Item]], num_workers: int, max_tokens: int | None) -> tuple[list[Forward], int]:
    """(forward passes, parts): each step in ``parts`` x ``num_workers`` forests, the parts being accumulated.

    ``parts`` is the smallest number with which every forest of every step stays within ``max_tokens`` (or holds
    one group only); DeepSpeed needs it to be the same in all steps. A step with fewer groups than forests
    fills up with a forest of weight 0, so that all workers take part in each collective operation.
    """
    most = max((len(step) for step in steps), default=0)
    limit = math.ceil(most / num_workers)
    parts = limit if max_tokens is None else next(
        (n for n in range(1, limit) if all(_largest(_bins(step, n * num_workers)) <= max_tokens for step in steps)),
        limit,
    )  # fmt: skip
    return [
        made for number, step in enumerate(steps) for made in _step_forwards(number, step, parts, num_workers)
    ], parts


def _step_forwards(number: int, step: list[Item], parts: int, num_workers: int) -> list[Forward]:
    bins = sorted(_bins(step, parts * num_workers), key=lambda items: -sum(item.num_tokens for item in items))
    weight = parts * num_workers / len(step)
    smallest = min(step, key=lambda item: (item.num_tokens, item.id))
    return [
        Forward(number, place // num_workers, place % num_workers, tuple(item.id for item in items or [smallest]),
                weight if items else 0.0, sum(item.num_tokens for item in items or [smallest]))
        for place, items in enumerate(bins)
    ]  # fmt: skip


def _bins(step: list[Item], count: int) -> list[list[Item]]:
    """Spread a step's groups over bins of about equal tokens: the largest first, into the emptiest bin."""
    heap: list[tuple[int, int, list[Item]]] = [(0, place, []) for place in range(count)]
    for item in sorted(step, key=lambda item: (-item.num_tokens, item.id)):
        tokens, place, items = heapq.heappop(heap)
        items.append(item)
        heapq.heappush(heap, (tokens + item.num_tokens, place, items))
    return [items for _, _, items in sorted(heap, key=lambda entry: entry[1])]


def _largest(bins: list[list[Item]]) -> int:
    """Tokens of the largest bin of several groups; a group that is too large alone can't be helped."""
    packed = [items for items in bins if len(items) > 1]
    return max((sum(item.num_tokens for item in items) for items in packed), default=0)


def write_plan(path: Path, plan: list[Forward]) -> None:
    """Write the plan as one Parquet file, whole or not at all."""
    rows = [{**forward.__dict__, "group_ids": list(forward.group_ids)} for forward in plan]
    write_table(path, pa.Table.from_pylist(rows, schema=SCHEMA))


def read_plan(path: Path) -> list[Forward]:
    """The forward passes of a plan, in order of step, part and worker."""
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [Forward(**{**row, "group_ids": tuple(row["group_ids"])}) for row in rows]
