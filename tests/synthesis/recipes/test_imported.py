"""Published preference rows as groups of two: CST, PKU-SafeRLHF and TRL's forms."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.config import InputError, load
from trimtab.safety import SafetyConfig
from trimtab.schemas import RankedGroup, pairs
from trimtab.synthesis.recipes.imported import Imported, ImportedRecipe, read, read_groups
from trimtab.synthesis.recipes.imported_formats import COLUMNS, shared_text

ROW = {"system": "Be kind.", "prompt": "What is true?", "chosen": "This.", "rejected": "That.", "task": "truth"}
PKU = {"prompt": "How do I skip school?", "response_0": "Say you are ill.", "response_1": "Talk to your teacher.",
       "is_response_0_safe": False, "is_response_1_safe": True, "safer_response_id": 1}  # fmt: skip
HARMLESS, UNCENSORED = (SafetyConfig(preset=preset).render() for preset in ("harmless", "uncensored"))
USER, CHOSEN, REJECTED = (
    {"role": role, "content": text} for role, text in (("user", "Hi?"), ("assistant", "Yes."), ("assistant", "No."))
)
SYSTEM = {"role": "system", "content": "Be kind."}


def _recipe(tmp_path: Path, rows: list[Any], share: float = 0.01, **fields: Any) -> ImportedRecipe:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return ImportedRecipe(data=path, max_bad_share=share, **fields)


def _read(tmp_path: Path, *rows: Any, **fields: Any) -> Imported:
    return read(_recipe(tmp_path, list(rows), **fields))


def _texts(group: RankedGroup) -> tuple[Any, ...]:
    return group.system, group.prompt, *(response.text for response in group.responses)


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
    assert [r.text for r in groups[1].responses] == [r.text for r in groups[0].responses[::-1]]
    assert len({group.id for group in groups}) == 3


@pytest.mark.parametrize("system", [" ", None])
def test_empty_system_is_none_and_task_may_be_missing(tmp_path: Path, system: str | None) -> None:
    row = {name: value for name, value in ROW.items() if name != "task"} | {"system": system}
    (group,), _ = read_groups(_recipe(tmp_path, [row]))
    assert (group.system, group.configuration) == (None, "imported")
    (group,), _ = read_groups(_recipe(tmp_path, [row], configuration="honest"))
    assert (group.system, group.configuration) == (SafetyConfig(preset="honest").render(), "honest")


def test_rows_system_prompt_stands_whatever_the_configuration(tmp_path: Path) -> None:
    for configuration in (None, "honest"):
        (group,), _ = read_groups(_recipe(tmp_path, [ROW, ROW | {"prompt": " "}], 0.5, configuration=configuration))
        assert (group.system, group.configuration) == ("Be kind.", "truth")


CST_BAD = [
    *(({k: v for k, v in ROW.items() if k != field}, f"field {field} is missing or not text")
      for field in COLUMNS["cst"]),
    (ROW | {"chosen": 3}, "field chosen is missing or not text"), (ROW | {"system": 3}, "field system is missing or"),
    (ROW | {"chosen": "That. "}, "two are equal"), (ROW | {"rejected": ""}, r"responses\[1\] is empty"),
    (ROW | {"prompt": "\n"}, "field prompt is empty"),
    (ROW | {"chosen": "\ud800"}, "field chosen is not valid Unicode"),
    ("text", "is not a JSON object"), (None, "is not a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), CST_BAD)
def test_bad_row_among_many_is_quarantined_and_alone_is_refused(tmp_path: Path, row: Any, reason: str) -> None:
    rows: list[Any] = [ROW | {"prompt": f"How {number}?"} for number in range(110)]
    groups, bad = read_groups(_recipe(tmp_path, [*rows, row]))
    assert len(groups) == 110
    assert [found.source_row for found in bad] == [110]
    with pytest.raises(InputError, match=rf"^data: .*: 1 of 2 rows are bad \(row 2: .*{reason}"):
        read_groups(_recipe(tmp_path, [rows[0], row]))


def test_repeated_row_is_set_aside_and_is_not_bad(tmp_path: Path) -> None:
    found = _read(tmp_path, ROW, ROW, share=0)
    assert len(found.groups) == 1
    assert [(row.source_row, row.reason) for row in found.quarantined] == [(1, "is equal to an earlier row")]


def test_no_usable_row_is_refused_even_when_all_bad_rows_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no usable row; give rows with system, prompt, chosen, rejected"):
        _read(tmp_path, 1, share=1, format="cst")
    both = PKU | {"is_response_0_safe": True}
    with pytest.raises(InputError, match="usable row, 2 times both responses are safe; give rows with one safe"):
        _read(tmp_path, both, both, share=1)


def test_path_is_no_identity_and_the_rest_is(tmp_path: Path) -> None:
    assert _recipe(tmp_path, [ROW]).identity() == ImportedRecipe(data=Path("elsewhere")).identity()
    others: list[dict[str, Any]] = [{"format": "trl"}, {"configuration": "honest"}, {"flips": ["honest"]}]
    seen = [ImportedRecipe(data=Path("x"), **fields).identity() for fields in ({}, *others)]
    assert all(seen[i] != seen[j] for i in range(4) for j in range(i))


def test_pku_row_is_a_group_under_harmless_and_its_flip(tmp_path: Path) -> None:
    group, flip = _read(tmp_path, PKU).groups
    assert _texts(group) == (HARMLESS, PKU["prompt"], PKU["response_1"], PKU["response_0"])
    assert _texts(flip) == (UNCENSORED, PKU["prompt"], PKU["response_0"], PKU["response_1"])
    assert (group.configuration, flip.configuration) == ("harmless", "uncensored")
    assert group.source == flip.source
    assert group.id != flip.id


@pytest.mark.parametrize(
    ("fields", "systems"),
    [
        ({"flips": ()}, ["harmless"]), ({"flips": ("honest", "uncensored")}, ["harmless", "honest", "uncensored"]),
        ({"configuration": "honest"}, ["honest", "uncensored"]), ({"configuration": "uncensored"}, ["uncensored"]),
    ],
)  # fmt: skip
def test_pku_configuration_and_flips_can_be_chosen(tmp_path: Path, fields: Any, systems: list[str]) -> None:
    groups = _read(tmp_path, PKU, **fields).groups
    assert [group.configuration for group in groups] == systems
    assert [group.system for group in groups] == [SafetyConfig(preset=name).render() for name in systems]


def test_pku_rows_that_rank_nothing_are_skipped_and_counted_and_not_bad(tmp_path: Path) -> None:
    safe, unsafe = PKU | {"is_response_0_safe": True}, PKU | {"is_response_1_safe": False}
    found = _read(tmp_path, safe, PKU, unsafe, safe, share=0)
    assert found.skipped == {"both responses are safe": 2, "both responses are unsafe": 1}
    assert found.quarantined == []
    assert len(found.groups) == 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"is_response_0_safe": 0}, "field is_response_0_safe is missing or not true or false"),
        ({"is_response_1_safe": None}, "field is_response_1_safe is missing"),
        ({"response_0": " "}, r"responses\[1\] is empty"), ({"response_0": PKU["response_1"]}, "two are equal"),
        ({"response_1": ["x"]}, "field response_1 is missing or not text"), ({"prompt": ""}, "field prompt is empty"),
    ],
)  # fmt: skip
def test_bad_pku_row_is_quarantined(tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        _read(tmp_path, PKU, PKU | fields)
    found = _read(tmp_path, PKU, PKU | fields, share=0.5)
    assert [row.source_row for row in found.quarantined] == [1]


TRL_ROWS: list[dict[str, Any]] = [
    {"prompt": "Hi?", "chosen": " Yes. ", "rejected": " No."},
    {"chosen": "Hi? Yes.", "rejected": "Hi? No."},
    {"prompt": None, "chosen": "Hi? Yes.", "rejected": "Hi? No."},
    {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
    {"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
    {"prompt": "as text beside", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
]


@pytest.mark.parametrize("row", TRL_ROWS)
def test_every_form_of_a_trl_row_says_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    found = _read(tmp_path, row)
    assert found.format == "trl"
    assert [_texts(group) for group in found.groups] == [(None, "Hi?", "Yes.", "No.")]
    (group,) = _read(tmp_path, row, configuration="harmless").groups
    assert (group.system, group.configuration) == (HARMLESS, "harmless")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
        {"chosen": [SYSTEM, USER, CHOSEN], "rejected": [SYSTEM, USER, REJECTED]},
        {"system": "Be kind.", "prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
        {"system": "Be kind.", "chosen": "Hi? Yes.", "rejected": "Hi? No."},
    ],
)  # fmt: skip
def test_system_message_is_the_groups_system_prompt(tmp_path: Path, row: dict[str, Any]) -> None:
    found = _read(tmp_path, row, configuration="harmless", flips=("uncensored",))
    assert found.format == "trl"
    assert [_texts(group) for group in found.groups] == [
        ("Be kind.", "Hi?", "Yes.", "No."), (UNCENSORED, "Hi?", "No.", "Yes.")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [USER, CHOSEN, USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
         r"the prompt has 3 turns \(user, assistant, user\), and a ranked group holds one user turn"),
        ({"chosen": [USER, CHOSEN, USER, CHOSEN], "rejected": [USER, CHOSEN, USER, REJECTED]}, "prompt has 3 turns"),
        ({"prompt": [], "chosen": [CHOSEN], "rejected": [REJECTED]}, r"the prompt has 0 turns \(none\)"),
        ({"prompt": [CHOSEN], "chosen": [CHOSEN], "rejected": [REJECTED]}, r"the prompt has 1 turns \(assistant\)"),
        ({"prompt": [USER], "chosen": [CHOSEN, USER], "rejected": [REJECTED]},
         r"chosen has 2 turns behind the prompt \(assistant, user\), not one of the assistant"),
        ({"prompt": [USER], "chosen": [CHOSEN], "rejected": []}, r"rejected has 0 turns behind the prompt \(none\)"),
        ({"chosen": [USER, CHOSEN], "rejected": [USER, CHOSEN]}, "chosen and rejected are equal"),
        ({"chosen": "Hi?", "rejected": "Hi?"}, "chosen and rejected are equal"),
        ({"chosen": "Hi?", "rejected": "Hi? No."}, r"responses\[0\] is empty"),
        ({"chosen": "Yes.", "rejected": "No."}, "field prompt is empty"),
        ({"chosen": [USER, CHOSEN], "rejected": "No."}, "chosen is messages and rejected is text"),
        ({"chosen": 3, "rejected": "No."}, "field chosen is missing or neither text nor a list of messages"),
        ({"prompt": [USER], "chosen": "Yes.", "rejected": "No."}, "field prompt is missing or not text"),
        ({"prompt": [USER], "chosen": [{"role": "assistant", "content": [{"type": "image"}]}], "rejected": [REJECTED]},
         "chosen's content is missing or not text"),
        ({"prompt": ["Hi?"], "chosen": [CHOSEN], "rejected": [REJECTED]}, "prompt holds something that is no message"),
        ({"system": "A.", "prompt": [SYSTEM, USER], "chosen": [CHOSEN], "rejected": [REJECTED]}, "keep one"),
    ],
)  # fmt: skip
def test_bad_trl_row_is_quarantined_with_its_reason(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        _read(tmp_path, TRL_ROWS[0], row)
    found = _read(tmp_path, TRL_ROWS[0], row, share=0.5)
    assert [bad.source_row for bad in found.quarantined] == [1]
    assert len(found.groups) == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"), ("It is blue.", "It is black.", "It is"),
        ("Q?\n\nI can't.", "Q?\n\nI can.", "Q?\n\nI"), ("Q? No", "Q? Not", "Q?"), ("Q? No", "Q? No, thanks", "Q?"),
        ("Q? Yes", "Q? Yes but", "Q? Yes"), ("天空是蓝", "天空是绿", "天空是"), ("Yes.", "No.", ""),
    ],
)  # fmt: skip
def test_shared_beginning_ends_between_words(chosen: str, rejected: str, prompt: str) -> None:
    assert chosen[: shared_text(chosen, rejected)].strip() == prompt
    assert shared_text(chosen, rejected) == shared_text(rejected, chosen)


pieces = st.lists(st.sampled_from(["a", "b", "ab", " ", "\n", "é", "."]), max_size=12).map("".join)


@given(pieces, pieces, pieces)
def test_shared_beginning_is_the_longest_that_ends_between_words(start: str, one: str, two: str) -> None:
    chosen, rejected = start + one, start + two
    end = shared_text(chosen, rejected)
    longest = max(n for n in range(len(chosen) + 1) if chosen[:n] == rejected[:n])
    assert chosen[:end] == rejected[:end]
    if end < longest:  # went back to the beginning of the word that the two differ in
        assert chosen[end - 1].isspace()
        assert not any(map(str.isspace, chosen[end:longest]))
    else:
        goes_on = any(text[end:] and not text[end].isspace() for text in (chosen, rejected))
        assert not goes_on or len(chosen[:end].split()) < 2 or chosen[end - 1].isspace()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."), ("Q?\nA: Yes.", "Q?\nA: No."),
        ([USER, CHOSEN], [USER, REJECTED]), ([SYSTEM, USER, CHOSEN], [SYSTEM, USER, REJECTED]),
    ],
)  # fmt: skip
def test_implicit_prompt_is_trls(tmp_path: Path, chosen: Any, rejected: Any) -> None:
    from trl.data_utils import maybe_extract_prompt

    row = {"chosen": chosen, "rejected": rejected}
    ours = _read(tmp_path, row).groups
    theirs = _read(tmp_path, maybe_extract_prompt(row)).groups
    assert ours == theirs
    assert len(ours) == 1


def test_flips_that_the_set_holds_already_are_not_made_again(tmp_path: Path) -> None:
    row = ROW | {"system": HARMLESS}
    flip = ROW | {"system": UNCENSORED, "chosen": ROW["rejected"], "rejected": ROW["chosen"]}
    alone = row | {"prompt": "What else?"}
    groups = _read(tmp_path, row, alone, flip, flips=("uncensored",)).groups
    assert [(group.prompt, group.configuration) for group in groups] == [
        ("What is true?", "harmless"), ("What else?", "harmless"), ("What else?", "uncensored"),
        ("What is true?", "uncensored"),
    ]  # fmt: skip
    assert len(_read(tmp_path, row, alone, flip).groups) == 3


@pytest.mark.parametrize(
    ("rows", "form"),
    [
        ([ROW], "cst"), ([PKU], "pku"), ([TRL_ROWS[0]], "trl"), ([TRL_ROWS[4]], "trl"), ([3, {"x": 1}, PKU], "pku"),
        ([PKU | {"chosen": "a", "rejected": "b"}], "pku"), ([{"prompt": "?", "chosen": "a"}, ROW], "cst"),
    ],
)  # fmt: skip
def test_columns_of_the_first_row_that_fits_decide(tmp_path: Path, rows: list[Any], form: str) -> None:
    assert _read(tmp_path, *rows, share=1).format == form


def test_unknown_columns_are_named_with_what_each_format_needs(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _read(tmp_path, 3, {"question": "?", "answer": "!"})
    assert "no row has the columns of a known format (found: answer, question)" in str(caught.value)
    assert "trl: chosen, rejected" in str(caught.value)
    assert "cst: system, prompt, chosen, rejected" in str(caught.value)
    with pytest.raises(InputError, match=r"\(found: none\)"):
        _read(tmp_path, 3)


def test_parquet_of_messages_is_read_and_a_bad_row_may_hold_what_json_cannot(tmp_path: Path) -> None:
    rows = [
        {"prompt": [SYSTEM, USER], "chosen": [CHOSEN], "rejected": [REJECTED], "day": date(2024, 1, 2)},
        {"prompt": [USER, CHOSEN, USER], "chosen": [CHOSEN], "rejected": [REJECTED], "day": date(2024, 1, 3)},
    ]
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    found = read(ImportedRecipe(data=path, max_bad_share=0.5))
    assert [_texts(group) for group in found.groups] == [("Be kind.", "Hi?", "Yes.", "No.")]
    assert "2024-01-03" in found.quarantined[0].content


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"configuration": "wild"}, "unknown preset"), ({"flips": ["wild"]}, "unknown preset"),
        ({"flips": ["role_play"]}, "a persona is needed"), ({"flips": ["honest", "honest"]}, "named twice"),
        ({"configuration": "honest", "flips": ["honest"]}, "ranked both ways"),
    ],
)  # fmt: skip
def test_configurations_are_checked(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        ImportedRecipe(data=tmp_path, **fields)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"data": "rows.json", **fields}), encoding="utf-8")
    with pytest.raises(InputError, match=problem):
        load(ImportedRecipe, path)
