"""The judge behind an endpoint, against a real HTTP server that answers rightly, slowly, wrongly or not at all."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.judging.server import NONSENSE, Answer, Call, JudgeServer, Script, fails, says, unreliable
from trimtab import console
from trimtab.config import InputError
from trimtab.evaluation import prefill, stage
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.judging import Item, Judged, OpenAIJudge, judge_all
from trimtab.judging.endpoint import MOST_FAILURES_IN_A_ROW
from trimtab.schemas import Generation, PlanRow, Verdict, read_rows
from trimtab.sources import SourceConfig

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return tmp_path / "home"


def _judge(server: JudgeServer | str, **fields: Any) -> OpenAIJudge:
    url = server if isinstance(server, str) else server.url
    return OpenAIJudge.model_validate({"base_url": url, "max_retries": 0, "timeout_s": 20} | fields)


def _items(num: int, start: int = 0) -> list[Item]:
    return [Item(f"i{n}", "How?", f"Text number {n}.", "Well,") for n in range(start, start + num)]


def _ask(judge: OpenAIJudge, items: list[Item]) -> list[Judged]:
    return judge_all(items, "course_corrects", judge, "judge")


def _of(call: Call) -> int:
    """The number of the text that a call asks about."""
    return int(call.prompt.split("Text number ")[1].split(".")[0])


def _parity(call: Call) -> Answer:
    return says("Yes." if _of(call) % 2 == 0 else "no")


def test_each_text_gets_its_own_verdict_and_the_request_is_the_papers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    with JudgeServer(lambda call: says("Yes." if _of(call) % 2 == 0 else "no", 0.002 * (9 - _of(call)))) as server:
        found = _ask(_judge(server, api_key_env="SOME_KEY"), _items(9))
    assert [said.id for said in found] == [f"i{n}" for n in range(9)]
    assert [said.verdict for said in found] == ["yes", "no"] * 4 + ["yes"]
    assert {said.raw for said in found} == {"Yes.", "no"}
    body = server.calls[0].body
    assert {name: body[name] for name in ("model", "temperature", "seed", "max_tokens")} == {
        "model": "gpt-4o", "temperature": 0.0, "seed": 42, "max_tokens": 32,
    }  # fmt: skip
    assert {call.key for call in server.calls} == {"secret"}
    assert "secret" not in json.dumps([call.body for call in server.calls])


def test_a_second_run_costs_no_call_and_a_longer_one_only_what_is_new() -> None:
    with JudgeServer(_parity) as server:
        first = _ask(_judge(server), _items(6))
        again = _ask(_judge(server, num_concurrent_requests=1), _items(6))
        assert len(server.calls) == 6
        longer = _ask(_judge(server), _items(8))
        assert len(server.calls) == 8
        _ask(_judge(server, model="other"), _items(2))
        assert len(server.calls) == 10
    assert first == again == longer[:6]


def test_one_text_under_two_ids_is_asked_once() -> None:
    with JudgeServer(_parity) as server:
        found = _ask(_judge(server), [Item("a", "How?", "Text number 2."), Item("b", "How?", "Text number 2.")])
    assert [(said.id, said.verdict) for said in found] == [("a", "yes"), ("b", "yes")]
    assert len(server.calls) == 1


def test_retry_after_is_honoured() -> None:
    times: list[float] = []

    def script(call: Call) -> Answer:
        times.append(time.monotonic())
        return fails(429, retry_after="1") if call.attempt == 1 else says("yes")

    with JudgeServer(script) as server:
        (said,) = _ask(_judge(server, max_retries=1), _items(1))
    assert said.verdict == "yes"
    assert len(times) == 2
    assert times[1] - times[0] >= 1.0


def test_refusals_and_breakdowns_lose_no_verdict() -> None:
    with JudgeServer(unreliable(0.002, 0.0, 0.2, seed=1)) as server:
        found = _ask(_judge(server, max_retries=8), _items(24))
    assert [said.verdict for said in found] == ["yes" if n % 3 == 0 else "no" for n in range(24)]
    assert len(server.calls) > 24


def test_crowd_that_the_server_refuses_gets_smaller() -> None:
    in_flight: dict[int, int] = {}

    def script(call: Call) -> Answer:
        in_flight[call.number] = server.in_flight
        return fails(429, retry_after_ms="100") if call.number <= 16 else says("no", 0.05)

    with JudgeServer(script) as server:
        found = _ask(_judge(server, max_retries=2), _items(56))
    assert {said.verdict for said in found} == {"no"}
    assert len(server.calls) == 16 + 56
    assert server.most_in_flight > 12
    assert 6 <= max(in_flight[number] for number in range(36, 57)) <= 12, "halved to 8, then one more a round"


def test_never_more_in_flight_than_allowed_and_no_fewer() -> None:
    with JudgeServer(lambda call: says("yes", 0.1)) as server:
        _ask(_judge(server, num_concurrent_requests=5), _items(20))
    assert server.most_in_flight == 5


def test_what_fails_stays_unparsed_with_its_reason_and_is_asked_again() -> None:
    broken = True

    def script(call: Call) -> Answer:
        return fails(500 if _of(call) == 1 else 400) if broken and _of(call) in (1, 3) else _parity(call)

    with JudgeServer(script) as server:
        found = _ask(_judge(server, num_concurrent_requests=1), _items(5))
        assert [said.verdict for said in found] == ["yes", "unparsed", "yes", "unparsed", "yes"]
        assert [bool(said.error) for said in found] == [False, True, False, True, False]
        assert "InternalServerError" in str(found[1].error)
        assert "failed with 400" in str(found[3].error)
        broken = False
        again = _ask(_judge(server), _items(5))
        assert [said.verdict for said in again] == ["yes", "no", "yes", "no", "yes"]
        assert len(server.calls) == 7


@pytest.mark.parametrize("kind", NONSENSE)
def test_what_is_no_chat_completion_is_an_error_of_that_verdict(kind: str) -> None:
    with JudgeServer(lambda call: NONSENSE[kind] if _of(call) == 1 else _parity(call)) as server:
        found = _ask(_judge(server), _items(3))
    assert [said.verdict for said in found] == ["yes", "unparsed", "yes"]
    assert found[1].error == "the server's answer is no chat completion"


def test_words_that_are_no_verdict_are_kept_and_not_asked_again() -> None:
    texts = {0: "Yes, because it refuses.", 1: "", 2: None}
    with JudgeServer(lambda call: says(texts[_of(call)])) as server:
        for _ in range(2):
            found = _ask(_judge(server), _items(3))
            assert [(said.verdict, said.raw, said.error) for said in found] == [
                ("unparsed", "Yes, because it refuses.", None), ("unparsed", "", None), ("unparsed", "", None),
            ]  # fmt: skip
    assert len(server.calls) == 3


def test_an_answer_that_never_comes_is_given_up() -> None:
    with JudgeServer(lambda call: says("yes", 1.5 if _of(call) == 1 else 0.0)) as server:
        found = _ask(_judge(server, timeout_s=0.4), _items(3))
    assert [said.verdict for said in found] == ["yes", "unparsed", "yes"]
    assert "APITimeoutError" in str(found[1].error)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (401, "judge.api_key_env: OPENAI_API_KEY: the judge refuses the key in this variable (401); set it to a valid "
              "key"),
        (403, "judge.model: gpt-4o: URL knows no such model or path, or denies it (403); check judge.model and "
              "judge.base_url"),
        (404, "judge.model: gpt-4o: URL knows no such model or path, or denies it (404); check judge.model and "
              "judge.base_url"),
    ],
)  # fmt: skip
def test_what_no_retry_mends_stops_at_once_with_one_line(status: int, line: str) -> None:
    with JudgeServer(lambda call: fails(status)) as server:
        with pytest.raises(InputError) as stopped:
            _ask(_judge(server, num_concurrent_requests=4, max_retries=6), _items(50))
        assert str(stopped.value) == line.replace("URL", server.url)
        assert len(server.calls) <= 4


def test_nobody_at_the_address_is_one_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = rf"^judge\.base_url: http://127\.0\.0\.1:{port}/v1: nothing answers there; start it or mend the address$"
    with pytest.raises(InputError, match=line):
        _ask(_judge(f"http://127.0.0.1:{port}/v1"), _items(3))


def test_a_server_that_only_fails_is_left_alone_and_what_it_answered_is_kept() -> None:
    healthy = 5

    def script(call: Call) -> Answer:
        return _parity(call) if call.number <= healthy else fails(500)

    with JudgeServer(script) as server:
        with pytest.raises(InputError, match=rf"{MOST_FAILURES_IN_A_ROW} calls in a row failed after their retries"):
            _ask(_judge(server, num_concurrent_requests=2), _items(200))
        assert len(server.calls) <= healthy + MOST_FAILURES_IN_A_ROW + 2
        before, healthy = len(server.calls), 1000
        assert [said.verdict for said in _ask(_judge(server), _items(200))] == ["yes", "no"] * 100
        assert len(server.calls) - before == 195


def test_an_address_that_is_no_api_is_left_alone_soon() -> None:
    with JudgeServer(lambda call: NONSENSE["a page"]) as server:
        with pytest.raises(InputError, match=r"^judge\.base_url: .* calls in a row failed .*is no chat completion"):
            _ask(_judge(server, num_concurrent_requests=2), _items(200))
        assert len(server.calls) <= MOST_FAILURES_IN_A_ROW + 2


def test_cost_and_failures_are_said(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_terminal", None)
    prices = {"usd_per_million_prompt_tokens": 2.5, "usd_per_million_completion_tokens": 10.0}
    with JudgeServer(lambda call: fails(400) if _of(call) == 3 else _parity(call)) as server:
        _ask(_judge(server, num_concurrent_requests=1, **prices), _items(4))
        _ask(_judge(server, num_concurrent_requests=1), _items(4))
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("  judge: 4 calls, 300 prompt and 6 completion tokens, $0.0008, 1 failed (such as ")
    assert lines[1] == "  judge: 3 of 4 answers of openai (gpt-4o) are in the cache"
    assert "$" not in lines[2]


def _made(plan: list[PlanRow]) -> list[Generation]:
    return [Generation(id=row.id, text=f"Text number {n}.", num_prompt_tokens=1, num_tokens=9,
                       error="Timeout" if n == 0 else "") for n, row in enumerate(plan)]  # fmt: skip


def _evaluation(output: Path, judge: OpenAIJudge) -> PrefillConfig:
    engine = {"type": "openai", "base_url": "http://unused", "model": "m"}
    fields: dict[str, Any] = {"output": output, "engine": engine, "judge": judge, "ks": (10, 20),
                              "source": SourceConfig(num_evaluation_prompts=4)}  # fmt: skip
    return PrefillConfig.model_validate(fields)


def test_evaluation_by_an_endpoint_goes_on_after_it_was_stopped(tmp_path: Path) -> None:
    script: Script = _parity
    with JudgeServer(lambda call: script(call)) as server:
        config = _evaluation(tmp_path / "out", _judge(server, num_concurrent_requests=1))
        script = lambda call: fails(401) if call.number > 3 else _parity(call)  # noqa: E731
        with pytest.raises(InputError, match=r"api_key_env"):
            prefill.run(config, _made)
        assert not (tmp_path / "out" / "record.json").exists()
        script = lambda call: fails(400) if _of(call) == 4 else _parity(call)  # noqa: E731
        record = prefill.run(config, _made)
        assert stage.judge_failed(config.output)
        assert not stage.is_finished(config.output)
    rows = read_rows(tmp_path / "out" / "verdicts.parquet", Verdict)
    assert len(server.calls) == 4 + len(rows) - 1 - 3
    verdicts = {n: row.verdict for n, row in enumerate(rows)}
    assert {n: verdicts[n] for n in range(6)} == {
        0: "unparsed", 1: "no", 2: "yes", 3: "no", 4: "unparsed", 5: "no",
    }  # fmt: skip
    assert (rows[1].raw, rows[1].error, rows[4].raw) == ("no", None, None)
    assert (record.counts["errors"], record.counts["judge_errors"], record.counts["unparsed"]) == (1, 1, 2)
    assert record.results["judge"] == "openai (gpt-4o), agreement with labels unknown"
    assert record.results["judge_identity"] == config.judge.identity()


def test_texts_on_which_the_judge_failed_are_asked_about_again_by_the_same_command(tmp_path: Path) -> None:
    script: Script = lambda call: fails(400) if _of(call) in (2, 4) else _parity(call)  # noqa: E731
    with JudgeServer(lambda call: script(call)) as server:
        config = _evaluation(tmp_path / "out", _judge(server))
        first = prefill.run(config, _made)
        calls, script = len(server.calls), _parity
        second = prefill.run(config, _made)
        assert len(server.calls) == calls + 2
        assert (first.counts["judge_errors"], second.counts["judge_errors"]) == (2, 0)
        assert (second.counts["unparsed"], second.fingerprint) == (1, first.fingerprint)
        assert stage.is_finished(config.output)
        assert prefill.run(config, _made) == second
        assert len(server.calls) == calls + 2
