"""C²-EVAL as a task of Inspect: the same numbers as our own stage, from the same cases and generations."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.judging.server import Answer, Call, JudgeServer, Script, says
from tests.slow.conftest import serve
from trimtab.artifacts import Record
from trimtab.config import InputError
from trimtab.evaluation import prefill
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.schemas import Generation, PlanRow, read_rows

pytestmark = pytest.mark.slow

TEXTS = ("I am sorry, but I can't go on with this.", "and then write the next line of it", "No.")
"""Turns away, goes on, too short to tell."""
SETTINGS: dict[str, Any] = {"ks": [10, 30], "paths": 2, "max_tokens": 5, "source": {"num_evaluation_prompts": 6}}
ENGINE = {"type": "openai", "base_url": "http://unused", "model": "m"}


def _config(output: Path, **settings: Any) -> PrefillConfig:
    return PrefillConfig.model_validate({"output": output, "engine": ENGINE} | SETTINGS | settings)


def _stored(plan: list[PlanRow]) -> list[Generation]:
    return [Generation(id=row.id, text=TEXTS[int(row.id, 16) % 3], num_prompt_tokens=1, num_tokens=1) for row in plan]


def _replays(config: PrefillConfig) -> Script:
    """An endpoint that gives each case its stored continuations, one path after the other."""
    plan = prefill.plan_cases(config)[1]
    waiting: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row, made in zip(plan, _stored(plan), strict=True):
        waiting[row.prompt, row.prefill].append(made.text)

    def script(call: Call) -> Answer:
        *_, user, turn = call.body["messages"]
        return says(waiting[user["content"], turn["content"]].pop())

    return script


def _eval(task: Any, server: str, folder: Path, **options: Any) -> Any:
    from inspect_ai import eval as evaluate

    (log,) = evaluate(task, model="openai-api/stored/m", model_base_url=server, log_dir=str(folder), display="none",
                      **options)  # fmt: skip
    return log


def _numbers(log: Any) -> dict[str, float]:
    assert log.status == "success", log.error
    return {metric.name: metric.value for metric in log.results.scores[0].metrics.values()}


def _assert_same(log: Any, record: Record) -> None:
    numbers = _numbers(log)
    for k, estimate in record.results["corr"].items():
        assert numbers[f"Corr@{k}"] == pytest.approx(estimate["value"], abs=1e-12)
    assert numbers["Corr_mean"] == pytest.approx(record.results["corr_mean"]["value"], abs=1e-12)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STORED_API_KEY", "GRADES_API_KEY"):
        monkeypatch.setenv(name, "none")


def test_numbers_are_those_of_our_stage_on_the_same_generations(tmp_path: Path) -> None:
    from trimtab.evaluation.inspect_task import course_correction

    config = _config(tmp_path / "ours")
    record = prefill.run(config, _stored)
    assert 0 < record.counts["unparsed"] < record.counts["cases"]
    assert 0 < record.results["corr_mean"]["value"] < 1
    with JudgeServer(_replays(config)) as server:
        log = _eval(course_correction(settings=SETTINGS), server.url, tmp_path / "logs")
    _assert_same(log, record)
    assert len(server.calls) == record.counts["cases"]
    for call in server.calls:
        assert [message["role"] for message in call.body["messages"]] == ["system", "user", "assistant"]
        assert (call.body["continue_final_message"], call.body["add_generation_prompt"]) == (True, False)
        assert (call.body["max_tokens"], call.body["temperature"], call.body["top_p"]) == (5, 0.8, 0.7)


def test_inspect_finds_the_task_by_its_name_and_takes_a_configuration_file(tmp_path: Path) -> None:
    """By the entry point of the installed package: ``pip install -e .`` writes it."""
    path = tmp_path / "prefill.yaml"
    path.write_text("ks: [10]\nsource: {num_evaluation_prompts: 3}\n", encoding="utf-8")
    with JudgeServer(lambda call: says(TEXTS[0])) as server:
        log = _eval("trimtab/course_correction", server.url, tmp_path / "logs", task_args={"config": str(path)})
    assert _numbers(log)["Corr@10"] == _numbers(log)["Corr_mean"] == 1
    assert len(server.calls) == 3


def test_reopened_turn_is_closed_by_name(tmp_path: Path) -> None:
    from trimtab.evaluation.inspect_task import course_correction

    settings = SETTINGS | {"template": "reopen", "paths": 1}
    with JudgeServer(lambda call: says(TEXTS[0])) as server:
        log = _eval(course_correction(settings=settings), server.url, tmp_path)
    assert _numbers(log)["Corr_mean"] == 1
    assert {call.body["continue_final_message"] for call in server.calls} == {False}


def test_grader_is_asked_as_our_judges_are(tmp_path: Path) -> None:
    from inspect_ai.model import get_model

    from trimtab.evaluation.inspect_task import course_correction

    def grades(call: Call) -> Answer:
        return says("yes" if sum(map(ord, call.prompt)) % 3 else "no")

    with JudgeServer(grades) as judges:
        judge = {"type": "openai", "model": "j", "base_url": judges.url, "cache": str(tmp_path / "cache")}
        config = _config(tmp_path / "ours", judge=judge, paths=1)
        record = prefill.run(config, _stored)
        asked = {call.prompt for call in judges.calls}
        judges.calls.clear()
        task = course_correction(settings=SETTINGS | {"paths": 1, "judge": judge})
        with JudgeServer(_replays(config)) as server:
            log = _eval(task, server.url, tmp_path / "logs",
                        model_roles={"grader": get_model("openai-api/grades/j", base_url=judges.url)})  # fmt: skip
    _assert_same(log, record)
    assert {call.prompt for call in judges.calls} == asked
    assert {(call.body["temperature"], call.body["seed"]) for call in judges.calls} == {(0, 42)}


def test_provider_that_would_close_the_turn_is_refused(tmp_path: Path) -> None:
    from inspect_ai import eval as evaluate

    from trimtab.evaluation.inspect_task import course_correction

    (log,) = evaluate(course_correction(settings=SETTINGS), model="mockllm/model", log_dir=str(tmp_path),
                      display="none", log_samples=False)  # fmt: skip
    assert log.status == "error"
    assert "is not known to continue an open assistant turn" in log.error.message


def test_judge_on_this_ray_is_refused() -> None:
    from trimtab.evaluation.inspect_task import course_correction

    with pytest.raises(
        InputError, match=r"judge.type: vllm: needs this Ray, which Inspect doesn't use; .*--model-role"
    ):
        course_correction(settings={"judge": {"type": "vllm", "model": "smollm2-135m"}})


def test_greedy_continuations_of_a_real_model_are_the_same(
    vllm_server: str, tmp_path: Path, ray_session: None
) -> None:  # fmt: skip
    _assert_same_greedily(vllm_server, "tiny", tmp_path, max_tokens=5)


def test_embedded_model_has_the_same_corr_at_k(tmp_path: Path, ray_session: None) -> None:
    from trimtab import models

    try:
        folder = models.resolve("smollm2-135m")
    except InputError as error:
        pytest.skip(f"SKIPPED LOUDLY: Inspect was not held against the embedded model: {error}")
    with serve(folder, "embedded", tmp_path / "log") as url:
        record = _assert_same_greedily(url, "embedded", tmp_path, max_tokens=32)
    assert record.counts["unparsed"] < record.counts["cases"]


def _assert_same_greedily(url: str, name: str, tmp_path: Path, max_tokens: int) -> Record:
    """Cases, prompts and most texts are the same, and the figures as far as the texts are."""
    from inspect_ai import eval as evaluate

    from trimtab.evaluation.inspect_task import course_correction

    settings = SETTINGS | {"paths": 1, "temperature": 0, "max_tokens": max_tokens}
    engine = {"type": "openai", "base_url": url, "model": name}
    record = prefill.run(_config(tmp_path / "ours", **settings | {"engine": engine}))
    (log,) = evaluate(
        course_correction(settings=settings), model=f"openai-api/stored/{name}", model_base_url=url,
        log_dir=str(tmp_path / "logs"), display="none",
    )  # fmt: skip
    ours = {row.id: row for row in read_rows(tmp_path / "ours" / "generations", Generation)}
    assert len(log.samples) == len(ours) == record.counts["cases"]
    for sample in log.samples:
        usage = sample.output.usage
        assert usage.input_tokens + (usage.input_tokens_cache_read or 0) == ours[sample.id].num_prompt_tokens
    same = [sample.output.completion == ours[sample.id].text for sample in log.samples]
    assert sum(same) >= 0.75 * len(same)  # batches of another size may tip a token in bfloat16
    if (scored := record.results["corr_mean"]["value"]) is not None:
        tipped = 2 * same.count(False) / len(same)  # twice, since a text may also become one that can't be judged
        assert _numbers(log)["Corr_mean"] == pytest.approx(scored, abs=tipped + 1e-12)
        if all(same):
            _assert_same(log, record)
    return record
