"""A ranked group as a token trie: each distinct token once, attention to ancestors only.

Pairwise DPO on N responses runs N·(N−1) sequences through the policy, though its loss needs only N
log-probabilities, and the responses share the prompt and (with one opener) growing prefixes. A trie
holds each shared token once: position = depth, a node attends to its ancestors and itself, and the
log-probability of a node's token is read at its parent. Several groups packed into one sequence are
a forest. Loss and gradient are those of the plain pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Forest:
    """One or more groups as one sequence of T nodes in depth-first order; M of them are scored response tokens.

    Attributes:
        token_ids: token of each node, shape ``[T]``.
        positions: depth of each node in its trie, shape ``[T]``.
        ends: one behind the last node below each node, shape ``[T]``: j is i or an ancestor of i
            exactly when ``j <= i < ends[j]``, which is all that a mask needs.
        scored: node index of each scored token, shape ``[M]``.
        parents: node whose output predicts it, shape ``[M]``.
        paths: for each group, for each response, the places in ``scored`` of its tokens, in order.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    ends: NDArray[np.int64]
    scored: NDArray[np.int64]
    parents: NDArray[np.int64]
    paths: list[list[NDArray[np.int64]]]

    @property
    def ancestors(self) -> NDArray[np.bool_]:
        """Whether node j is an ancestor of i or i itself, bool, shape ``[T, T]``."""
        node = np.arange(len(self.ends))
        return np.asarray((node[None] <= node[:, None]) & (node[:, None] < self.ends[None]))


class _Nodes:
    """Growing lists of nodes of a forest."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.children: list[dict[int, int]] = []

    def child(self, parent: int, token: int) -> int:
        """The node of ``token`` below ``parent`` (−1: a new root), made where it isn't there yet."""
        known = self.children[parent].get(token) if parent >= 0 else None
        if known is not None:
            return known
        self.tokens.append(token)
        self.parents.append(parent)
        self.children.append({})
        if parent >= 0:
            self.children[parent][token] = len(self.tokens) - 1
        return len(self.tokens) - 1


def num_nodes(prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> int:
    """Distinct tokens of a group's trie: what its forward costs. Linear in the tokens, no nodes are made."""
    ordered = sorted(map(tuple, responses))
    shared = sum(_shared(left, right) for left, right in pairwise(ordered))
    return len(prompt) + sum(map(len, ordered)) - shared


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def build_forest(groups: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> Forest:
    """Pack groups, each (prompt ids, the ids of its N responses), into one forest.

    Raises:
        ValueError: a prompt or a response has no token.
    """
    nodes, node_paths = _Nodes(), []
    for prompt, responses in groups:
        if not prompt or not all(responses):
            raise ValueError("a group needs a prompt and responses of at least one token each")
        node = -1
        for token in prompt:
            node = nodes.child(node, token)
        node_paths.append([_insert(nodes, node, response) for response in responses])
    order, ends, depth = _depth_first(nodes)
    place_of_node = np.empty(len(order), dtype=np.int64)
    place_of_node[order] = np.arange(len(order))
    paths = [[place_of_node[path] for path in of_group] for of_group in node_paths]
    scored = np.unique(np.concatenate([path for of_group in paths for path in of_group]))
    parents = np.asarray(nodes.parents, dtype=np.int64)[order]
    place = np.full(len(order), -1, dtype=np.int64)
    place[scored] = np.arange(len(scored))
    return Forest(
        token_ids=np.asarray(nodes.tokens, dtype=np.int64)[order], positions=depth, ends=ends, scored=scored,
        parents=place_of_node[parents[scored]], paths=[[place[path] for path in of_group] for of_group in paths],
    )  # fmt: skip


def _insert(nodes: _Nodes, node: int, response: Sequence[int]) -> list[int]:
    path = []
    for token in response:
        node = nodes.child(node, token)
        path.append(node)
    return path


def _depth_first(nodes: _Nodes) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Depth-first order of the nodes (a new place -> its node), the ends of their subtrees, and their depths."""
    size = np.ones(len(nodes.tokens), dtype=np.int64)
    for node in range(len(size) - 1, -1, -1):  # a parent is always made before its children
        if nodes.parents[node] >= 0:
            size[nodes.parents[node]] += size[node]
    place, depth = np.empty_like(size), np.zeros_like(size)
    taken = np.ones_like(size)  # places of a node's subtree that are given away, its own first
    next_root = 0
    for node, parent in enumerate(nodes.parents):
        if parent < 0:
            place[node], next_root = next_root, next_root + size[node]
        else:
            place[node], depth[node] = place[parent] + taken[parent], depth[parent] + 1
            taken[parent] += size[node]
    order = np.argsort(place)
    return order, (place + size)[order], depth[order]
