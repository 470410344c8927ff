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

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Forest:
    """One or more groups as one sequence of T nodes; M of them are scored response tokens.

    Attributes:
        token_ids: token of each node, shape ``[T]``.
        positions: depth of each node in its trie, shape ``[T]``.
        ancestors: whether node j is an ancestor of i or i itself, bool, shape ``[T, T]``.
        scored: node index of each scored token, shape ``[M]``.
        parents: node whose output predicts it, shape ``[M]``.
        paths: for each group, for each response, the places in ``scored`` of its tokens, in order.
    """

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    ancestors: NDArray[np.bool_]
    scored: NDArray[np.int64]
    parents: NDArray[np.int64]
    paths: list[list[NDArray[np.int64]]]


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
    parents = np.asarray(nodes.parents, dtype=np.int64)
    ancestors, positions = _ancestors(parents)
    scored = np.unique(np.concatenate([np.asarray(path) for paths in node_paths for path in paths]))
    place = np.full(len(parents), -1, dtype=np.int64)
    place[scored] = np.arange(len(scored))
    return Forest(
        token_ids=np.asarray(nodes.tokens, dtype=np.int64), positions=positions, ancestors=ancestors, scored=scored,
        parents=parents[scored], paths=[[place[np.asarray(path)] for path in paths] for paths in node_paths],
    )  # fmt: skip


def _insert(nodes: _Nodes, node: int, response: Sequence[int]) -> list[int]:
    path = []
    for token in response:
        node = nodes.child(node, token)
        path.append(node)
    return path


def _ancestors(parents: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The ancestor matrix and the depths; a parent always stands before its children."""
    matrix = np.eye(len(parents), dtype=np.bool_)
    depth = np.zeros(len(parents), dtype=np.int64)
    for node, parent in enumerate(parents):
        if parent >= 0:
            matrix[node, : parent + 1] |= matrix[parent, : parent + 1]
            depth[node] = depth[parent] + 1
    return matrix, depth
