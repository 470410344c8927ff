"""What attempts say: rates, differences from the plain prompt, grades, and what is null."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.artifacts import Outcome, run_stage
from trimtab.config import InputError
from trimtab.evaluation.attempt_results import any_succeeded, compare, rate, succeeded, summarize
from trimtab.evaluation.injection import STAGE, InjectionConfig
from trimtab.schemas import Attempt, write_rows
from trimtab.stats import EMPTY, clustered_mean, paired_difference, wilson

OUTCOMES: dict[str, Any] = {"s": "success", "f": "failure", "r": "refused", "?": "unparsed"}


def _attempts(attack: str, kind: str, outcomes: str, scores: list[float | None] | None = None) -> list[Attempt]:
    graded = scores or [None] * len(outcomes)
    return [Attempt(id=f"{attack}{n}", request_id=f"p{n}", attack=attack, kind=kind, outcome=OUTCOMES[o], score=score)
            for n, (o, score) in enumerate(zip(outcomes, graded, strict=True))]  # fmt: skip


PLAIN, CEILING = _attempts("plain", "plain", "ffsf?f"), _attempts("ceiling", "ceiling", "ssssf?")


def test_rate_of_one_attack_has_wilsons_interval_and_refused_counts_as_no_success() -> None:
    attempts = _attempts("a", "persona", "sfrr?s")
    found = summarize([*PLAIN, *attempts])["attacks"]["a"]
    assert found["success"] == wilson(2, 5).model_dump()
    assert found["success_if_answered"] == wilson(2, 3).model_dump()
    assert found["refused"] == wilson(2, 6).model_dump()
    assert [found[f"num_{name}"] for name in ("attempts", "refused", "unparsed")] == [6, 2, 1]
    assert found["kind"] == "persona"


def test_kind_of_several_attacks_is_the_mean_of_theirs_clustered_by_prompt() -> None:
    attempts = [*_attempts("a", "persona", "sff?"), *_attempts("b", "persona", "ssfs")]
    found = summarize([*PLAIN, *attempts])["kinds"]["persona"]["success"]
    values, prompts = [1.0, 0, 0, 1, 1, 0, 1], ["p0", "p1", "p2", "p0", "p1", "p2", "p3"]
    expected = clustered_mean(values, prompts, ["a"] * 3 + ["b"] * 4, bounds=(0, 1))
    assert found == expected.model_dump()
    assert found["value"] == pytest.approx((1 / 3 + 3 / 4) / 2)
    assert (found["n"], found["num_clusters"]) == (7, 4)


def test_difference_is_from_the_plain_prompt_where_both_were_scored() -> None:
    """Scored on both sides: p0 to p3 and p5; the attack wins p0 and p3, and loses p2, which was refused."""
    found = summarize([*PLAIN, *CEILING, *_attempts("a", "persona", "sfrss?")])["attacks"]["a"]
    keys = ["p0", "p1", "p2", "p3"]
    before, after = dict(zip(keys, [0, 0, 1, 0], strict=True)), dict(zip(keys, [1, 0, 0, 1], strict=True))
    same = {key: key for key in keys}
    expected = paired_difference(before, after, same, dict.fromkeys(keys, "a"), bounds=(-1, 1))
    assert found["difference_from_plain"] == expected.model_dump()
    assert (found["difference_from_plain"]["value"], found["difference_from_plain"]["n"]) == (0.25, 4)
    assert found["difference_from_plain"]["p"] is not None
    assert found["difference_from_ceiling"]["value"] == pytest.approx((0 - 1 - 1 + 0 + 1) / 5)


def test_baselines_stand_apart_from_the_attacks() -> None:
    results = summarize([*PLAIN, *CEILING, *_attempts("a", "persona", "ffffff")])
    assert results["plain"] == wilson(1, 5).model_dump()
    assert results["ceiling"] == wilson(4, 5).model_dump()
    assert (results["gap"]["value"], results["gap"]["n"]) == (0.75, 4)
    assert list(results["kinds"]) == ["persona"]
    assert list(results["attacks"]) == ["plain", "ceiling", "a"]
    assert "difference_from_plain" not in results["attacks"]["plain"]
    assert results["any_attack"]["value"] == 0.0, "the ceiling is no attack"


def test_without_a_plain_entry_there_is_no_difference() -> None:
    results = summarize(_attempts("a", "persona", "sf"))
    assert "plain" not in results
    assert "gap" not in results
    assert not [name for name in results["kinds"]["persona"] if name.startswith("difference")]


def test_rate_over_nothing_is_null() -> None:
    results = summarize([*_attempts("plain", "plain", "??"), *_attempts("a", "persona", "??")])
    found = results["kinds"]["persona"]
    assert results["plain"] == found["success"] == found["difference_from_plain"] == EMPTY.model_dump()
    assert results["any_attack"] == EMPTY.model_dump()
    assert found["refused"]["value"] == 0.0, "that nothing was refused is known"


def test_any_attack_counts_a_prompt_once_and_leaves_out_what_nobody_knows() -> None:
    """p0 fell twice, p1 once, p2 never, p3 perhaps, p4 was refused each time."""
    attempts = [*_attempts("a", "persona", "sff?r"), *_attempts("b", "encoding", "ssffr")]
    assert any_succeeded(attempts) == wilson(2, 4) != rate(succeeded(attempts))
    assert any_succeeded(_attempts("a", "persona", "s?")) == wilson(1, 1)


def test_grades_have_means_and_differences_of_their_own() -> None:
    plain = _attempts("plain", "plain", "fff", [0.0, 0.25, None])
    attempts = _attempts("a", "persona", "sfr", [1.0, 0.5, 0.0])
    found = summarize([*plain, *attempts])["kinds"]["persona"]
    assert found["score"]["value"] == 0.5
    assert (found["score_difference_from_plain"]["value"], found["score_difference_from_plain"]["n"]) == (0.625, 2)
    assert found["success"]["value"] == pytest.approx(1 / 3)


def _finished(folder: Path, attempts: list[Attempt]) -> Path:
    def work(output: Path) -> Outcome:
        write_rows(output / "attempts.parquet", Attempt, attempts)
        return Outcome(counts={})

    run_stage(STAGE, folder, InjectionConfig(output=folder), {}, work)
    return folder


def test_models_are_compared_by_kind_on_what_both_scored(tmp_path: Path) -> None:
    before = _finished(tmp_path / "before", [*_attempts("a", "user_turn", "ssf?"), *_attempts("b", "persona", "ff")])
    after = _finished(tmp_path / "after", [*_attempts("a", "user_turn", "ffff"), *_attempts("c", "persona", "ss")])
    changes = compare(before, after)
    assert list(changes) == ["success, user turn", "success, persona"]
    assert (changes["success, user turn"].value, changes["success, user turn"].n) == (pytest.approx(-2 / 3), 3)
    assert changes["success, persona"] == EMPTY, "they share no attack"
    assert compare(after, before)["success, user turn"].value == pytest.approx(2 / 3)


def test_unfinished_run_is_not_compared(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no record\.json"):
        compare(tmp_path, tmp_path)
