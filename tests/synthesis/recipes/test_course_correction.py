"""The course-correction recipe: filter, drafts, plans and ranked groups (arXiv 2407.16637, §4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config import InputError
from trimtab.data import lines
from trimtab.safety import SafetyConfig
from trimtab.schemas import Generation, RankedGroup, Request
from trimtab.sources import SourceConfig, read_requests
from trimtab.synthesis.recipes.course_correction import (
    CourseCorrectionRecipe,
    Draft,
    build_group,
    draft,
    keep,
    plan_rows,
)

HARMFUL = "First, wait. Then, go! Is it easy? Yes; it is: quite - easy (really). Do it, now. Fine, then."


def _request(number: int = 0, **fields: Any) -> Request:
    values = {"id": f"r{number}", "prompt": "How do I skip school?", "harmful": HARMFUL, "source_row": number}
    return Request(**(values | fields))


def _recipe(**fields: Any) -> CourseCorrectionRecipe:
    return CourseCorrectionRecipe(**fields)


def _made(item: Draft, recipe: CourseCorrectionRecipe, **texts: str) -> dict[str, Generation]:
    kinds = {row.kind: texts.get(row.kind, f" it is wrong ({row.kind}).") for row in plan_rows(item, recipe)}
    return {
        kind: Generation(id=kind, text=text, num_prompt_tokens=5, num_tokens=recipe.max_tokens - 1)
        for kind, text in kinds.items()
    }


@pytest.mark.parametrize(
    ("prompt", "num_words", "kept"),
    [
        ("How do I?", 81, True), ("how", 81, True), ("Tell me what", 81, True), ("What?", 81, True),
        ("Somehow, tell me", 81, True), ("How do I?", 80, False), ("Tell me why", 81, False), ("HOW, WHAT", 81, False),
    ],
)  # fmt: skip
def test_filter_is_the_papers(prompt: str, num_words: int, kept: bool) -> None:
    assert keep(_request(prompt=prompt, harmful="word \n" * num_words), _recipe()) is kept


def test_defaults_are_the_papers() -> None:
    recipe = _recipe()
    assert (recipe.min_words, recipe.num_cuts, recipe.max_tokens) == (80, 4, 128)
    assert (len(recipe.opener_lines()), len(recipe.trigger_lines())) == (15, 15)


def test_drafts_repeat_and_depend_on_seed_and_request() -> None:
    recipe = _recipe()
    assert draft(_request(), recipe) == draft(_request(), recipe)
    drawn = {draft(_request(number), recipe).triggers for number in range(20)}
    assert len(drawn) > 15
    assert draft(_request(), _recipe(seed=1)).triggers != draft(_request(), recipe).triggers


def test_draft_does_not_depend_on_what_was_drafted_before() -> None:
    recipe = _recipe()
    alone = draft(_request(3), recipe)
    for number in range(5):
        draft(_request(number), recipe)
    assert draft(_request(3), recipe) == alone


@given(number=st.integers(0, 10**6), num_cuts=st.integers(1, 6))
def test_one_opener_gives_shared_prefixes(number: int, num_cuts: int) -> None:
    item = draft(_request(number), _recipe(num_cuts=num_cuts))
    assert len(item.starts) == len(item.triggers) == num_cuts
    for shorter, longer in zip(item.starts, [*item.starts[1:], item.full_harmful], strict=True):
        assert longer.startswith(shorter)
        assert item.full_harmful.startswith(shorter)
    (opener,) = [line for line in lines("openers.txt") if item.full_harmful == f"{line} {HARMFUL}"]
    assert all(start.startswith(f"{opener} First,") for start in item.starts)


def test_paper_mode_draws_an_opener_each_and_leaves_the_harmful_response_as_it_is() -> None:
    items = [draft(_request(number), _recipe(mode="paper")) for number in range(10)]
    assert all(item.full_harmful == HARMFUL for item in items)
    openers = [{start.split(" First,")[0] for start in item.starts} for item in items]
    assert set().union(*openers) <= set(lines("openers.txt"))
    assert max(map(len, openers)) > 1


def test_response_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="has 1 punctuation characters, fewer than num_cuts=4"):
        draft(_request(harmful="No points here."), _recipe())


def test_plan_is_the_safe_answer_and_the_open_turns() -> None:
    recipe = _recipe(max_tokens=33, seed=4)
    item = draft(_request(), recipe)
    rows = plan_rows(item, recipe)
    assert [row.kind for row in rows] == ["SR", "SYN_1", "SYN_2", "SYN_3", "SYN_4"]
    assert rows[0].prefill == ""
    expected = [f"{start} {trigger}" for start, trigger in zip(item.starts, item.triggers, strict=True)]
    assert [row.prefill for row in rows[1:]] == expected
    for row in rows:
        assert row.system == SafetyConfig(preset="harmless").render()
        assert (row.prompt, row.request_id, row.max_tokens, row.temperature) == (item.request.prompt, "r0", 33, 0.0)


@pytest.mark.parametrize(("safe", "kinds"), [("I won't.", 4), (None, 5)])
def test_safe_answer_of_the_source_needs_no_generation(safe: str | None, kinds: int) -> None:
    recipe = _recipe(safe_response="source")
    item = draft(_request(safe=safe), recipe)
    assert len(plan_rows(item, recipe)) == kinds
    best = build_group(item, _made(item, recipe), recipe).responses[0]
    assert best.role == "SR"
    assert best.text == (safe or "it is wrong (SR).")


def test_plan_ids_of_the_shipped_sample_are_unique() -> None:
    recipe = _recipe()
    requests = [r for r in read_requests(SourceConfig())[0] if keep(r, recipe)]
    ids = [row.id for request in requests for row in plan_rows(draft(request, recipe), recipe)]
    assert len(ids) == 5 * len(requests) == len(set(ids))
    assert len(requests) >= 96


def test_group_ranks_earlier_corrections_above_later_ones_and_the_harmful_response_last() -> None:
    recipe = _recipe()
    item = draft(_request(), recipe)
    group = build_group(item, _made(item, recipe), recipe)
    assert [response.role for response in group.responses] == ["SR", "SYN_1", "SYN_2", "SYN_3", "SYN_4", "FHR"]
    assert group.responses[0].text == "it is wrong (SR)."
    assert group.responses[-1].text == item.full_harmful
    for response, start, trigger in zip(group.responses[1:5], item.starts, item.triggers, strict=True):
        assert response.text == f"{start} {trigger} it is wrong ({response.role})."
        assert response.text[: response.num_prefill_chars] == start
    assert (group.num_demonstrations, group.configuration, group.source) == (5, "harmless", "r0")
    assert group.system == SafetyConfig(preset="harmless").render()


def test_group_ids_differ_between_requests_and_recipes() -> None:
    def group_id(number: int, **fields: Any) -> str:
        recipe = _recipe(**fields)
        item = draft(_request(number), recipe)
        return build_group(item, _made(item, recipe), recipe).id

    assert len({group_id(0), group_id(1), group_id(0, seed=1), group_id(0, mode="paper")}) == 4
    assert group_id(0) == group_id(0)


def test_candidates_are_rows_of_their_own_and_need_sampling() -> None:
    recipe = _recipe(num_candidates=3, temperature=0.8, top_p=0.9)
    rows = plan_rows(draft(_request(), recipe), recipe, shard=7)
    assert [row.kind for row in rows[:6]] == ["SR"] * 3 + ["SYN_1"] * 3
    assert len({row.id for row in rows}) == 15
    assert {(row.temperature, row.top_p, row.shard) for row in rows} == {(0.8, 0.9, 7)}
    with pytest.raises(ValueError, match="greedy candidates are all the same"):
        _recipe(num_candidates=2)


def _sr(text: str, num_tokens: int, **fields: Any) -> RankedGroup:
    recipe = _recipe(**fields)
    item = draft(_request(), recipe)
    made = _made(item, recipe)
    made["SR"] = made["SR"].model_copy(update={"text": text, "num_tokens": num_tokens})
    return build_group(item, made, recipe)


@pytest.mark.parametrize(
    ("text", "trimmed"),
    [
        ("One. Two! And th", "One. Two!"), ('He said "no." And th', 'He said "no."'), ("One (two.) Thr", "One (two.)"),
        ("Version 3.5 of it", "Version 3.5 of it"), ("No end at all", "No end at all"), ("One. Two.", "One. Two."),
        ("One.\nTwo", "One."),
    ],
)  # fmt: skip
def test_unfinished_generation_ends_at_its_last_whole_sentence(text: str, trimmed: str) -> None:
    assert _sr(text, 128).responses[0].text == trimmed
    assert _sr(text, 127).responses[0].text == text
    assert _sr(text, 128, trim_unfinished=False).responses[0].text == text


def test_own_openers_and_triggers(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("  Yes.  \n\n", encoding="utf-8")
    item = draft(_request(), _recipe(openers=path, triggers=path))
    assert item.starts[0].startswith("Yes. First,")
    assert set(item.triggers) == {"Yes."}
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(InputError, match=r"^openers: .*: is empty; give at least one line$"):
        draft(_request(), _recipe(openers=path))
    with pytest.raises(InputError, match=r"^triggers: .*: no such file; give a text file"):
        draft(_request(), _recipe(triggers=tmp_path / "absent"))
