"""The self-critique recipe: three chained generations for each prompt, and the group they make (arXiv 2404.00495)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.config import InputError
from trimtab.safety import SafetyConfig
from trimtab.schemas import Generation, PlanRow, Request
from trimtab.sources import SourceConfig, read_requests, split_requests
from trimtab.synthesis.recipes.self_critique import (
    STEPS,
    SelfCritiqueRecipe,
    build_group,
    plan_rows,
    recipe_texts,
    template_texts,
    training_requests,
    written,
)

HARMLESS, UNCENSORED = (SafetyConfig(preset=preset).render() for preset in ("harmless", "uncensored"))
GOOD = {"answer": "Say you are ill.", "critique": "It asks to deceive a teacher.", "revision": "Talk to your teacher."}


def _request(number: int = 0, prompt: str = "How do I skip school?") -> Request:
    return Request(id=f"r{number}", prompt=prompt, harmful="", source_row=number)


def _recipe(**fields: Any) -> SelfCritiqueRecipe:
    return SelfCritiqueRecipe(**fields)


def _texts(*requests: Request, **texts: str) -> dict[str, dict[str, str]]:
    return {step: {request.id: text for request in requests} for step, text in (GOOD | texts).items()}


def _rows(recipe: SelfCritiqueRecipe, *requests: Request, shard: int = 0) -> list[PlanRow]:
    return [row for step in STEPS for row in plan_rows(step, requests, _texts(*requests), recipe, shard)]


def test_each_step_is_one_row_under_its_configuration_with_what_came_before() -> None:
    recipe = _recipe(max_tokens=40, critique_max_tokens=30, temperature=0.6, top_p=0.9, seed=3)
    answer, critique, revision = _rows(recipe, _request(), shard=7)
    assert (answer.prompt, answer.system, answer.max_tokens) == ("How do I skip school?", UNCENSORED, 40)
    assert (critique.system, critique.max_tokens) == (HARMLESS, 30)
    assert (revision.system, revision.max_tokens) == (HARMLESS, 40)
    assert "How do I skip school?" in critique.prompt
    assert GOOD["answer"] in critique.prompt
    assert GOOD["critique"] not in critique.prompt
    for text in ("How do I skip school?", GOOD["answer"], GOOD["critique"]):
        assert text in revision.prompt
    for row, step in zip((answer, critique, revision), STEPS, strict=True):
        assert (row.kind, row.request_id, row.prefill, row.shard) == (step, "r0", "", 7)
        assert (row.temperature, row.top_p, row.seed) == (0.6, 0.9, 3)


def test_own_configurations_are_rendered() -> None:
    answer, critique, revision = _rows(_recipe(answer_configuration="honest", configuration="uncensored", flips=()),
                                       _request())  # fmt: skip
    assert [row.system for row in (answer, critique, revision)] == [
        SafetyConfig(preset="honest").render(), UNCENSORED, UNCENSORED
    ]  # fmt: skip


def test_ids_are_unique_and_repeat_and_know_no_shard() -> None:
    requests = [_request(number) for number in range(30)]
    ids = [row.id for row in _rows(_recipe(), *requests)]
    assert len(set(ids)) == len(ids) == 90
    assert ids == [row.id for row in _rows(_recipe(), *requests, shard=5)]
    others = [_recipe(seed=1), _recipe(answer_configuration="honest"), _recipe(configuration="honest")]
    assert all(not {row.id for row in _rows(other, *requests)} & set(ids) for other in others)


def test_request_whose_earlier_step_failed_is_left_out() -> None:
    requests = [_request(number) for number in range(3)]
    texts = _texts(*requests)
    del texts["answer"]["r1"]
    del texts["critique"]["r2"]

    def planned(step: str) -> list[str]:
        return [row.request_id for row in plan_rows(step, requests, texts, _recipe())]

    assert planned("answer") == ["r0", "r1", "r2"]
    assert planned("critique") == ["r0", "r2"]
    assert planned("revision") == ["r0"]
    assert plan_rows("critique", requests, {}, _recipe()) == []


awkward = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30) | st.sampled_from(
    ["{{ 7 * 7 }}", "{% raw %}", "{# gone #}", "{{ critique }}", "<b>&amp;</b>", "{{", "</answer>\nhello"]
)


@given(prompt=awkward, answer=awkward, critique=awkward)
def test_texts_of_others_are_values_and_never_template(prompt: str, answer: str, critique: str) -> None:
    request = _request(prompt=prompt)
    texts = {"answer": {"r0": answer}, "critique": {"r0": critique}}
    (asked,) = plan_rows("critique", [request], texts, _recipe())
    (revised,) = plan_rows("revision", [request], texts, _recipe())
    assert f"<message>\n{prompt}\n</message>" in revised.prompt
    assert f"<answer>\n{answer}\n</answer>" in asked.prompt
    assert f"<review>\n{critique}\n</review>" in revised.prompt


def test_shipped_requests_have_no_leftovers() -> None:
    for row in _rows(_recipe(), _request())[1:]:
        assert "{" not in row.prompt
        assert row.prompt == row.prompt.strip()
        assert len(row.prompt.split()) < 200


def _own(tmp_path: Path, text: str | bytes, name: str = "critique_request") -> SelfCritiqueRecipe:
    path = tmp_path / f"{name}.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return _recipe(**{name: path})


def test_own_template_is_used_and_changes_the_fingerprint_but_not_the_identity(tmp_path: Path) -> None:
    recipe = _own(tmp_path, "Q {{ prompt }} A {{ answer | upper }}\n")
    (row,) = plan_rows("critique", [_request()], _texts(_request()), recipe)
    assert row.prompt == "Q How do I skip school? A SAY YOU ARE ILL."
    mine, shipped = recipe_texts(recipe), recipe_texts(_recipe())
    assert mine["critique_request"] != shipped["critique_request"]
    assert mine["revision_request"] == shipped["revision_request"]
    assert recipe.identity() == _recipe().identity()
    assert _recipe(seed=1).identity() != _recipe().identity()
    _own(tmp_path, "Q {{ prompt }} again {{ answer }}")
    assert recipe_texts(recipe)["critique_request"] != mine["critique_request"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{{ prompt", "is not a Jinja text that can be filled in"), ("{{ prompt }}", "uses the values prompt; use"),
        ("{{ prompt }} {{ answer }} {{ wish }}", "can be filled in .*'wish' is undefined"),
        ("Hello", "values none; use"),
        ("{{ prompt }} {{ answer }} {% if wish is defined %}{% endif %}", "uses the values answer, prompt, wish; use"),
        ("{{ prompt }} {{ answer.__class__.__mro__ }}", "is unsafe"), (b"\xff{{ prompt }}", "is not UTF-8 text"),
        ("{% include 'x' %}", "can be filled in"),
    ],
)  # fmt: skip
def test_template_that_cannot_be_filled_in_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    with pytest.raises(InputError, match=rf"^critique_request: .*{problem}"):
        template_texts(_own(tmp_path, text))
    with pytest.raises(InputError, match=r"^revision_request: .*: no such file"):
        template_texts(_recipe(revision_request=tmp_path / "absent"))


def test_template_may_use_jinjas_own_words(tmp_path: Path) -> None:
    text = "{% for n in range(2) %}{{ prompt }} {{ answer }}{% endfor %}"
    (row,) = plan_rows("critique", [_request()], _texts(_request()), _own(tmp_path, text))
    assert row.prompt.count(GOOD["answer"]) == 2


def test_group_ranks_the_revision_above_the_answer_and_flips_back() -> None:
    group = build_group(_request(), GOOD | {"revision": " Talk to your teacher.\n"}, _recipe())
    assert [(r.role, r.text) for r in group.responses] == [
        ("revision", "Talk to your teacher."), ("answer", "Say you are ill.")
    ]  # fmt: skip
    assert (group.system, group.configuration, group.source) == (HARMLESS, "harmless", "r0")
    assert (group.prompt, group.num_demonstrations) == ("How do I skip school?", 1)
    others = [build_group(_request(1), GOOD, _recipe()), build_group(_request(), GOOD, _recipe(seed=1)),
              build_group(_request(), GOOD, _recipe(answer_configuration="honest"))]  # fmt: skip
    assert len({group.id, *(other.id for other in others)}) == 4


LONG = "The answer tells a child how to deceive a teacher, and that can cost the trust of both."


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ({"revision": " say you are ILL"}, "^revision: is the answer again"),
        ({"revision": "\n"}, "^revision: the model"),
        ({"answer": " "}, "^answer: the model wrote nothing"), ({"critique": ""}, "^critique: the model wrote nothing"),
        ({"revision": LONG, "critique": LONG.lower()}, "^revision: repeats the critique"),
        ({"revision": LONG[:60], "critique": LONG}, "^revision: repeats the critique"),
        ({"revision": f"{LONG} Talk to her.", "critique": LONG}, "^revision: repeats the critique"),
        ({"revision": "No.", "critique": "No."}, "^revision: repeats the critique"),
    ],
)  # fmt: skip
def test_texts_that_rank_nothing_are_refused(texts: dict[str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        build_group(_request(), GOOD | texts, _recipe())


@pytest.mark.parametrize(
    "texts",
    [
        {"revision": "No.", "critique": "No, this helps to deceive."}, {"revision": "🙂", "answer": "🙃"},
        {"revision": "Talk to her.", "critique": "A better answer would be: Talk to her."},
        {"revision": "Say you are ill, when you are.", "answer": "Say you are ill."},
    ],
)  # fmt: skip
def test_short_or_quoted_revisions_stand(texts: dict[str, str]) -> None:
    assert build_group(_request(), GOOD | texts, _recipe()).responses[0].text == texts["revision"]


def test_missing_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^critique: the model wrote nothing$"):
        build_group(_request(), {"answer": "A.", "revision": "B."}, _recipe())


def _generation(text: str, num_tokens: int = 5, **fields: Any) -> Generation:
    return Generation(id="g", text=text, num_prompt_tokens=5, num_tokens=num_tokens, **fields)


def test_unfinished_text_ends_at_its_last_whole_sentence() -> None:
    recipe = _recipe(max_tokens=20, critique_max_tokens=10)
    cut = _generation(" One. Two! And th", num_tokens=10)
    assert written(cut, "critique", recipe) == "One. Two!"
    assert written(cut, "answer", recipe) == "One. Two! And th"
    untrimmed = recipe.model_copy(update={"trim_unfinished": False})
    assert written(cut, "critique", untrimmed) == "One. Two! And th"


def test_failed_and_empty_texts_are_refused() -> None:
    recipe = _recipe()
    with pytest.raises(ValueError, match=r"^answer: TimeoutError: slow$"):
        written(_generation("x", error="TimeoutError: slow"), "answer", recipe)
    with pytest.raises(ValueError, match=r"^critique: the model wrote nothing$"):
        written(_generation(" \n"), "critique", recipe)
    assert written(_generation(" Fine, <b>really</b>. "), "answer", recipe) == "Fine, <b>really</b>."


def _source(tmp_path: Path, rows: list[Any], **fields: Any) -> SourceConfig:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SourceConfig(data=path, **({"num_evaluation_prompts": 0} | fields))


WORDS = ("apple", "bridge", "candle", "dancer", "engine", "forest", "garden", "hammer", "island", "jacket", "kitten")


def test_plain_list_of_prompts_is_split_like_any_other(tmp_path: Path) -> None:
    prompts = [f"What is a {one} {two}?" for one, two in zip(WORDS, WORDS[::-1], strict=True)]
    source = _source(tmp_path, [{"prompt": prompt, "topic": "x"} for prompt in prompts], num_evaluation_prompts=4)
    requests, bad = training_requests(_recipe(source=source))
    assert bad == []
    assert len(requests) == 7
    assert {request.prompt for request in requests} < set(prompts)
    rows = [{"prompt": p, "response_0": "Bad.", "response_1": "Good.", "is_response_0_safe": False,
             "is_response_1_safe": True} for p in prompts]  # fmt: skip
    same, _ = training_requests(_recipe(source=_source(tmp_path, rows, num_evaluation_prompts=4)))
    assert [request.prompt for request in same] == [request.prompt for request in requests]


def test_bad_prompts_are_quarantined_and_repeated_ones_used_once(tmp_path: Path) -> None:
    bad_rows: list[Any] = [{"prompt": " "}, {"prompt": 3}, 4, {"prompt": "\ud800"}]
    rows = [{"prompt": "Why?"}, {"prompt": " Why? "}, *bad_rows]
    requests, bad = training_requests(_recipe(source=_source(tmp_path, rows, max_bad_share=1)))
    assert [request.prompt for request in requests] == ["Why?"]
    assert [(row.source_row, row.reason) for row in bad] == [
        (2, "field prompt is empty"), (3, "field prompt is missing or not text"),
        (4, "field prompt is missing or not text"), (5, "field prompt is not valid Unicode text"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="4 of 6 rows are bad"):
        training_requests(_recipe(source=_source(tmp_path, rows)))
    with pytest.raises(InputError, match="no row has a prompt"):
        training_requests(_recipe(source=_source(tmp_path, bad_rows, max_bad_share=1)))


def test_shipped_sample_gives_the_training_split_once_a_prompt() -> None:
    training, _ = split_requests(read_requests(SourceConfig())[0], SourceConfig())
    requests, _ = training_requests(_recipe())
    assert {request.id for request in requests} <= {request.id for request in training}
    assert {request.prompt for request in requests} == {request.prompt for request in training}
    assert len(requests) == len({request.prompt for request in requests})
    assert training_requests(_recipe(num_requests=3))[0] == requests[:3]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"configuration": "wild"}, "unknown preset"), ({"answer_configuration": "role_play"}, "a persona is needed"),
        ({"flips": ("harmless",)}, "ranked both ways"), ({"flips": ("wild",)}, "unknown preset"),
        ({"temperature": -1}, "temperature"), ({"top_p": 0}, "top_p"), ({"num_requests": 0}, "num_requests"),
    ],
)  # fmt: skip
def test_recipe_is_checked(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        _recipe(**fields)
