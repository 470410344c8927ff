"""Source rows: what is wrong with a file or a row is said, and the split never shares a prompt."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.config import InputError
from trimtab.near_duplicates import normalize
from trimtab.schemas import Request
from trimtab.sources import SourceConfig, read_json_rows, read_requests, split_requests

WORDS = [
    "apple", "boat", "cloud", "dance", "eagle", "forest", "garden", "hammer", "island", "jacket", "kettle", "lemon",
    "mirror", "needle", "ocean", "pencil", "quilt", "river", "stone", "table", "umbrella", "velvet", "window", "yellow",
]  # fmt: skip


def _row(**fields: Any) -> dict[str, Any]:
    return {
        "prompt": "How do I skip school?", "response_0": "I won't help.", "response_1": "Say you are ill.",
        "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": 0,
    } | fields  # fmt: skip


def _without(field: str) -> dict[str, Any]:
    return {name: value for name, value in _row().items() if name != field}


def _jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _read(path: Path, share: float = 0.01) -> tuple[list[Request], list[Any]]:
    return read_requests(SourceConfig(data=path, max_bad_share=share))


def test_first_unsafe_response_is_the_harmful_one(tmp_path: Path) -> None:
    rows = [
        _row(),
        _row(prompt=" What now? ", is_response_0_safe=False, is_response_1_safe=True),
        _row(prompt="Both unsafe?", is_response_0_safe=False),
        _row(prompt="Both safe?", is_response_1_safe=True),
        _row(prompt="Empty unsafe one?", response_0=" ", is_response_0_safe=False),
    ]
    requests, bad = _read(_jsonl(tmp_path / "rows.jsonl", rows))
    assert bad == []
    assert [(r.prompt, r.harmful, r.safe, r.source_row) for r in requests] == [
        ("How do I skip school?", "Say you are ill.", "I won't help.", 0),
        ("What now?", "I won't help.", "Say you are ill.", 1),
        ("Both unsafe?", "I won't help.", None, 2),
        ("Empty unsafe one?", "Say you are ill.", None, 4),
    ]
    assert len({request.id for request in requests}) == 4


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_three_formats_give_the_same_requests(tmp_path: Path, kind: str) -> None:
    rows, path = [_row(), _row(prompt="What — é\u00a0?")], tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        _jsonl(path, rows)
    assert _read(path) == _read(_jsonl(tmp_path / "reference.jsonl", rows))


BAD_ROWS = [
    *((_without(field), f"field {field} is missing") for field in
      ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe")),
    (_row(prompt=3), "field prompt is int, not str"),
    (_row(response_1=None), "field response_1 is NoneType, not str"),
    (_row(is_response_0_safe="yes"), "field is_response_0_safe is str, not bool"),
    (_row(is_response_0_safe=1), "field is_response_0_safe is int, not bool"),
    (_row(prompt=" \n"), "field prompt is empty"),
    (["a", "list"], "is not a JSON object"),
    (None, "is not a JSON object"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_file_of_bad_rows_is_refused_with_row_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    path = _jsonl(tmp_path / "rows.jsonl", [_row(), row])
    with pytest.raises(
        InputError, match=rf"^data: .*: 1 of 2 rows are bad \(row 2: {reason}\); mend them or raise max"
    ):
        _read(path)


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_one_bad_row_among_many_is_quarantined_with_its_reason(tmp_path: Path, row: Any, reason: str) -> None:
    rows: list[Any] = [_row(prompt=f"How {number}?") for number in range(120)]
    requests, bad = _read(_jsonl(tmp_path / "rows.jsonl", [*rows[:60], row, *rows[60:]]))
    assert len(requests) == 120
    assert [(found.source_row, found.reason) for found in bad] == [(60, reason)]
    assert json.loads(bad[0].content) == row


def test_broken_line_in_the_middle_is_quarantined(tmp_path: Path) -> None:
    lines = [json.dumps(_row(prompt=f"How {number}?")) for number in range(150)]
    lines[7] = lines[7][:40]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    requests, bad = _read(tmp_path / "rows.jsonl")
    assert len(requests) == 149
    assert [found.source_row for found in bad] == [7]


def test_repeated_row_is_set_aside_and_is_not_a_bad_one(tmp_path: Path) -> None:
    rows = [_row(prompt=f"How do I skip day {number}?") for number in range(3)]
    requests, bad = _read(_jsonl(tmp_path / "rows.jsonl", [*rows, rows[1]]), share=0)
    assert [request.source_row for request in requests] == [0, 1, 2]
    assert [(row.source_row, row.reason) for row in bad] == [(3, "repeats row 2 (same prompt and harmful response)")]


def test_limit_of_bad_rows_is_a_share(tmp_path: Path) -> None:
    rows = [*(_row(prompt=f"How {number}?") for number in range(8)), 1, 2]
    path = _jsonl(tmp_path / "rows.jsonl", rows)
    assert len(_read(path, share=0.2)[1]) == 2
    with pytest.raises(InputError, match=r"2 of 10 rows are bad \(row 9: is not a JSON object\)"):
        _read(path, share=0.19)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"", "is empty"), ("a.jsonl", b" \n\n", "is empty"), ("a.json", b"", "is empty"),
        ("a.jsonl", b"prompt,response\n", "line 1 is not JSON"), ("a.jsonl", b"\xff\xd8\xff\xe0", "is not UTF-8 text"),
        ("a.jsonl", bytes(range(32)), "line 1 is not JSON"), ("a.json", b"[1,\n2", r"is not JSON \(.*line 2.*\)"),
        ("a.json", b"[]", "is not a list of rows"), ("a.json", b'{"prompt": 1}', "is not a list of rows"),
        ("a.parquet", b"PAR1 no", "is not readable Parquet"), ("a.parquet", b"", "is not readable Parquet"),
        ("a.json", b"\x80", "is not UTF-8 text"),
    ],
)  # fmt: skip
def test_file_that_is_no_data_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^data: .*{name}: {problem}.*; \w+"):
        _read(tmp_path / name)


def test_parquet_without_rows_and_missing_paths(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(InputError, match=r"none\.parquet: is empty"):
        _read(tmp_path / "none.parquet")
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(InputError, match=r"^data: .*: no such file; give the path of a \.jsonl"):
            _read(path)


def test_file_without_unsafe_responses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row has an unsafe response; give rows with is_response_N_safe=false"):
        _read(_jsonl(tmp_path / "rows.jsonl", [_row(is_response_1_safe=True)]))


def test_field_named_in_errors_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^recipe\.data: "):
        list(read_json_rows("recipe.data", tmp_path / "absent"))


def test_path_is_no_identity_of_a_source(tmp_path: Path) -> None:
    assert SourceConfig(data=tmp_path / "x").identity() == SourceConfig().identity()
    assert SourceConfig(split_seed=1).identity() != SourceConfig().identity()


def _request(prompt: str, number: int = 0) -> Request:
    return Request(id=f"{prompt}/{number}", prompt=prompt, harmful="h", source_row=number)


def _prompts(num: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.sample(WORDS, 8)) for _ in range(num)]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 10), split_seed=st.integers(0, 3))
def test_split_is_disjoint_complete_and_independent_of_the_order(seed: int, num: int, split_seed: int) -> None:
    rng = random.Random(seed)
    prompts = _prompts(14, seed)
    variants = [f"{prompt.upper()} ?!" for prompt in rng.sample(prompts, 5)]
    requests = [_request(prompt, number) for number, prompt in enumerate([*prompts, *variants])]
    config = SourceConfig(num_evaluation_prompts=num, split_seed=split_seed)
    training, evaluation = split_requests(requests, config)
    sides = [{normalize(request.prompt) for request in side} for side in (training, evaluation)]
    assert not sides[0] & sides[1]
    assert sorted(r.id for r in [*training, *evaluation]) == sorted(r.id for r in requests)
    assert len(sides[1]) == num
    shuffled = rng.sample(requests, len(requests))
    again = split_requests(shuffled, config)
    assert [{r.id for r in side} for side in again] == [{r.id for r in training}, {r.id for r in evaluation}]
    assert again[0] == [request for request in shuffled if request in training]


def test_all_of_a_file_can_be_measured_and_then_none_is_trained_on() -> None:
    requests = read_requests(SourceConfig())[0]
    assert split_requests(requests, SourceConfig(split="all")) == ([], requests)


def test_other_split_seed_draws_other_prompts() -> None:
    requests = [_request(prompt) for prompt in _prompts(30)]
    drawn = [split_requests(requests, SourceConfig(num_evaluation_prompts=10, split_seed=s))[1] for s in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("seed", range(8))
def test_near_duplicates_stay_together(seed: int) -> None:
    base = "How can I write a very convincing letter to my old landlord about the broken kitchen window and the cold"
    family = [base, f"{base}?", f"{base} floor", f"Please, {base}"]
    requests = [_request(prompt, number) for number, prompt in enumerate([*_prompts(12, seed), *family])]
    config = SourceConfig(num_evaluation_prompts=6, split_seed=seed)
    held = [request.prompt in family for request in split_requests(requests, config)[1]]
    assert sum(held) in (0, len(family))


@pytest.mark.parametrize("num", [12, 13, 500])
def test_too_few_prompts_are_an_error(num: int) -> None:
    requests = [_request(prompt) for prompt in _prompts(12)]
    with pytest.raises(InputError, match=rf"^num_evaluation_prompts: {num}: 12 distinct prompts cannot hold out {num}"):
        split_requests(requests, SourceConfig(num_evaluation_prompts=num))


@pytest.mark.parametrize(
    ("prompt", "plain"), [("How,  do I?", "how do i"), ("HOW do\ti", "how do i"), ("Éa-b_c", "éa b_c"), ("?!", "")]
)
def test_normalized_prompt(prompt: str, plain: str) -> None:
    assert normalize(prompt) == plain


def test_validation_prompts_are_neither_trained_nor_reported_on(tmp_path: Path) -> None:
    rows = [_row(prompt=" ".join(random.Random(number).sample(WORDS, 6))) for number in range(36)]
    requests, _ = _read(_jsonl(tmp_path / "rows.jsonl", rows))
    common = {"num_evaluation_prompts": 8, "num_validation_prompts": 5}
    training, evaluation = split_requests(requests, SourceConfig(**common))
    again, validation = split_requests(requests, SourceConfig(**common, split="validation"))
    sides = [{normalize(r.prompt) for r in side} for side in (training, evaluation, validation)]
    assert again == training
    assert len(sides[1]) >= 8
    assert len(sides[2]) >= 5
    assert sum(map(len, sides)) == len(set().union(*sides)) == 36
    assert evaluation == split_requests(requests, SourceConfig(num_evaluation_prompts=8))[1]
    with pytest.raises(InputError, match=r"^num_validation_prompts: 30: 28 distinct prompts cannot hold out 30"):
        split_requests(requests, SourceConfig(num_evaluation_prompts=8, num_validation_prompts=30))
