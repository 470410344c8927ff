"""Stored groups are read back by id; what training sees of them adds up over workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.training.metrics import Seen
from trimtab.training.store import BATCH, GroupStore, TokenizedGroup, write_groups


def _group(number: int) -> TokenizedGroup:
    return TokenizedGroup(f"g{number}", [1, 2, number], [[3, number], [4]], [0, 1], 1)


def test_groups_are_read_by_id_over_several_batches(tmp_path: Path) -> None:
    groups = [_group(number) for number in range(BATCH * 2 + 3)]
    write_groups(tmp_path / "groups.arrow", iter(groups))
    store = GroupStore(tmp_path / "groups.arrow")
    assert len(store) == len(groups)
    assert store.ids == [group.id for group in groups]
    for number in (0, BATCH, BATCH * 2 + 2, 7):
        assert store[f"g{number}"] == _group(number)
    with pytest.raises(KeyError):
        store["absent"]


def test_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> object:
        yield _group(1)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_groups(tmp_path / "groups.arrow", broken())  # type: ignore[arg-type]
    assert not (tmp_path / "groups.arrow").exists()


def test_numbers_of_workers_add_up_to_those_of_one() -> None:
    groups = [(0.7, 2.0, [1.0, -1.0, 2.0]), (0.5, 3.0, [0.5]), (0.2, 1.0, [-3.0, 1.0, 1.0])]
    one, shares = Seen(), [Seen(), Seen()]
    for number, (loss, nll, margins) in enumerate(groups):
        for seen in (one, shares[number % 2]):
            seen.add(loss, nll, margins)
            seen.add_tokens(10)
    joined = Seen.joined(shares).means(by_gap=True)
    assert joined == pytest.approx(one.means(by_gap=True))
    assert joined == pytest.approx({
        "dpo_loss": 1.4 / 3, "nll": 2.0, "accuracy": 5 / 7, "margin": 1.5 / 7, "tokens": 30,
        "accuracy_gap_1": 4 / 5, "accuracy_gap_2": 1 / 2,
    })  # fmt: skip
    assert Seen().means() == {}
