"""The dataset card and what it counts: everything a reader must know, and no path of the machine that wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.synthesis.test_export import (
    HARMLESS,
    UNCENSORED,
    export,
    make_group,
    synthesized,
    two_shards,
    with_flips,
)
from trimtab.schemas import group_file
from trimtab.synthesis.exports.dataset_card import fenced, size_category
from trimtab.synthesis.exports.survey import Mean, survey
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe


def _card(groups: Path, **values: Any) -> str:
    output, _ = export(groups, "dataset", **values)
    return (output / "dataset" / "README.md").read_text(encoding="utf-8")


def test_card_says_what_it_must(tmp_path: Path) -> None:
    recipe = CourseCorrectionRecipe.model_validate(
        {"source": {"data": tmp_path / "secret" / "rows.jsonl"}, "openers": tmp_path / "secret" / "own.txt", "seed": 41}
    )
    source = synthesized(tmp_path / "groups", with_flips(make_group(0), make_group(1, size=4)), recipe=recipe)
    card = _card(tmp_path / "groups", license="cc-by-nc-4.0")
    for expected in (
        "18 preference pairs of 4 ranked groups", "| harmless | 2 | 9 |", "| uncensored | 2 | 9 |",
        f"\n{HARMLESS}\n", f"\n{UNCENSORED}\n", "rows.jsonl (fingerprint dddddddddddddddd)",
        "Tiny-Chat (fingerprint eeeeeeeeeeeeeeee)", f"fingerprint {source.fingerprint}", "7 rows were quarantined",
        "- Licence: cc-by-nc-4.0", "Content warning", "some of the chosen ones, contain harmful passages",
        "research use only", "DPOTrainer(", "load_dataset(", "seed: 41", "openers: own.txt",
    ):  # fmt: skip
        assert expected in card, expected
    assert str(tmp_path) not in card
    assert "/models" not in card


def test_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    card = _card(two_shards(tmp_path / "groups"))
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert head["size_categories"] == ["n<1K"]
    assert "not-for-all-audiences" in head["tags"]
    assert "license" not in head
    assert "not stated: the licence of the source and of the generating model apply" in card


@pytest.mark.parametrize(
    ("recipe", "inputs", "requests", "model"),
    [
        ({"type": "imported", "data": "/x/set.json"}, {"data": "f0"}, "set.json (fingerprint f0)", "none, "),
        ({}, {"data": "f0", "model": "f1"}, "the sample shipped with trimtab (fingerprint f0)", "Tiny-Chat ("),
        ({"type": "flip", "groups": "/x"}, {"groups": "f2"}, "other ranked groups, fingerprints f2", "none, "),
    ],
    ids=["imported", "sample", "flip"],
)  # fmt: skip
def test_card_says_where_prompts_and_responses_came_from(
    tmp_path: Path, recipe: dict[str, Any], inputs: dict[str, str], requests: str, model: str
) -> None:
    synthesized(tmp_path / "groups", [make_group(0)], inputs=inputs, recipe=recipe or {"type": "course_correction"})
    card = _card(tmp_path / "groups")
    assert f"- Requests: {requests}" in card
    assert f"- Generating model: {model}" in card


def test_card_shows_odd_and_missing_system_prompts_word_for_word(tmp_path: Path) -> None:
    odd = "Answer like this:\n```\n# no heading\n```\n{{ 7 * 7 }} <b>"
    plain = make_group(1).model_copy(update={"system": None, "configuration": "none"})
    synthesized(tmp_path / "groups", [make_group(0).model_copy(update={"system": odd}), plain])
    card = _card(tmp_path / "groups")
    assert f"\n````text\n{odd}\n````\n" in card
    assert "**none** (1 group): no system message" in card


def test_card_of_many_personas_shows_some(tmp_path: Path) -> None:
    made = [make_group(number).model_copy(update={"system": f"You are person {number}."}) for number in range(12)]
    synthesized(tmp_path / "groups", made)
    card = _card(tmp_path / "groups")
    assert card.count("You are person ") == 10
    assert "**harmless**: 2 more" in card


def test_lengths_are_means_over_the_pairs(tmp_path: Path) -> None:
    synthesized(tmp_path / "groups", [make_group(0, size=3, words=10)])
    found = survey([group_file(tmp_path / "groups")], None, "all")
    assert found.num_chars["chosen"].value == pytest.approx((89 + 89 + 98) / 3)
    assert found.num_chars["rejected"].value == pytest.approx((98 + 107 + 107) / 3)
    assert found.num_chars["prompt"].value == len("How 0?")
    assert {role: mean.value for role, mean in found.role_chars.items()} == {"R0": 89, "R1": 98, "R2": 107}
    assert Mean().value is None


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (750_000, "100K<n<1M"), (10**9, "n>1B")],
)
def test_size_category(num_rows: int, expected: str) -> None:
    assert size_category(num_rows) == expected


def test_fence_is_longer_than_any_inside() -> None:
    assert fenced("a") == "```text\na\n```"
    assert fenced("a ````` b", "yaml") == "``````yaml\na ````` b\n``````"
