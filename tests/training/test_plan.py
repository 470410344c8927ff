"""The order of groups: a group and its flips side by side, seeded, another one each epoch."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from trimtab.training.plan import order

sources = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30)


@given(sources=sources, epoch=st.integers(0, 5), seed=st.integers(0, 5))
def test_order_is_a_permutation_with_the_groups_of_a_source_in_a_row(sources: list[str], epoch: int, seed: int) -> None:
    ids = [f"{source}{number}" for number, source in enumerate(sources)]
    drawn = order(ids, sources, epoch, seed)
    assert sorted(drawn) == sorted(ids)
    runs = [drawn[0][0], *(now[0] for before, now in pairwise(drawn) if before[0] != now[0])]
    assert len(runs) == len(set(sources))


def test_group_and_its_flip_are_neighbours_however_far_apart_they_were_written() -> None:
    names = [f"s{number:02}" for number in range(20)]
    ids = [*(f"{name}/plain" for name in names), *(f"{name}/flip" for name in names)]
    drawn = order(ids, names * 2, epoch=0, seed=0)
    for first, second in zip(drawn[::2], drawn[1::2], strict=True):
        assert (first.split("/"), second.split("/")) == ([first[:3], "plain"], [first[:3], "flip"])


def test_order_is_seeded_and_changes_with_epoch_and_seed() -> None:
    names = [f"s{number:02}" for number in range(20)]
    drawn = {(epoch, seed): order(names, names, epoch, seed) for epoch in range(3) for seed in range(3)}
    assert len({tuple(found) for found in drawn.values()}) == 9
    assert drawn[(1, 2)] == order(names, names, 1, 2)
    assert drawn[(0, 0)] != names


def test_order_of_sources_does_not_depend_on_the_order_of_the_file() -> None:
    names = [f"s{number:02}" for number in range(20)]
    assert order(names, names, 1, 2) == order(names[::-1], names[::-1], 1, 2)
