"""The export stage: the files of every format, resume, and bad input."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from trimtab.artifacts import RECORD, Outcome, Record, run_stage
from trimtab.config import InputError
from trimtab.safety import SafetyConfig
from trimtab.schemas import SCHEMAS, RankedGroup, Response, group_file, pairs, read_rows, write_rows
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.export import ExportConfig, run
from trimtab.synthesis.exports.survey import GROUPS_AT_ONCE

HARMLESS = SafetyConfig(preset="harmless").render()
UNCENSORED = SafetyConfig(preset="uncensored").render()
REDO = "run trimtab synthesize again, which redoes that part"


def make_group(number: int, size: int = 3, words: int = 1) -> RankedGroup:
    texts = [" ".join([f"text-{number}-{rank}"] * (words + rank)) for rank in range(size)]
    return RankedGroup(
        id=f"g{number}", source=f"s{number}", configuration="harmless", system=HARMLESS, prompt=f"How {number}?",
        responses=tuple(Response(role=f"R{rank}", text=text) for rank, text in enumerate(texts)),
    )  # fmt: skip


def with_flips(*groups: RankedGroup) -> list[RankedGroup]:
    return [made for group in groups for made in (group, group.flip("uncensored", UNCENSORED))]


def synthesized(
    folder: Path, *shards: list[RankedGroup], inputs: dict[str, str] | None = None, **config: Any
) -> Record:
    """A finished output of trimtab synthesize with these shards."""

    def work(output: Path) -> Outcome:
        num = sum(write_rows(group_file(output, shard), RankedGroup, some) for shard, some in enumerate(shards))
        return Outcome(counts={"groups": num, "quarantined": 7})

    settings = SynthesisConfig.model_validate({"output": folder, "model": "/models/Tiny-Chat", **config})
    return run_stage("synthesize", folder, settings, inputs or {"data": "d" * 16, "model": "e" * 16}, work)


def two_shards(folder: Path) -> Path:
    """An output of trimtab synthesize: groups of three and four responses under two configurations."""
    synthesized(folder, with_flips(make_group(0), make_group(1, size=4)), with_flips(make_group(2)))
    return folder


def export(groups: Path, *formats: str, **values: Any) -> tuple[Path, Record]:
    output = groups.parent / "out"
    config = {"output": output, "groups": groups, "formats": formats, **values}
    return output, run(ExportConfig.model_validate(config))


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """Two shards."""
    return two_shards(tmp_path / "groups")


def test_trl_rows_stand_in_one_file_a_shard(groups: Path) -> None:
    output, record = export(groups, "trl")
    assert files_of(output / "pairs") == ["00000.parquet", "00001.parquet"]
    for shard in (0, 1):
        rows = pq.read_table(output / "pairs" / f"{shard:05d}.parquet").to_pylist()
        expected = [pair for group in read_rows(group_file(groups, shard), RankedGroup) for pair in pairs(group)]
        assert [(row["group_id"], row["rank_chosen"], row["rank_rejected"]) for row in rows] == [
            (pair.group_id, pair.rank_chosen, pair.rank_rejected) for pair in expected
        ]
        for row, pair in zip(rows, expected, strict=True):
            assert row["prompt"] == [{"role": "system", "content": pair.system},
                                     {"role": "user", "content": pair.prompt}]  # fmt: skip
            assert row["chosen"] == [{"role": "assistant", "content": pair.chosen}]
            assert row["rejected"] == [{"role": "assistant", "content": pair.rejected}]
    assert record.counts == {"groups": 6, "pairs": 24, "shards": 2}
    assert record.results == {"pairs_by_configuration": {"harmless": 12, "uncensored": 12}}


def test_file_says_plain_strings_to_readers(groups: Path) -> None:
    output, _ = export(groups, "trl")
    schema = pq.read_schema(output / "pairs" / "00000.parquet")
    assert schema.metadata is None
    assert "dictionary" not in str(schema)


def test_texts_are_stored_once_however_many_they_are(tmp_path: Path) -> None:
    """Plain strings would be stored in each of their pairs: Parquet gives up a dictionary beyond 1 MiB."""
    rng = random.Random(0)
    found = []
    for number in range(60):
        responses = tuple(Response(role=f"R{rank}", text=rng.randbytes(2000).hex()) for rank in range(6))
        found.append(make_group(number).model_copy(update={"responses": responses}))
    synthesized(tmp_path / "groups", with_flips(*found))
    output, _ = export(tmp_path / "groups", "trl")
    metadata = pq.read_metadata(output / "pairs" / "00000.parquet")
    stored = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    distinct = sum(len(response.text) for group in found for response in group.responses)
    assert metadata.num_rows == 2 * 60 * 15
    assert 2 * distinct < stored < 2.2 * distinct  # once as chosen, once as rejected, though each is in ten pairs
    rows = pq.read_table(output / "pairs" / "00000.parquet", columns=["chosen", "rejected"]).to_pylist()
    expected = [pair for group in with_flips(*found) for pair in pairs(group)]
    assert [row["chosen"][0]["content"] for row in rows] == [pair.chosen for pair in expected]
    assert [row["rejected"][0]["content"] for row in rows] == [pair.rejected for pair in expected]


def test_shard_of_many_groups_is_streamed_in_batches(tmp_path: Path) -> None:
    found = [make_group(number, size=2) for number in range(GROUPS_AT_ONCE + 3)]
    synthesized(tmp_path / "groups", found)
    output, record = export(tmp_path / "groups", "trl")
    file = pq.ParquetFile(output / "pairs" / "00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [GROUPS_AT_ONCE, 3]
    assert file.read(columns=["group_id"]).column(0).to_pylist() == [group.id for group in found]
    assert record.counts["pairs"] == len(found)


@pytest.mark.parametrize(("which", "ranks"), [("adjacent", [(0, 1), (1, 2)]), ("best_worst", [(0, 2)])])
def test_fewer_pairs_of_a_group(tmp_path: Path, which: str, ranks: list[tuple[int, int]]) -> None:
    synthesized(tmp_path / "groups", [make_group(0)])
    output, record = export(tmp_path / "groups", "trl", pairs=which)
    rows = pq.read_table(output / "pairs" / "00000.parquet").to_pylist()
    assert [(row["rank_chosen"], row["rank_rejected"]) for row in rows] == ranks
    assert record.counts["pairs"] == len(ranks)


def test_released_format_is_one_object_a_line(groups: Path) -> None:
    output, _ = export(groups, "jsonl", configurations=["harmless"])
    assert files_of(output) == ["pairwise_dataset.jsonl", "recipe.json", "record.json"]
    text = (output / "pairwise_dataset.jsonl").read_text(encoding="utf-8")
    expected = [pair for number, size in ((0, 3), (1, 4), (2, 3)) for pair in pairs(make_group(number, size))]
    assert text == "".join(
        f'{{"prompt": "{pair.prompt}", "chosen": "{pair.chosen}", "rejected": "{pair.rejected}"}}\n'
        for pair in expected
    )


def test_released_format_never_mixes_opposite_configurations(groups: Path) -> None:
    """It has no system prompt: in one file a group and its flip would contradict one another."""
    output, _ = export(groups, "jsonl")
    names = ("pairwise_dataset-harmless.jsonl", "pairwise_dataset-uncensored.jsonl")
    assert [name for name in files_of(output) if name.endswith(".jsonl")] == list(names)
    sides = []
    for name in names:
        rows = [json.loads(line) for line in (output / name).read_text(encoding="utf-8").splitlines()]
        sides.append({(row["prompt"], row["chosen"], row["rejected"]) for row in rows})
    assert sides[0] == {(prompt, rejected, chosen) for prompt, chosen, rejected in sides[1]}
    assert len(sides[0]) == 12


def test_configuration_that_is_no_file_name_gets_one(tmp_path: Path) -> None:
    odd = make_group(1).model_copy(update={"configuration": "../tasks/ä"})
    synthesized(tmp_path / "groups", [make_group(0), odd])
    output, _ = export(tmp_path / "groups", "jsonl")
    assert {name for name in files_of(output) if name.endswith("l")} == {
        "pairwise_dataset-harmless.jsonl", "pairwise_dataset-..%2Ftasks%2F%C3%A4.jsonl",
    }  # fmt: skip


def test_ranked_groups_are_as_they_were(groups: Path) -> None:
    output, _ = export(groups, "ranked")
    for shard in (0, 1):
        path = output / "ranked" / f"{shard:05d}.parquet"
        assert read_rows(path, RankedGroup) == read_rows(group_file(groups, shard), RankedGroup)
        assert pq.read_schema(path).names == SCHEMAS[RankedGroup].names


def test_only_the_configurations_asked_for(groups: Path) -> None:
    output, record = export(groups, "trl", "ranked", "dataset", configurations=["uncensored"])
    assert {group.configuration for group in read_rows(output / "ranked", RankedGroup)} == {"uncensored"}
    for folder in (output / "pairs", output / "dataset" / "data"):
        table = pq.read_table(folder)
        assert set(table.column("configuration").to_pylist()) == {"uncensored"}
        assert table.num_rows == 12
    assert record.counts == {"groups": 3, "pairs": 12, "shards": 2}


def test_dataset_holds_the_trl_rows(groups: Path) -> None:
    output, _ = export(groups, "trl", "dataset")
    names = ["README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert files_of(output / "dataset") == names
    for shard in (0, 1):
        other = pq.read_table(output / "dataset" / names[1 + shard])
        assert pq.read_table(output / "pairs" / f"{shard:05d}.parquet").equals(other)


def test_interrupted_export_keeps_the_shards_it_wrote(groups: Path) -> None:
    output, first = export(groups, "trl", "jsonl", "dataset")
    before = {name: (output / name).read_bytes() for name in files_of(output)}
    lost = ("pairs/00001.parquet", "dataset/README.md", "pairwise_dataset-uncensored.jsonl", RECORD)
    for name in lost:
        (output / name).unlink()
    (output / "pairs" / ".00001.parquet.part").write_bytes(b"torn")
    kept = {name: (output / name).stat().st_mtime_ns for name in before if name not in lost}
    _, again = export(groups, "trl", "jsonl", "dataset")
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
    assert {name: (output / name).read_bytes() for name in before if name != RECORD} == {
        name: content for name, content in before.items() if name != RECORD
    }
    assert files_of(output) == sorted(before)
    assert (again.fingerprint, again.counts) == (first.fingerprint, first.counts)


def test_finished_export_is_not_made_again_and_another_recipe_is_refused(groups: Path) -> None:
    output, first = export(groups, "trl")
    (output / "pairs" / "00000.parquet").unlink()
    assert export(groups, "trl")[1] == first
    assert not (output / "pairs" / "00000.parquet").exists()
    with pytest.raises(InputError, match=r"holds another recipe \(pairs: 'all' -> 'adjacent'\)"):
        export(groups, "trl", pairs="adjacent")


def test_where_the_groups_lie_is_no_identity(groups: Path) -> None:
    _, first = export(groups, "trl")
    moved = groups.rename(groups.with_name("moved"))
    assert export(moved, "trl")[1] == first


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file[:60] + bytes(40) + file[100:],
        lambda file: file[:-50],
        lambda file: file.replace(b"How 2", b"How 7", 1),
    ],
    ids=["page", "end", "letter"],
)
def test_corrupted_shard_is_named_and_nothing_is_left(groups: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = group_file(groups, 1)
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    assert path.read_bytes() != whole
    with pytest.raises(InputError, match=rf"^groups: .*00001\.parquet: is not readable Parquet .*; {REDO}$"):
        export(groups, "trl")
    assert not (groups.parent / "out").exists()


def test_shard_without_a_column_or_a_second_response_is_named(groups: Path) -> None:
    path = group_file(groups, 1)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["system"]), path)
    with pytest.raises(InputError, match=rf"00001\.parquet: has no column system; {REDO}"):
        export(groups, "trl")
    rows = [row | {"responses": row["responses"][:1]} for row in table.to_pylist()]
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(InputError, match=rf"00001\.parquet: holds a group with fewer than two responses; {REDO}"):
        export(groups, "trl")


def test_lost_shard_is_noticed(groups: Path) -> None:
    group_file(groups, 1).unlink()
    with pytest.raises(InputError, match=rf"groups: holds 4 of the 6 groups of its record; {REDO}"):
        export(groups, "trl")


def test_unfinished_missing_and_other_folders_are_refused(groups: Path, tmp_path: Path) -> None:
    output, _ = export(groups, "trl")
    with pytest.raises(InputError, match=r"was made by export; give the output of trimtab synthesize"):
        run(ExportConfig(output=tmp_path / "other", groups=output))
    with pytest.raises(InputError, match=r"^groups: .*absent: no such folder"):
        run(ExportConfig(output=tmp_path / "other", groups=tmp_path / "absent"))
    (groups / RECORD).unlink()
    with pytest.raises(InputError, match=r"has no record.json \(unfinished\); run trimtab synthesize to its end"):
        run(ExportConfig(output=tmp_path / "other", groups=groups))
    assert not (tmp_path / "other").exists()


def test_configuration_that_matches_no_group_is_named_with_those_that_exist(groups: Path) -> None:
    expected = (
        r"^configurations: honest: matches no group; use some of: harmless \(3 groups\), uncensored \(3 groups\)$"
    )
    with pytest.raises(InputError, match=expected):
        export(groups, "trl", configurations=["harmless", "honest"])


def test_folder_without_groups_is_refused(tmp_path: Path) -> None:
    synthesized(tmp_path / "groups")
    with pytest.raises(InputError, match="holds no groups; give the output of trimtab synthesize"):
        export(tmp_path / "groups", "trl")


def test_two_outputs_from_one_source_are_the_same_bytes(groups: Path) -> None:
    output, _ = export(groups, "trl", "ranked")
    first = {name: (output / name).read_bytes() for name in files_of(output) if name.endswith(".parquet")}
    shutil.rmtree(output)
    export(groups, "trl", "ranked")
    assert {name: (output / name).read_bytes() for name in first} == first
