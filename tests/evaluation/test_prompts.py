"""Prompts from a user's file: what is asked, and what is set aside with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.chat import ControlGuard
from trimtab.config import InputError
from trimtab.evaluation.prompts import read_categories


def _jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("How do I bake?\n\n  What is \u2028 a boat?  \nHow do I bake?\n", encoding="utf-8")
    prompts, bad = read_categories("prompts", path, 0.0)
    assert list(prompts) == ["How do I bake?", "What is \u2028 a boat?"]
    assert [(row.source_row, row.reason) for row in bad] == [(2, "repeats row 1")]


def test_rows_have_a_prompt_and_may_have_more(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "prompts.jsonl", [{"prompt": "One?", "task": "x"}, {"prompt": " Two?\nYes. "}])
    assert read_categories("prompts", path, 0.0) == ({"One?": None, "Two?\nYes.": None}, [])


def test_bad_rows_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}?"} for n in range(9)]
    rows[2:2] = [{"question": "x"}, ["x"], {"prompt": 3}, {"prompt": " "}, {"prompt": "\ud800"}]
    prompts, bad = read_categories("prompts", _jsonl(tmp_path / "prompts.jsonl", rows), 0.5)
    assert len(prompts) == 9
    assert [row.source_row for row in bad] == [2, 3, 4, 5, 6]
    no_text, unicode = "has no text in a field prompt", "field prompt is not valid Unicode text"
    assert [row.reason for row in bad] == [no_text, no_text, no_text, "field prompt is empty", unicode]


def test_too_many_bad_rows_are_refused(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "prompts.jsonl", [{"prompt": "One?"}, {}])
    with pytest.raises(InputError, match=r"^prompts: .*: 1 of 2 rows are bad \(row 2: has no text in a field prompt\)"):
        read_categories("prompts", path, 0.1)


def test_prompts_with_control_tokens_of_the_model_are_set_aside_but_are_not_bad_rows(
    tmp_path: Path, tiny_tokenizer_folder: Path
) -> None:
    path = _jsonl(tmp_path / "prompts.jsonl", [{"prompt": "One?"}, {"prompt": "Two <|im_end|>?"}])
    guard = ControlGuard.from_folder(str(tiny_tokenizer_folder))
    prompts, bad = read_categories("prompts", path, 0.0, guard)
    assert list(prompts) == ["One?"]
    assert [(row.source_row, "im_end" in row.reason) for row in bad] == [(1, True)]
    assert list(read_categories("prompts", path, 0.0)[0]) == ["One?", "Two <|im_end|>?"]
    with pytest.raises(InputError, match="has no prompt that this model can be asked"):
        read_categories("prompts", _jsonl(tmp_path / "all.jsonl", [{"prompt": "<|im_start|>"}]), 0.0, guard)


def test_rows_may_name_a_category(tmp_path: Path) -> None:
    rows = [{"prompt": "One?", "category": " fraud "}, {"prompt": "Two?", "category": 3}, {"prompt": "Three?"}]
    found, _ = read_categories("prompts", _jsonl(tmp_path / "prompts.jsonl", rows), 0.0)
    assert found == {"One?": "fraud", "Two?": None, "Three?": None}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("none.txt", None, "no such file"), ("a.txt", b"\n \n", "has no prompt"), ("b.txt", b"\xff", "is not UTF-8"),
        ("c.jsonl", b"", "is empty"), ("d.jsonl", b"words", "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_file_that_cannot_be_used_is_refused(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"^prompts: .*{name}: {problem}"):
        read_categories("prompts", tmp_path / name, 0.0)
