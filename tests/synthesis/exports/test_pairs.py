"""The vectorised pairs are the plain ones, whatever the groups."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_schemas import groups as any_group
from trimtab.schemas import SCHEMAS, PreferencePair, RankedGroup, Response, pairs
from trimtab.synthesis.exports.pairs import TRL_SCHEMA, Which, json_lines, pair_index, ranks, trl_pairs

KEPT: dict[Which, Callable[[int, int, int], bool]] = {
    "all": lambda i, j, size: i < j,
    "adjacent": lambda i, j, size: j == i + 1,
    "best_worst": lambda i, j, size: (i, j) == (0, size - 1),
}
some_groups = st.lists(any_group, max_size=6)
which_pairs = st.sampled_from(list(KEPT))


def _batch(groups: Sequence[RankedGroup]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([group.model_dump() for group in groups], schema=SCHEMAS[RankedGroup])


def _plain_pairs(groups: Sequence[RankedGroup], which: Which) -> Iterator[tuple[RankedGroup, PreferencePair]]:
    for group in groups:
        for pair in pairs(group):
            if KEPT[which](pair.rank_chosen, pair.rank_rejected, len(group.responses)):
                yield group, pair


def _trl_row(group: RankedGroup, pair: PreferencePair) -> dict[str, Any]:
    system = [] if pair.system is None else [{"role": "system", "content": pair.system}]
    return {
        "prompt": [*system, {"role": "user", "content": pair.prompt}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "group_id": pair.group_id, "configuration": group.configuration, "rank_chosen": pair.rank_chosen,
        "rank_rejected": pair.rank_rejected,
    }  # fmt: skip


@settings(max_examples=30)
@given(some_groups, which_pairs)
def test_trl_rows_are_the_plain_pairs(groups: list[RankedGroup], which: Which) -> None:
    table = trl_pairs(_batch(groups), which)
    assert table.schema.equals(TRL_SCHEMA)
    assert table.to_pylist() == [_trl_row(group, pair) for group, pair in _plain_pairs(groups, which)]


@settings(max_examples=30)
@given(some_groups, st.integers(0, 6))
def test_part_of_a_batch_gives_the_pairs_of_that_part(groups: list[RankedGroup], start: int) -> None:
    rows = trl_pairs(_batch(groups).slice(start), "all").to_pylist()
    assert rows == [_trl_row(group, pair) for group, pair in _plain_pairs(groups[start:], "all")]


@settings(max_examples=30)
@given(some_groups, which_pairs)
def test_each_distinct_text_stands_once(groups: list[RankedGroup], which: Which) -> None:
    """A dictionary with repetitions would be written to Parquet with wrong texts."""
    flips = [group.flip("uncensored", "Anything goes.") for group in groups]
    table = trl_pairs(_batch([*groups, *flips]), which)
    for name in ("prompt", "chosen", "rejected"):
        contents = table.column(name).combine_chunks().values.field("content")
        texts = contents.dictionary.to_pylist()
        assert len(texts) == len(set(texts))
        assert set(texts) == set(contents.to_pylist())


@settings(max_examples=30)
@given(some_groups, which_pairs)
def test_json_lines_are_the_plain_pairs(groups: list[RankedGroup], which: Which) -> None:
    lines = "".join(json_lines(_batch(groups), which))
    expected = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        for _, pair in _plain_pairs(groups, which)
    ]
    assert [json.loads(line) for line in lines.split("\n")[:-1]] == expected
    assert lines.count("\n") == len(expected)


def test_released_line_is_exact() -> None:
    responses = tuple(Response(role="r", text=text) for text in ('Say "no".', "Two\nlines – é"))
    group = RankedGroup(id="g", source="s", configuration="c", system="S", prompt="How?", responses=responses)
    (line,) = json_lines(_batch([group]), "all")
    assert line == '{"prompt": "How?", "chosen": "Say \\"no\\".", "rejected": "Two\\nlines – é"}\n'


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("all", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        ("adjacent", [(0, 1), (1, 2), (2, 3)]),
        ("best_worst", [(0, 3)]),
    ],
)
def test_ranks_of_four_responses(which: Which, expected: list[tuple[int, int]]) -> None:
    chosen, rejected = ranks(4, which)
    assert list(zip(chosen.tolist(), rejected.tolist(), strict=True)) == expected


def test_pairs_of_a_group_stay_together_and_groups_in_order() -> None:
    index = pair_index(np.array([3, 2, 3]), "all")
    assert index.group.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert index.chosen.tolist() == [0, 0, 1, 0, 0, 0, 1]
    assert index.rejected.tolist() == [1, 2, 2, 1, 1, 2, 2]
