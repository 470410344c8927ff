"""Preference pairs of many groups at once, as Arrow columns, without a loop over pairs.

The rows are those of ``schemas.pairs``, group by group. A response occurs in up to N−1 pairs, so texts
stand in dictionary arrays: each distinct one once, which is also how Parquet then stores them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Which = Literal["all", "adjacent", "best_worst"]
Places = NDArray[np.int64]

_text = pa.dictionary(pa.int32(), pa.string())
_messages = pa.list_(pa.struct([("role", _text), ("content", _text)]))
TRL_SCHEMA = pa.schema([
    ("prompt", _messages), ("chosen", _messages), ("rejected", _messages), ("group_id", _text),
    ("configuration", _text), ("rank_chosen", pa.int32()), ("rank_rejected", pa.int32()),
])  # fmt: skip


class PairIndex(NamedTuple):
    """Pairs as places: the group of each, and the ranks of its two responses in that group."""

    group: Places
    chosen: Places
    rejected: Places


def ranks(num_responses: int, which: Which) -> tuple[Places, Places]:
    """(chosen, rejected) ranks of the pairs of one group: all C(N,2), the N−1 adjacent ones, or best with worst."""
    if which == "all":
        chosen, rejected = np.triu_indices(num_responses, k=1)
        return chosen.astype(np.int64), rejected.astype(np.int64)
    if which == "adjacent":
        better = np.arange(num_responses - 1, dtype=np.int64)
        return better, better + 1
    return np.zeros(1, np.int64), np.full(1, num_responses - 1, np.int64)


def pair_index(sizes: Places, which: Which) -> PairIndex:
    """The pairs of groups with these numbers of responses, group by group, in the order of ``ranks``."""
    distinct, kind = np.unique(sizes, return_inverse=True)
    tables = [ranks(int(size), which) for size in distinct]
    lengths = np.array([len(chosen) for chosen, _ in tables], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    counts = lengths[kind]
    group = np.repeat(np.arange(len(sizes)), counts)
    within = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    place = starts[kind][group] + within
    none = [np.zeros(0, np.int64)]
    chosen, rejected = (np.concatenate(none + [table[side] for table in tables])[place] for side in (0, 1))
    return PairIndex(group, chosen, rejected)


def group_sizes(groups: pa.RecordBatch) -> Places:
    """How many responses each group has."""
    return np.asarray(pc.list_value_length(groups.column("responses")), dtype=np.int64)


def response_texts(groups: pa.RecordBatch) -> pa.StringArray:
    """The texts of all responses, best to worst, group by group."""
    return pc.struct_field(pc.list_flatten(groups.column("responses")), "text")


def text_places(groups: pa.RecordBatch, index: PairIndex) -> tuple[Places, Places]:
    """Where in ``response_texts`` the chosen and the rejected text of each pair stand."""
    sizes = group_sizes(groups)
    first = (np.cumsum(sizes) - sizes)[index.group]
    return first + index.chosen, first + index.rejected


def trl_pairs(groups: pa.RecordBatch, which: Which) -> pa.Table:
    """The pairs as TRL's conversational preference rows, one row a pair (``TRL_SCHEMA``)."""
    index = pair_index(group_sizes(groups), which)
    texts = response_texts(groups)
    chosen, rejected = text_places(groups, index)
    columns = {
        "prompt": _prompts(groups, index.group),
        "chosen": _answers(_once(texts, chosen)),
        "rejected": _answers(_once(texts, rejected)),
        "group_id": _once(groups.column("id"), index.group),
        "configuration": _once(groups.column("configuration"), index.group),
        "rank_chosen": pa.array(index.chosen, pa.int32()),
        "rank_rejected": pa.array(index.rejected, pa.int32()),
    }
    return pa.table(columns, schema=TRL_SCHEMA)


def json_lines(groups: pa.RecordBatch, which: Which) -> Iterator[str]:
    """The pairs as lines of the released C²-SYN file: ``prompt``, ``chosen`` and ``rejected`` as plain strings."""
    index = pair_index(group_sizes(groups), which)
    prompts, texts = (_quoted(column) for column in (groups.column("prompt"), response_texts(groups)))
    chosen, rejected = text_places(groups, index)
    for prompt, better, worse in zip(index.group.tolist(), chosen.tolist(), rejected.tolist(), strict=True):
        yield f'{{"prompt": {prompts[prompt]}, "chosen": {texts[better]}, "rejected": {texts[worse]}}}\n'


def _quoted(texts: pa.StringArray) -> list[str]:
    return [json.dumps(text, ensure_ascii=False) for text in texts.to_pylist()]


def _once(texts: pa.StringArray, places: Places) -> pa.DictionaryArray:
    """The texts at ``places``, each distinct one stored once: Parquet takes no dictionary with repetitions."""
    used, at = np.unique(places, return_inverse=True)
    found = texts.take(pa.array(used)).dictionary_encode()
    return pa.DictionaryArray.from_arrays(found.indices.take(pa.array(at)), found.dictionary)


def _answers(contents: pa.DictionaryArray) -> pa.ListArray:
    """One assistant message for each text."""
    roles = np.zeros(len(contents), np.int32)
    return _message_lists(np.arange(len(contents) + 1), roles, ("assistant",), contents)


def _prompts(groups: pa.RecordBatch, group: Places) -> pa.ListArray:
    """The messages before the answer, for each pair: the system's where its group has one, then the user's."""
    system, prompt = groups.column("system"), groups.column("prompt")
    has_system = np.asarray(system.is_valid())[group]
    ends = np.cumsum(1 + has_system, dtype=np.int64)
    roles = np.ones(int(ends[-1]) if len(ends) else 0, np.int32)
    places = np.empty(len(roles), np.int64)
    places[ends - 1] = len(system) + group
    systems = ends[has_system] - 2
    roles[systems], places[systems] = 0, group[has_system]
    contents = _once(pa.concat_arrays([system, prompt]), places)
    return _message_lists(np.concatenate([[0], ends]), roles, ("system", "user"), contents)


def _message_lists(
    offsets: Places, roles: NDArray[np.int32], names: tuple[str, ...], contents: pa.DictionaryArray
) -> pa.ListArray:
    role = pa.DictionaryArray.from_arrays(pa.array(roles), pa.array(names))
    messages = pa.StructArray.from_arrays([role, contents], names=["role", "content"])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), messages)
