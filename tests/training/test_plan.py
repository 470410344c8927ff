"""The step plan: seeded, a group beside its flips, balanced by tokens, and worth the same for any number of workers."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.training.plan import Item, make_plan, order, read_plan, steps_of, write_plan

sources = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30)
items = st.lists(st.integers(1, 900), min_size=1, max_size=40).map(
    lambda sizes: [Item(f"g{n}", f"s{n // 2}", size) for n, size in enumerate(sizes)]
)


def _items(sources: list[str], weight: float = 1.0) -> list[Item]:
    return [Item(f"{source}{number}", source, 10, weight) for number, source in enumerate(sources)]


@given(sources=sources, epoch=st.integers(0, 5), seed=st.integers(0, 5))
def test_order_is_a_permutation_with_the_groups_of_a_source_in_a_row(sources: list[str], epoch: int, seed: int) -> None:
    drawn = order(_items(sources), epoch, seed)
    assert sorted(item.id for item in drawn) == sorted(item.id for item in _items(sources))
    runs = [drawn[0].source, *(now.source for before, now in pairwise(drawn) if before.source != now.source)]
    assert len(runs) == len(set(sources))


def test_order_is_seeded_and_changes_with_epoch_and_seed_but_not_with_the_file() -> None:
    made = _items([f"s{number:02}" for number in range(20)])
    drawn = {(epoch, seed): order(made, epoch, seed) for epoch in range(3) for seed in range(3)}
    assert len({tuple(found) for found in drawn.values()}) == 9
    assert drawn[(1, 2)] == order(made[::-1], 1, 2)
    assert drawn[(0, 0)] != made


def test_weights_are_passes_per_epoch_and_a_source_stays_whole() -> None:
    names = [f"s{number:03}" for number in range(400)] * 2
    twice, half = order(_items(names, 2), 0, 0), order(_items(names, 0.5), 0, 0)
    assert set(Counter(item.id for item in twice).values()) == {2}
    assert 0.4 < len(half) / len(names) < 0.6
    assert set(Counter(item.source for item in half).values()) == {2}
    assert {item.source for item in half} != {item.source for item in order(_items(names, 0.5), 1, 0)}
    mixed = order(_items(names, 1.5), 0, 0)
    assert {item.id for item in mixed} == {item.id for item in twice}
    assert 1.4 < len(mixed) / len(names) < 1.6


def test_part_of_an_epoch_is_part_of_its_groups() -> None:
    made = _items([f"s{number}" for number in range(20)])
    assert sum(map(len, steps_of(made, 1.5, 4, 0))) == 30
    assert [len(step) for step in steps_of(made, 1, 8, 0)] == [8, 8, 4]


@given(items=items, workers=st.integers(1, 4), per_step=st.integers(4, 9), limit=st.none() | st.integers(16, 4000))
def test_every_group_counts_once_and_a_step_is_the_mean_of_its_groups(
    items: list[Item], workers: int, per_step: int, limit: int | None
) -> None:
    steps = steps_of(items, 1, per_step, 0)
    plan, parts = make_plan(steps, workers, limit)
    assert [(f.step, f.part, f.worker) for f in plan] == [
        (step, part, worker) for step in range(len(steps)) for part in range(parts) for worker in range(workers)
    ]
    for number, step in enumerate(steps):
        own = [forward for forward in plan if forward.step == number]
        share = {i: forward.weight / (parts * workers) for forward in own if forward.weight for i in forward.group_ids}
        assert share == pytest.approx({item.id: 1 / len(step) for item in step})
        assert all(forward.group_ids for forward in own)
    sizes = {item.id: item.num_tokens for item in items}
    for forward in plan:
        assert forward.num_tokens == sum(sizes[group_id] for group_id in forward.group_ids)
        assert len(forward.group_ids) == 1 or (limit is not None and forward.num_tokens <= limit)


def test_groups_are_packed_up_to_the_limit_and_workers_are_balanced_by_tokens() -> None:
    step = [Item(f"g{n}", "s", size) for n, size in enumerate([100, 100, 100, 300, 300, 900])]
    plan, parts = make_plan([step], 2, 1000)
    assert parts == 1
    assert sorted(forward.num_tokens for forward in plan) == [900, 900]
    assert make_plan([step], 2, 899)[1] == 2, "a group that is too large alone doesn't unpack the others"
    assert make_plan([step], 2, 299)[1] == 3
    assert make_plan([step], 2, None)[1] == 3


def test_plan_is_the_same_after_a_round_trip(tmp_path: Path) -> None:
    plan, _ = make_plan([[Item("a", "s", 5), Item("b", "s", 7), Item("c", "t", 9)]], 2, None)
    write_plan(tmp_path / "plan.parquet", plan)
    assert read_plan(tmp_path / "plan.parquet") == plan
    write_plan(tmp_path / "none.parquet", make_plan([], 2, None)[0])
    assert read_plan(tmp_path / "none.parquet") == []
