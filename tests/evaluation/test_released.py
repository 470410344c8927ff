"""The released C²-EVAL formats: their keys, their order, and what stands in none of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.chat import Chat
from trimtab.evaluation import prefill
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.evaluation.released import write
from trimtab.judging import OpenAIJudge, RulesJudge
from trimtab.judging.prompts import CONTROL_LIKE
from trimtab.schemas import Generation, PlanRow, Verdict
from trimtab.sources import SourceConfig


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def finished(tmp_path: Path) -> PrefillConfig:
    """Two requests at two k; the first row's generation failed, the second's is empty."""
    engine = {"type": "openai", "base_url": "http://unused", "model": "m"}
    source = SourceConfig(num_evaluation_prompts=2)
    config = PrefillConfig(output=tmp_path / "out", ks=(20, 10), source=source, engine=engine)

    def made(plan: list[PlanRow]) -> list[Generation]:
        texts = ["lost", "", "I am sorry, but I can't help.", "and smile while you say “it”"]
        return [Generation(id=row.id, text=text, num_prompt_tokens=1, num_tokens=1, error="Timeout" * (text == "lost"))
                for row, text in zip(plan, texts, strict=True)]  # fmt: skip

    prefill.run(config, made)
    return config


def test_raw_lines_have_the_released_keys_k_by_k(finished: PrefillConfig) -> None:
    raw = _lines(finished.output / "released" / "raw.jsonl")
    assert [list(row) for row in raw] == [["k", "request", "full response", "truly response"]] * 3
    assert [(row["k"], row["truly response"]) for row in raw] == [
        (10, ""), (10, "and smile while you say “it”"), (20, "I am sorry, but I can't help."),
    ]  # fmt: skip
    cases = {(case.prompt, case.k): case for case in prefill.plan_cases(finished)[0]}
    assert all(row["full response"] == cases[row["request"], row["k"]].prefill for row in raw)


def test_summary_is_corr_at_each_k_in_their_order_and_the_mean(finished: PrefillConfig) -> None:
    summary = json.loads((finished.output / "released" / "summary.json").read_text(encoding="utf-8"))
    assert summary == [1.0, 0.0, 0.5]


def test_judge_log_holds_what_was_judged_and_said(finished: PrefillConfig) -> None:
    log = _lines(finished.output / "released" / "judge_log.jsonl")
    assert log == [
        {"prompt": "and smile while you say “it”", "response": "no"},
        {"prompt": "I am sorry, but I can't help.", "response": "yes"},
    ]


def _row(number: int, **fields: Any) -> PlanRow:
    return PlanRow(id=str(number), request_id=str(number), kind="k=10", system="Be kind.", prompt="How?",
                   prefill="Sure,", max_tokens=3, **fields)  # fmt: skip


def _said(number: int, raw: str | None, verdict: Any) -> Verdict:
    return Verdict(id=str(number), request_id=str(number), group="10", prompt="How?", prefill="Sure,", text="wait.",
                   verdict=verdict, raw=raw)  # fmt: skip


def _write(folder: Path, rows: list[PlanRow], verdicts: list[Verdict], **others: Any) -> Path:
    made = [Generation(id=row.id, text="wait.", num_prompt_tokens=1, num_tokens=1) for row in rows]
    results = {"corr": {"10": {"value": None}}, "corr_mean": {"value": None}}
    write(folder, rows, made, verdicts, results, **({"judge": RulesJudge(), "model": None} | others))
    return folder


def test_full_response_is_the_prompt_as_the_model_saw_it(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    rows = [_row(0), _row(1, reopen=True)]
    _write(tmp_path, rows, [_said(n, None, "no") for n in (0, 1)], model=tiny_tokenizer_folder)
    chat = Chat.from_folder(str(tiny_tokenizer_folder))
    assert [row["full response"] for row in _lines(tmp_path / "raw.jsonl")] == [
        chat.prompt_text("Be kind.", "How?", "Sure,"),
        chat.prompt_text("Be kind.", "How?", "Sure,", reopen=True),
    ]


def test_a_models_own_words_are_logged_with_its_whole_prompt(tmp_path: Path) -> None:
    verdicts = [_said(0, " Yes\n", "yes"), _said(1, "Perhaps.", "unparsed"), _said(2, None, "unparsed")]
    _write(tmp_path, [_row(n) for n in range(3)], verdicts, judge=OpenAIJudge())
    log = _lines(tmp_path / "judge_log.jsonl")
    assert [row["response"] for row in log] == ["yes", "perhaps."]
    assert all(text in log[0]["prompt"] for text in ("How?", "Sure,", "wait."))
    assert not CONTROL_LIKE.search(log[0]["prompt"])


def test_nothing_scored_is_null_in_the_summary(tmp_path: Path) -> None:
    _write(tmp_path, [_row(0)], [_said(0, None, "unparsed")])
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == [None, None]
    assert _lines(tmp_path / "judge_log.jsonl") == []
