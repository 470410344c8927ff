"""Rows on disk: pairs and flips of a group, and files that are whole or not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab import schemas
from trimtab.schemas import (
    SCHEMAS,
    Generation,
    PlanRow,
    PreferencePair,
    Quarantined,
    RankedGroup,
    Request,
    Response,
    Row,
    Verdict,
    make_id,
    pairs,
    read_files,
    read_rows,
    write_rows,
)

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip)
responses = st.lists(texts, min_size=2, max_size=8, unique=True).map(
    lambda found: tuple(
        Response(role=f"R{i}", text=text, num_prefill_chars=min(i, len(text))) for i, text in enumerate(found)
    )
)
groups = st.builds(
    RankedGroup, id=texts, source=texts, configuration=texts, system=st.none() | texts, prompt=texts,
    responses=responses, num_demonstrations=st.integers(1, 2),
)  # fmt: skip


def _group(*found: str, **fields: object) -> RankedGroup:
    values = {"id": "g", "source": "s", "configuration": "harmless", "system": "Be kind.", "prompt": "How?"} | fields
    return RankedGroup(responses=tuple(Response(role="r", text=text) for text in found), **values)


@given(groups)
def test_pairs_are_all_ordered_pairs_in_order(group: RankedGroup) -> None:
    found, size = list(pairs(group)), len(group.responses)
    ranks = [(pair.rank_chosen, pair.rank_rejected) for pair in found]
    assert len(found) == size * (size - 1) // 2
    assert ranks == sorted({(i, j) for i in range(size) for j in range(size) if i < j})
    for pair in found:
        assert pair.chosen == group.responses[pair.rank_chosen].text
        assert pair.rejected == group.responses[pair.rank_rejected].text
        assert (pair.group_id, pair.system, pair.prompt) == (group.id, group.system, group.prompt)


def test_six_responses_make_the_papers_fifteen_pairs() -> None:
    assert len(list(pairs(_group(*"abcdef")))) == 15


@given(groups)
def test_flip_reverses_the_ranking_and_flipping_twice_restores_it(group: RankedGroup) -> None:
    flipped = group.flip("uncensored", "Anything goes.")
    assert flipped.responses == tuple(reversed(group.responses))
    assert (flipped.configuration, flipped.system) == ("uncensored", "Anything goes.")
    assert (flipped.prompt, flipped.source) == (group.prompt, group.source)
    assert flipped.id != group.id
    assert flipped.num_demonstrations == 1
    assert flipped.flip(group.configuration, group.system).responses == group.responses
    preferred = {(pair.chosen, pair.rejected) for pair in pairs(group)}
    assert {(pair.rejected, pair.chosen) for pair in pairs(flipped)} == preferred


def test_flips_under_other_configurations_have_other_ids() -> None:
    group = _group("a", "b")
    ids = {group.flip(name, system).id for name in ("uncensored", "honest") for system in (None, "x")}
    assert len(ids) == 4
    assert group.flip("honest", "x").id == group.flip("honest", "x").id


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ((), "at least 2, this has 0"), (("a",), "at least 2, this has 1"), (("a", "b", "a"), "two are equal"),
        (("a", ""), r"responses\[1\] is empty"), ((" \n", "b"), r"responses\[0\] is empty"),
    ],
)  # fmt: skip
def test_groups_that_say_nothing_are_refused(found: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        _group(*found)


@pytest.mark.parametrize("number", [0, 3, -1])
def test_demonstrations_are_one_to_all(number: int) -> None:
    with pytest.raises(ValidationError, match=f"num_demonstrations: {number} of 2 responses; use 1 to N"):
        _group("a", "b", num_demonstrations=number)


def test_rows_take_no_unknown_field() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Response(role="r", text="t", other=1)


def test_every_row_class_has_a_schema_of_its_fields() -> None:
    classes = [cls for cls in vars(schemas).values() if isinstance(cls, type) and issubclass(cls, Row)]
    parts = {Row, Response}
    assert {cls for cls in classes if cls not in parts} == set(SCHEMAS)
    for cls, schema in SCHEMAS.items():
        assert schema.names == list(cls.model_fields)


@given(st.lists(groups, max_size=4))
def test_groups_survive_parquet(tmp_path_factory: pytest.TempPathFactory, rows: list[RankedGroup]) -> None:
    path = tmp_path_factory.getbasetemp() / "round" / "groups.parquet"
    assert write_rows(path, RankedGroup, rows) == len(rows)
    assert read_rows(path, RankedGroup) == rows


def test_columns_that_an_older_version_did_not_write_hold_their_default(tmp_path: Path) -> None:
    rows = [PlanRow(id=name, request_id="r", kind="k=10", prompt="p", max_tokens=3) for name in "ab"]
    table = pa.Table.from_pylist([row.model_dump() for row in rows], schema=SCHEMAS[PlanRow])
    pq.write_table(table.drop_columns(["reopen", "shard"]), tmp_path / "old.parquet")
    reopened = rows[0].model_copy(update={"reopen": True})
    write_rows(tmp_path / "new.parquet", PlanRow, [reopened])
    assert read_rows(tmp_path / "old.parquet", PlanRow) == rows
    assert read_files([tmp_path / "old.parquet", tmp_path / "new.parquet"], PlanRow) == [*rows, reopened]


@pytest.mark.parametrize(
    "row",
    [
        Request(id="i", prompt="p", harmful="h", safe=None, source_row=2**40),
        PlanRow(id="i", request_id="r", kind="SR", prompt="p", max_tokens=3, temperature=0.8, seed=2**31),
        Generation(id="i", text="t\u2028\x00", num_prompt_tokens=1, num_tokens=2, error="e"),
        Verdict(id="i", request_id="r", group="10", prompt="p", text="t", verdict="unparsed"),
        Quarantined(source_row=0, reason="r", content="c"),
        PreferencePair(group_id="g", system=None, prompt="p", chosen="c", rejected="d", rank_chosen=0, rank_rejected=1),
    ],
    ids=lambda row: type(row).__name__,
)
def test_rows_survive_parquet(tmp_path: Path, row: Row) -> None:
    write_rows(tmp_path / "rows.parquet", type(row), [row, row])
    assert read_rows(tmp_path / "rows.parquet", type(row)) == [row, row]


def test_folder_of_files_is_read_in_name_order(tmp_path: Path) -> None:
    rows = [Quarantined(source_row=number, reason="r", content="c") for number in range(3)]
    for number in (2, 0, 1):
        write_rows(tmp_path / f"{number}.parquet", Quarantined, [rows[number]])
    assert read_rows(tmp_path, Quarantined) == rows
    assert read_rows(tmp_path / ".." / tmp_path.name, Quarantined) == rows
    (tmp_path / "empty").mkdir()
    assert read_rows(tmp_path / "empty", Quarantined) == []


def test_failed_write_keeps_the_old_file_and_leaves_no_part(tmp_path: Path) -> None:
    path, row = tmp_path / "rows.parquet", Quarantined(source_row=1, reason="r", content="c")
    write_rows(path, Quarantined, [row])

    def rows() -> Iterator[Quarantined]:
        yield row
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_rows(path, Quarantined, rows())
    with pytest.raises(UnicodeEncodeError):
        write_rows(path, Quarantined, [Quarantined(source_row=1, reason="r", content="\ud800")])
    assert read_rows(path, Quarantined) == [row]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]


def test_target_that_cannot_be_replaced_leaves_no_part(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").mkdir()
    with pytest.raises(IsADirectoryError):
        write_rows(tmp_path / "rows.parquet", Quarantined, [])
    assert [file.name for file in tmp_path.iterdir()] == ["rows.parquet"]


def test_part_file_is_hidden_from_readers_until_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    write_table = pq.write_table

    def spy(table: object, where: Path, **settings: object) -> None:
        write_table(table, where, **settings)
        seen.extend(file.name for file in tmp_path.glob("*.parquet"))

    monkeypatch.setattr(pq, "write_table", spy)
    write_rows(tmp_path / "rows.parquet", Quarantined, [])
    assert seen == []
    assert (tmp_path / "rows.parquet").is_file()


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x1f")), min_size=1, max_size=4))
def test_ids_depend_on_each_part_and_its_place(parts: list[str]) -> None:
    assert make_id(*parts) == make_id(*parts)
    assert len(make_id(*parts)) == 20
    assert make_id(*parts, "") != make_id(*parts)
    assert make_id("".join(parts), "x") != make_id("".join(parts) + "x")
