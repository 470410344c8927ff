"""One shard's part of the plan and its groups, from files alone; retries; estimates. No Ray: few shards run here."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from trimtab.config import InputError
from trimtab.files import AnyPath
from trimtab.schemas import (
    Generation,
    PlanRow,
    Quarantined,
    RankedGroup,
    Request,
    group_file,
    iter_groups,
    read_rows,
    write_rows,
)
from trimtab.sources import SourceConfig
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.estimate import Estimate, estimate
from trimtab.synthesis.generating import Synthesis, measured_rate, planned_ids
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.synthesis.requests import read_summary, request_file, write_requests
from trimtab.synthesis.retries import attempts_of, plan_retry, quarantined, retry_folders
from trimtab.synthesis.run import plan
from trimtab.synthesis.shards import ShardWork, assemble_shard, over_shards, plan_shard, shard_files

HARMFUL = "First, wait. Then, go! Is it easy? Yes; it is: quite - easy (really). Do it, now. Fine, then."
RECIPE = CourseCorrectionRecipe()


def make_requests(num: int) -> list[Request]:
    return [Request(id=f"r{n}", prompt=f"How do I skip day {n}?", harmful=HARMFUL, source_row=n) for n in range(num)]


def _started(output: Path, requests: list[Request], per_shard: int = 2) -> ShardWork:
    write_requests(output, (requests, [], {}), per_shard)
    return ShardWork(output, RECIPE, QualityConfig(), None)


def _plan(work: ShardWork) -> list[PlanRow]:
    summary = read_summary(work.output)
    assert summary is not None
    over_shards(partial(plan_shard, work, "", 0), range(min(2, summary["shards"])), "plan")
    return read_rows(work.output / "plan", PlanRow)


def write_generations(
    folder: AnyPath, name: str, rows: list[PlanRow], bad: tuple[str, ...] = (), text: str = ""
) -> None:
    made = [
        Generation(id=row.id, num_prompt_tokens=5, num_tokens=7, shard=row.shard, seconds=2, finished_at=10 + number,
                   text=text if row.id in bad else f" I would rather help you with something else, {row.id}.")
        for number, row in enumerate(rows)
    ]  # fmt: skip
    write_rows(folder / "generations" / f"{name}.parquet", Generation, made)


def _assembled(work: ShardWork, folders: list[Path]) -> list[dict[str, int]]:
    files = shard_files([folder / "generations" for folder in folders])
    done = ShardWork(work.output, RECIPE, QualityConfig(), None, files)
    return over_shards(partial(assemble_shard, done), range(2), "groups")


def test_shards_plan_and_assemble_their_own_rows_alone(tmp_path: Path) -> None:
    work = _started(tmp_path, make_requests(4))
    plan = _plan(work)
    assert [row.shard for row in plan] == [0] * 10 + [1] * 10
    assert planned_ids(tmp_path).names() == sorted(row.id for row in plan)
    write_generations(tmp_path, "a", plan[:7])
    write_generations(tmp_path, "b", plan[7:15])  # rows of both shards in one file
    write_generations(tmp_path, "c", plan[15:])
    counts = _assembled(work, [tmp_path])
    assert [count["groups"] for count in counts] == [4, 4]
    assert sum(count["pairs"] for count in counts) == 8 * 15
    prompts = [group.prompt for group in read_rows(group_file(tmp_path, 1), RankedGroup)]
    assert set(prompts) == {"How do I skip day 2?", "How do I skip day 3?"}
    assert {group.configuration for group in iter_groups(tmp_path)} == {"harmless", "uncensored"}


def test_request_that_cannot_be_cut_is_quarantined_once(tmp_path: Path) -> None:
    requests = [*make_requests(1), Request(id="x", prompt="How?", harmful="No points", source_row=8)]
    work = _started(tmp_path, requests)
    plan = _plan(work)
    write_generations(tmp_path, "a", plan)
    counts = over_shards(partial(assemble_shard, ShardWork(tmp_path, RECIPE, QualityConfig(), None, shard_files(
        [tmp_path / "generations"]))), range(1), "groups")  # fmt: skip
    assert (counts[0]["groups"], counts[0]["requests_without_group"]) == (2, 1)
    (bad,) = quarantined(tmp_path)
    assert (bad.stage, bad.id, bad.source_row) == ("plan", "x", 8)
    assert "fewer than num_cuts=4" in bad.reason


def test_quarantined_generation_is_retried_warmer_and_then_completes_its_group(tmp_path: Path) -> None:
    work = _started(tmp_path, make_requests(4))
    plan = _plan(work)
    write_generations(tmp_path, "a", plan, bad=(plan[3].id,))
    assert [count["groups"] for count in _assembled(work, [tmp_path])] == [2, 4]
    (bad,) = quarantined(tmp_path)
    assert (bad.id, bad.source_row, bad.attempts) == (plan[3].id, 0, 1)

    assert plan_retry(tmp_path, ("",), 0.7) == 1
    (folder,) = retry_folders(tmp_path, "")
    (row,) = read_rows(folder / "plan", PlanRow)
    assert (row.id, row.temperature, row.shard) == (plan[3].id, 0.7, 0)
    write_generations(folder, "a", [row], bad=(row.id,))
    assert [count["groups"] for count in _assembled(work, [tmp_path, folder])] == [2, 4]
    assert quarantined(tmp_path)[0].attempts == 2

    assert plan_retry(tmp_path, ("",), 0.7) == 1
    assert attempts_of(tmp_path, ("",)) == 2
    last = retry_folders(tmp_path, "")[-1]
    write_generations(last, "a", read_rows(last / "plan", PlanRow))
    assert [count["groups"] for count in _assembled(work, [tmp_path, folder, last])] == [4, 4]
    assert quarantined(tmp_path) == []
    assert plan_retry(tmp_path, ("",), 0.7) == 0


def test_summary_comes_last(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    bad = Quarantined(source_row=1, reason="r", content="c")
    assert write_requests(tmp_path, (make_requests(5), [bad], {"near_duplicates": 3}), 2) == read_summary(tmp_path)
    assert read_summary(tmp_path) == {"near_duplicates": 3, "requests": 5, "shards": 3}
    assert len(read_rows(request_file(tmp_path, 2), Request)) == 1
    assert quarantined(tmp_path) == [bad]


def test_estimate_counts_rows_and_tokens(tmp_path: Path, tiny_tokenizer_folder: Path) -> None:
    rows = _plan(_started(tmp_path, make_requests(2)))
    found = estimate(sorted((tmp_path / "plan").glob("*.parquet")), tiny_tokenizer_folder, 64.0)
    assert (found.num_rows, found.most_new_tokens, found.sampled) == (len(rows), 128 * len(rows), False)
    assert found.engine_hours == pytest.approx(128 * 10 / 64 / 3600)
    assert "engine-hours: at most 0.01 at 64 tokens/s" in "".join(found.lines(3))
    assert "unknown" in "".join(Estimate(1, 1, 1, False, None).lines(1))


def test_measured_rate_leaves_out_the_time_between_two_runs(tmp_path: Path) -> None:
    def row(number: int, end: float) -> Generation:
        return Generation(id=str(number), text="x", num_prompt_tokens=1, num_tokens=50, seconds=5, finished_at=end)

    folder = tmp_path / "generations"
    write_rows(folder / "a.parquet", Generation, [row(1, 105), row(2, 108)])  # busy from 100 to 108
    write_rows(folder / "b.parquet", Generation, [row(3, 5002)])  # and from 4997 to 5002
    assert measured_rate([folder]) == pytest.approx(150 / 13)
    assert measured_rate([tmp_path / "absent"]) is None


def test_model_that_answers_nothing_gives_no_output_but_says_why(tmp_path: Path) -> None:
    config = SynthesisConfig(output=tmp_path, recipe=RECIPE)
    synthesis = Synthesis(config, RECIPE, None, tmp_path)
    synthesis.summary = {"requests": 2, "shards": 1}
    bad = [Quarantined(source_row=0, reason="SR: the model wrote nothing", content="", stage="generation")]
    with pytest.raises(
        InputError, match=r"none of 2 requests gave a group \(SR: the model wrote nothing\); see .*quarant"
    ):
        synthesis.refuse_nothing(0, bad)
    synthesis.refuse_nothing(1, bad)


def test_output_that_lost_most_of_its_requests_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesis = Synthesis(SynthesisConfig(output=tmp_path, recipe=RECIPE), RECIPE, None, tmp_path)
    synthesis.summary = {"requests": 3, "shards": 1}
    bad = [Quarantined(source_row=n, reason="SR: loop", content="", stage="generation", id=str(n)) for n in range(2)]
    synthesis.refuse_nothing(1, bad)
    assert "WARNING: 2 rows of 3 requests are quarantined, mostly: SR: loop" in capsys.readouterr().out


@pytest.mark.parametrize("num_usable", [2, 0])
def test_plan_says_what_it_set_aside_and_refuses_a_plan_of_nothing(tmp_path: Path, num_usable: int) -> None:
    row = {"response_0": HARMFUL * 8, "response_1": "No.", "is_response_0_safe": False, "is_response_1_safe": True}
    bad = row | {"response_0": "wait and then go on " * 30}
    rows = [(row if n < num_usable else bad) | {"prompt": f"How do I skip {n} {w}?"} for n, w in enumerate("abcd")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = SourceConfig(data=tmp_path / "rows.jsonl", num_evaluation_prompts=0)
    recipe = RECIPE.model_copy(update={"source": source, "near_duplicates": None})
    endpoint = {"type": "openai", "base_url": "x", "model": "m"}
    config = SynthesisConfig(output=tmp_path / "out", recipe=recipe, engine=endpoint)
    if not num_usable:
        with pytest.raises(InputError, match=r"none of 4 requests gave a group \(the harmful response has 0 punct"):
            plan(config)
        return
    lines = plan(config)
    assert "4 requests" in lines[0]
    assert lines[1] == f"2 rows set aside, with their reasons: {tmp_path / 'out' / 'quarantine'}"
    assert lines[2].startswith("10 rows, about ")
    assert lines[-1].endswith(" MiB of text")
