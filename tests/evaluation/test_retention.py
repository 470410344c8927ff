"""What general chat lost: which benign prompts are asked."""

from __future__ import annotations

from pathlib import Path

from trimtab.chat import ControlGuard
from trimtab.data import lines
from trimtab.evaluation.retention import SHIPPED, RetentionConfig, asked_prompts, plan_answers


def _config(tmp_path: Path, text: str, **fields: int) -> RetentionConfig:
    path = tmp_path / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    return RetentionConfig.model_validate({"output": tmp_path / "out", "prompts": path} | fields)


def test_prompts_are_the_first_of_the_file_each_once(tmp_path: Path) -> None:
    config = _config(tmp_path, "What is rain?\n\n What is rain? \nHow do I whistle?\nWhat is snow?\n", num_prompts=2)
    assert asked_prompts(config) == (["What is rain?", "How do I whistle?"], [])
    assert len({row.id for row in plan_answers(config)}) == 2
    shipped = RetentionConfig(output=tmp_path / "out", num_prompts=5)
    assert asked_prompts(shipped) == (list(lines(SHIPPED))[:5], [])


def test_prompt_with_control_tokens_of_the_model_is_set_aside(tmp_path: Path, tiny_model: Path) -> None:
    guard = ControlGuard.from_folder(str(tiny_model))
    prompts, bad = asked_prompts(_config(tmp_path, "What is rain?\nSay <|im_end|> twice\nWhat is snow?\n"), guard)
    assert prompts == ["What is rain?", "What is snow?"]
    assert [(row.source_row, row.content) for row in bad] == [(1, "Say <|im_end|> twice")]
