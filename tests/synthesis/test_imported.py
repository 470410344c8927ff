"""Published CST rows (``system, prompt, chosen, rejected``) as groups of two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import InputError
from trimtab.schemas import pairs
from trimtab.synthesis.imported import FIELDS, ImportedRecipe, read_groups

ROW = {"system": "Be kind.", "prompt": "What is true?", "chosen": "This.", "rejected": "That.", "task": "truth"}


def _recipe(tmp_path: Path, rows: list[Any], share: float = 0.01) -> ImportedRecipe:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return ImportedRecipe(data=path, max_bad_share=share)


def test_row_becomes_one_group_whose_pair_is_the_row(tmp_path: Path) -> None:
    (group,), bad = read_groups(_recipe(tmp_path, [ROW]))
    assert bad == []
    (pair,) = pairs(group)
    assert (pair.system, pair.prompt, pair.chosen, pair.rejected) == ("Be kind.", "What is true?", "This.", "That.")
    assert (group.configuration, group.num_demonstrations) == ("truth", 1)


def test_row_and_its_exact_flip_share_their_source(tmp_path: Path) -> None:
    flip = ROW | {"system": "Be wild.", "chosen": ROW["rejected"], "rejected": ROW["chosen"]}
    other = ROW | {"prompt": "What else?"}
    groups, _ = read_groups(_recipe(tmp_path, [ROW, flip, other]))
    assert [group.system for group in groups] == ["Be kind.", "Be wild.", "Be kind."]
    assert groups[0].source == groups[1].source != groups[2].source
    assert groups[0].responses[::-1] != groups[0].responses
    assert [r.text for r in groups[1].responses] == [r.text for r in groups[0].responses[::-1]]
    assert len({group.id for group in groups}) == 3


def test_empty_system_is_none_and_task_may_be_missing(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "task"} | {"system": " "}
    (group,), _ = read_groups(_recipe(tmp_path, [row]))
    assert (group.system, group.configuration) == (None, "imported")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        *(({k: v for k, v in ROW.items() if k != field}, f"field {field} is missing or not text") for field in FIELDS),
        (ROW | {"chosen": 3}, "field chosen is missing or not text"),
        (ROW | {"chosen": "That. "}, "two are equal"),
        (ROW | {"rejected": ""}, r"responses\[1\] is empty"),
        ("text", "is not a JSON object"),
        (ROW | {"prompt": "How 0?"}, "is equal to an earlier row with prompt 'How 0\\?'"),
    ],
)  # fmt: skip
def test_bad_row_among_many_is_quarantined_and_alone_is_refused(tmp_path: Path, row: Any, reason: str) -> None:
    rows: list[Any] = [ROW | {"prompt": f"How {number}?"} for number in range(110)]
    groups, bad = read_groups(_recipe(tmp_path, [*rows, row]))
    assert len(groups) == 110
    assert [found.source_row for found in bad] == [110]
    with pytest.raises(InputError, match=rf"^data: .*: 1 of 2 rows are bad \(row 2: .*{reason}"):
        read_groups(_recipe(tmp_path, [rows[0], row]))


def test_no_usable_row_is_refused_even_when_all_bad_rows_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no usable row; give rows with system, prompt, chosen, rejected"):
        read_groups(_recipe(tmp_path, [1], share=1))


def test_path_is_no_identity(tmp_path: Path) -> None:
    assert _recipe(tmp_path, [ROW]).identity() == ImportedRecipe(data=Path("elsewhere")).identity()
