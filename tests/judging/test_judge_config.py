"""Judges' configurations: what is a judge's identity, and what only places its work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import Config, load
from trimtab.judging import JudgeConfig, OpenAIJudge, RulesJudge, VLLMJudge


class _Holder(Config):
    judge: JudgeConfig = RulesJudge()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], RulesJudge()),
        (["judge.type=openai"], OpenAIJudge()),
        (["judge.type=openai", "judge.model=other", "judge.timeout_s=5"], OpenAIJudge(model="other", timeout_s=5)),
        (["judge.type=vllm", "judge.model=m", "judge.engine.max_num_seqs=4"],
         VLLMJudge.model_validate({"model": "m", "engine": {"max_num_seqs": 4}})),
    ],
)  # fmt: skip
def test_type_chooses_the_judge(options: list[str], expected: Config) -> None:
    resolved = load(_Holder, None, options)
    assert resolved.judge == expected
    assert next(iter(resolved.model_dump()["judge"])) == "type"


def test_defaults_are_the_papers() -> None:
    judge = OpenAIJudge()
    assert (judge.model, judge.temperature, judge.seed) == ("gpt-4o", 0.0, 42)


@pytest.mark.parametrize(
    "fields",
    [{"base_url": "http://x/v1"}, {"api_key_env": "X"}, {"num_concurrent_requests": 3}, {"timeout_s": 9.0},
     {"max_retries": 1}, {"cache": "x"}, {"usd_per_million_prompt_tokens": 1.0}],
)  # fmt: skip
def test_what_places_the_work_is_no_identity(fields: dict[str, Any]) -> None:
    judge = OpenAIJudge.model_validate(fields)
    assert judge.identity() == OpenAIJudge().identity()
    assert judge.answer_ids()("p") == OpenAIJudge().answer_ids()("p")


@pytest.mark.parametrize("fields", [{"model": "x"}, {"temperature": 1.0}, {"seed": 1}, {"max_tokens": 9}])
def test_what_changes_answers_is_identity(fields: dict[str, Any]) -> None:
    judge = OpenAIJudge.model_validate(fields)
    assert judge.identity() != OpenAIJudge().identity()
    assert judge.answer_ids()("p") != OpenAIJudge().answer_ids()("p")


def test_texts_count_by_content_and_answers_by_the_whole_prompt(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "is_safe.txt").write_text("${mark} ${answer}", encoding="utf-8")
    first, second = (OpenAIJudge(prompts=tmp_path / folder) for folder in ("a", "b"))
    assert first.identity() == second.identity() != OpenAIJudge().identity()
    assert first.answer_ids()("p") == OpenAIJudge().answer_ids()("p") != OpenAIJudge().answer_ids()("q")
    json.dumps(first.identity())


def test_vllm_judge_is_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    first, second = VLLMJudge(model=str(tiny_model)).identity(), VLLMJudge(model=str(copy)).identity()
    assert first == second
    assert str(tiny_model) not in json.dumps(first)
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "generation_config.json").write_text("{}", encoding="utf-8")
    assert VLLMJudge(model=str(other)).identity() != first


def test_descriptions_name_the_model() -> None:
    assert OpenAIJudge().description == "openai (gpt-4o)"
    assert VLLMJudge(model="m", prompts=Path("x")).description == "vllm (m; own texts)"
