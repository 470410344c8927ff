"""Clusters of near-duplicate prompts: those of datasketch's own index, and none lost between two looks."""

from __future__ import annotations

import random

import pytest

from trimtab.near_duplicates import NUM_PERMUTATIONS, Sketches, normalize

WORDS = [f"word{number}" for number in range(30)]


def _prompts(seed: int) -> list[str]:
    """Families of prompts, of which some differ in up to four of twelve words."""
    rng = random.Random(seed)
    base = [rng.choices(WORDS, k=12) for _ in range(60)]
    made = [list(rng.choice(base)) for _ in range(180)]
    for words in made:
        for _ in range(rng.randint(0, 4)):
            words[rng.randrange(12)] = rng.choice(WORDS)
    return [" ".join(words) for words in [*base, *made]]


def _by_datasketch(prompts: list[str], threshold: float) -> list[set[str]]:
    """The clusters that MinHashLSH's queries connect, each as its normalized texts."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
    clusters: list[set[str]] = []
    for text in dict.fromkeys(map(normalize, prompts)):
        words = text.split()
        sketch = MinHash(num_perm=NUM_PERMUTATIONS)
        for pair in {" ".join(words[i : i + 2]) for i in range(max(1, len(words) - 1))}:
            sketch.update(pair.encode())
        near = {*index.query(sketch), text}
        index.insert(text, sketch)
        touched = [cluster for cluster in clusters if cluster & near]
        clusters = [*(cluster for cluster in clusters if cluster not in touched), near.union(*touched)]
    return clusters


@pytest.mark.parametrize("threshold", [0.6, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_datasketchs_index(seed: int, threshold: float) -> None:
    prompts = _prompts(seed)
    found: dict[int, set[str]] = {}
    for prompt, label in zip(prompts, Sketches().labels(prompts, threshold), strict=True):
        found.setdefault(label, set()).add(normalize(prompt))
    expected = _by_datasketch(prompts, threshold)
    assert len(expected) < len({normalize(prompt) for prompt in prompts})
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, expected))


def test_second_look_at_another_threshold_is_as_a_first_one() -> None:
    prompts, shared = _prompts(4), Sketches()
    shared.labels(prompts[:100], 0.6)
    assert shared.labels(prompts, 0.8) == Sketches().labels(prompts, 0.8)


def test_first_of_a_cluster_stands_for_it() -> None:
    prompts = ["How do I mend a red bicycle tyre at home?", "Something else entirely, please.",
               "how do I mend a RED bicycle tyre at home"]  # fmt: skip
    assert Sketches().first_places(prompts, 0.8) == [0, 1, 0]


def test_no_prompts_have_no_clusters() -> None:
    assert Sketches().labels([]) == []
