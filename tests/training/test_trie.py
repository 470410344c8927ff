"""Token tries against brute force: a node is a distinct prefix, its ancestors are its prefixes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.training.trie import build_forest

Group = tuple[list[int], list[list[int]]]
tokens = st.integers(0, 3)
groups = st.tuples(
    st.lists(tokens, min_size=1, max_size=5),
    st.lists(st.lists(tokens, min_size=1, max_size=7), min_size=1, max_size=5),
)
forests = st.lists(groups, min_size=1, max_size=3)


def _prefixes(group: Group) -> set[tuple[int, ...]]:
    prompt, responses = group
    whole = [tuple(prompt + response) for response in responses]
    return {sequence[:end] for sequence in whole for end in range(1, len(sequence) + 1)}


@settings(max_examples=60)
@given(forests)
def test_nodes_are_the_distinct_prefixes_of_each_group(forest_of: list[Group]) -> None:
    forest = build_forest(forest_of)
    found = [tuple(forest.token_ids[row]) for row in forest.ancestors]  # ancestors stand in order of depth
    expected = [(number, prefix) for number, group in enumerate(forest_of) for prefix in _prefixes(group)]
    assert sorted(found) == sorted(prefix for _, prefix in expected)
    assert len(forest.token_ids) == len(expected)
    assert [len(prefix) - 1 for prefix in found] == forest.positions.tolist()


@settings(max_examples=60)
@given(forests)
def test_attention_looks_back_along_one_path_of_one_group(forest_of: list[Group]) -> None:
    forest = build_forest(forest_of)
    size = len(forest.token_ids)
    assert forest.ancestors.shape == (size, size)
    assert not np.triu(forest.ancestors, 1).any()
    for node in range(size):
        seen = np.flatnonzero(forest.ancestors[node])
        assert seen[-1] == node
        assert forest.positions[seen].tolist() == list(range(len(seen)))
        for ancestor in seen:
            assert not (forest.ancestors[ancestor] & ~forest.ancestors[node]).any()
    bounds = np.cumsum([0, *(len(_prefixes(group)) for group in forest_of)])
    for low, high in pairwise(bounds):
        assert not forest.ancestors[low:high, :low].any()


@settings(max_examples=60)
@given(forests)
def test_paths_spell_the_responses_and_parents_predict_them(forest_of: list[Group]) -> None:
    forest = build_forest(forest_of)
    for (prompt, responses), paths in zip(forest_of, forest.paths, strict=True):
        for response, path in zip(responses, paths, strict=True):
            nodes = forest.scored[path]
            assert forest.token_ids[nodes].tolist() == response
            assert forest.positions[nodes].tolist() == list(range(len(prompt), len(prompt) + len(response)))
            for place, node in zip(path, nodes, strict=True):
                parent = forest.parents[place]
                assert forest.ancestors[node, parent]
                assert forest.positions[parent] == forest.positions[node] - 1
    used = np.unique(np.concatenate([path for paths in forest.paths for path in paths]))
    assert used.tolist() == list(range(len(forest.scored)))
    assert len(forest.parents) == len(forest.scored) == len(set(forest.scored.tolist()))


def test_shared_starts_are_stored_once() -> None:
    forest = build_forest([([1, 2], [[3, 4, 5], [3, 4, 6], [3]])])
    assert sorted(forest.token_ids.tolist()) == [1, 2, 3, 4, 5, 6]
    assert forest.paths[0][0][:2].tolist() == forest.paths[0][1][:2].tolist()
    assert len(forest.scored) == 4


def test_equal_groups_are_not_merged() -> None:
    group = ([1, 2], [[3], [4]])
    assert len(build_forest([group, group]).token_ids) == 2 * len(build_forest([group]).token_ids)


@pytest.mark.parametrize("group", [([], [[1]]), ([1], [[2], []])])
def test_empty_parts_are_refused(group: Group) -> None:
    with pytest.raises(ValueError, match="a prompt and responses of at least one token each"):
        build_forest([group])
