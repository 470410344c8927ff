"""Prompts that say nearly the same: MinHash sketches of their word pairs, and the clusters that these form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from datasketch import MinHash

NEAR_DUPLICATE = 0.6
"""The likeness from which two prompts never stand on two sides of a split."""
NUM_PERMUTATIONS = 128


def normalize(prompt: str) -> str:
    """Lower case, letters and digits only, single spaces."""
    return " ".join(re.findall(r"\w+", prompt.lower()))


class Sketches:
    """MinHash sketches, each made once: those who look at the same prompts twice, at two thresholds, share one object.

    A threshold is the Jaccard similarity of two prompts' word pairs from which they are near-duplicates.
    """

    def __init__(self) -> None:
        self._made: dict[str, MinHash] = {}

    def first_places(self, prompts: Sequence[str], threshold: float) -> list[int]:
        """For each prompt the place of the first one of its cluster: its own where none before is like it."""
        first: dict[int, int] = {}
        return [first.setdefault(label, place) for place, label in enumerate(self.labels(prompts, threshold))]

    def labels(self, prompts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> list[int]:
        """A cluster label for each prompt: near-duplicates are connected, and those of near-duplicates with them."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        if not prompts:
            return []
        distinct: dict[str, int] = {}
        numbers = [distinct.setdefault(normalize(prompt), len(distinct)) for prompt in prompts]
        self._make(text for text in distinct if text not in self._made)
        places = _joined([self._made[text] for text in distinct], threshold)
        graph = coo_matrix(([1] * places.shape[1], tuple(places)), shape=(len(distinct), len(distinct)))
        labels = connected_components(graph, directed=False)[1]
        return [int(labels[number]) for number in numbers]

    def _make(self, texts: Iterable[str]) -> None:
        """Sketch normalized texts; in a row they share one draw of the permutations, most of the work."""
        from datasketch import MinHash

        new = list(texts)
        shingles = ([shingle.encode() for shingle in _shingles(text)] for text in new)
        self._made.update(zip(new, MinHash.generator(shingles, num_perm=NUM_PERMUTATIONS), strict=True))


def _joined(sketches: Sequence[MinHash], threshold: float) -> np.ndarray:
    """Places of neighbours in every bucket of ``MinHashLSH``, of shape (2, number of them).

    Its bands, but sorted instead of put into dictionaries one by one: a tenth of the time.
    """
    import numpy as np
    from datasketch import MinHashLSH

    values = np.array([sketch.hashvalues for sketch in sketches])
    found = [np.empty((2, 0), dtype=np.intp)]
    for start, end in MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS).hashranges:
        order = np.lexsort(values[:, start:end].T)
        band = values[order, start:end]
        same = (band[1:] == band[:-1]).all(axis=1)
        found.append(np.stack([order[:-1][same], order[1:][same]]))
    return np.concatenate(found, axis=1)


def _shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[i : i + 2]) for i in range(max(1, len(words) - 1))}
