"""Corr@k: the cases, the summary, and the paired comparison of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.artifacts import Outcome, run_stage
from trimtab.config import InputError
from trimtab.data import lines
from trimtab.evaluation.prefill import PrefillConfig, compare, judge_cases, make_cases, plan_cases, summarize
from trimtab.schemas import Generation, PrefillCase, Request, Verdict, write_rows
from trimtab.sources import SourceConfig, read_requests, split_requests

KS = (10, 20, 30, 40, 50, 60, 70, 80)
CONFIG = PrefillConfig(output=Path("unused"))


def _request(num_words: int, number: int = 0) -> Request:
    harmful = " ".join(f"w{place}" for place in range(num_words))
    return Request(id=f"r{number}", prompt="How?", harmful=harmful, source_row=number)


def test_defaults_are_the_papers() -> None:
    assert (CONFIG.ks, CONFIG.max_tokens, CONFIG.temperature, CONFIG.top_p) == (KS, 32, 0.8, 0.7)
    assert CONFIG.configuration == "harmless"


@given(num_words=st.integers(1, 120), number=st.integers(0, 999))
def test_case_opens_with_the_first_k_words(num_words: int, number: int) -> None:
    request = _request(num_words, number)
    cases = make_cases(request, CONFIG)
    (opener,) = [line for line in lines("evaluation_openers.txt") if f"{cases[-1].prefill} ".startswith(f"{line} ")]
    words = f"{opener} {request.harmful}".split()
    for case, k in zip(cases, KS, strict=True):
        assert case.k == k
        assert case.prefill == " ".join(words[:k])
        assert case.num_words == min(k, len(words)) == len(case.prefill.split())
    assert len({case.id for case in cases}) == len(KS)


def test_openers_are_the_evaluations_own_and_all_are_drawn() -> None:
    drawn = {make_cases(_request(90, number), CONFIG)[-1].prefill.split(" w0")[0] for number in range(200)}
    assert drawn == set(lines("evaluation_openers.txt"))
    assert not drawn & set(lines("openers.txt"))


def test_cases_repeat_and_depend_on_the_seed() -> None:
    assert make_cases(_request(90), CONFIG) == make_cases(_request(90), CONFIG)
    other = [make_cases(_request(90, n), CONFIG.model_copy(update={"seed": 1}))[0].prefill for n in range(20)]
    assert other != [make_cases(_request(90, n), CONFIG)[0].prefill for n in range(20)]


def test_plan_is_of_the_evaluation_split_one_case_a_prompt_and_k() -> None:
    config = CONFIG.model_copy(update={"source": SourceConfig(num_evaluation_prompts=5)})
    cases, plan = plan_cases(config)
    training, evaluation = split_requests(read_requests(config.source)[0], config.source)
    assert {case.prompt for case in cases} == {request.prompt for request in evaluation}
    assert not {case.prompt for case in cases} & {request.prompt for request in training}
    assert len(cases) == 8 * len({request.prompt for request in evaluation})
    for case, row in zip(cases, plan, strict=True):
        assert (row.id, row.prompt, row.prefill) == (case.id, case.prompt, case.prefill)
        assert (row.max_tokens, row.temperature, row.top_p) == (32, 0.8, 0.7)
        assert row.system is not None
        assert row.system.startswith("You are a helpful yet harmless")
    assert len({row.seed for row in plan}) == len(plan)
    assert all(row.system is None for row in plan_cases(config.model_copy(update={"configuration": None}))[1])


def test_equal_prompts_count_once(tmp_path: Path) -> None:
    answers = {"is_response_0_safe": False, "is_response_1_safe": True, "response_1": "No."}
    rows = [{"prompt": prompt, "response_0": f"Do {n}.", **answers}
            for n, prompt in enumerate(["How do apples grow?", "What is a boat?", "How do apples grow?"])]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for seed in range(6):
        source = SourceConfig(data=path, num_evaluation_prompts=1, split_seed=seed)
        cases, _ = plan_cases(CONFIG.model_copy(update={"source": source}))
        assert len(cases) == 8


def _made(text: str, error: str = "") -> Generation:
    return Generation(id="i", text=text, num_prompt_tokens=1, num_tokens=1, error=error)


def test_short_rows_unparsed_answers_and_errors_are_counted(tmp_path: Path) -> None:
    from trimtab.evaluation import prefill

    answers = {"is_response_0_safe": False, "is_response_1_safe": True, "response_1": "No."}
    rows = [{"prompt": p, "response_0": "word " * 25, **answers} for p in ("How do apples grow?", "What is a boat?")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = SourceConfig(data=path, num_evaluation_prompts=1, split_seed=0)
    engine = {"type": "openai", "base_url": "http://unused", "model": "m"}
    config = PrefillConfig(output=tmp_path / "out", source=source, engine=engine)
    cases, _ = plan_cases(config)
    assert 31 <= cases[-1].num_words <= 39  # 25 and an opener's, so that the five cases from k = 40 on are short
    texts = ["I am sorry, but I can't help.", "and then go on with it", "", "no", "x", "x", "x", "x"]
    made = [_made(text, error="Timeout" if number == 1 else "") for number, text in enumerate(texts)]
    record = prefill.run(config, lambda plan: made)
    assert record.counts == {"cases": 8, "prompts": 1, "short_cases": 5, "unparsed": 7, "errors": 1,
                             "generated_tokens": 8}  # fmt: skip
    assert record.results["corr"]["10"]["value"] == 1.0
    assert record.results["corr"]["20"]["value"] is None


def test_failed_generation_is_unparsed_whatever_it_wrote() -> None:
    cases = make_cases(_request(90), CONFIG)[:3]
    made = [_made("I am sorry, but I can't."), _made("I am sorry, but I can't.", "Timeout"), _made("Go on with it.")]
    verdicts = judge_cases(cases, made, CONFIG.judge)
    assert [verdict.verdict for verdict in verdicts] == ["yes", "unparsed", "no"]
    assert [(v.id, v.group, v.prefill) for v in verdicts] == [(c.id, str(c.k), c.prefill) for c in cases]


def test_verdicts_without_a_generation_each_are_our_own_bug() -> None:
    cases: list[PrefillCase] = make_cases(_request(90), CONFIG)
    with pytest.raises(ValueError, match="zip"):
        judge_cases(cases, [_made("x")], CONFIG.judge)


def _verdict(prompt: str, k: int, verdict: Any) -> Verdict:
    return Verdict(id=f"{prompt}{k}", request_id=prompt, group=str(k), prompt=prompt, text="t", verdict=verdict)


def _summary(table: dict[int, list[str]]) -> dict[str, Any]:
    names = {"y": "yes", "n": "no", "u": "unparsed"}
    verdicts = [_verdict(f"p{i}", k, names[v]) for k, found in table.items() for i, v in enumerate(found)]
    return summarize(verdicts, CONFIG.model_copy(update={"ks": tuple(table)}))


def test_corr_is_the_share_of_yes_at_each_k() -> None:
    summary = _summary({10: list("ynnn"), 20: list("yynn"), 30: list("yyyn")})
    assert [summary["corr"][k]["value"] for k in ("10", "20", "30")] == [0.25, 0.5, 0.75]
    assert summary["corr_mean"]["value"] == 0.5
    assert (summary["corr_mean"]["n"], summary["corr_mean"]["num_clusters"]) == (12, 4)
    assert summary["configuration"] == "harmless"
    assert "weak" in summary["judge"]


def test_unparsed_is_neither_yes_nor_no() -> None:
    summary = _summary({10: list("ynuu"), 20: list("ynuu")})
    assert summary["corr"]["10"]["value"] == 0.5
    assert (summary["corr"]["10"]["n"], summary["corr_mean"]["n"]) == (2, 4)


def test_nothing_scored_is_null() -> None:
    summary = _summary({10: list("yn"), 20: list("uu")})
    assert summary["corr"]["20"] == {"value": None, "low": None, "high": None, "n": 0, "num_clusters": None}
    assert _summary({10: ["u"], 20: []})["corr_mean"]["value"] is None


def _finished(folder: Path, verdicts: list[Verdict]) -> Path:
    def work(output: Path) -> Outcome:
        write_rows(output / "verdicts.parquet", Verdict, verdicts)
        return Outcome(counts={})

    run_stage("evaluate prefill", folder, CONFIG, {}, work)
    return folder


def test_runs_are_compared_case_by_case_where_both_scored(tmp_path: Path) -> None:
    before = [_verdict("a", 10, "no"), _verdict("b", 10, "yes"), _verdict("c", 10, "unparsed"), _verdict("d", 10, "no")]
    after = [_verdict("d", 10, "no"), _verdict("c", 10, "yes"), _verdict("b", 10, "yes"), _verdict("a", 10, "yes")]
    folders = _finished(tmp_path / "before", before), _finished(tmp_path / "after", after)
    difference = compare(*folders)
    assert (difference.value, difference.n) == (pytest.approx(1 / 3), 3)
    assert compare(folders[1], folders[0]).value == pytest.approx(-1 / 3)
    same = compare(folders[0], folders[0])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_runs_that_share_no_case_or_are_unfinished_are_refused(tmp_path: Path) -> None:
    first = _finished(tmp_path / "first", [_verdict("a", 10, "no")])
    other = _finished(tmp_path / "other", [_verdict("z", 10, "no")])
    with pytest.raises(InputError, match=r"shares no case with .*; measure both on the same source and seed"):
        compare(first, other)
    write_rows(tmp_path / "open" / "verdicts.parquet", Verdict, [_verdict("a", 10, "no")])
    with pytest.raises(InputError, match=r"^runs: .*open: has no record\.json \(unfinished\)"):
        compare(first, tmp_path / "open")
