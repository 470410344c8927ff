"""The published sets, where they lie beside the repository: reading, splitting, importing."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.evaluation.prefill import PrefillConfig, plan_cases
from trimtab.near_duplicates import normalize
from trimtab.safety import PRESETS, SafetyConfig
from trimtab.sources import SourceConfig, read_requests, split_requests
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe, draft, keep
from trimtab.synthesis.recipes.imported import ImportedRecipe, read_groups

pytestmark = pytest.mark.shared


@pytest.fixture
def source(shared_data: Path) -> SourceConfig:
    return SourceConfig(data=shared_data / "c2_eval_subset.jsonl", num_evaluation_prompts=60)


def test_c2_eval_splits_without_leakage(source: SourceConfig) -> None:
    requests, bad = read_requests(source)
    training, evaluation = split_requests(requests, source)
    assert (len(requests), [row.reason[:7] for row in bad]) == (195, ["repeats", "repeats"])
    assert len({request.id for request in requests}) == len(requests)
    assert len({normalize(request.prompt) for request in evaluation}) >= 60
    assert not {normalize(r.prompt) for r in training} & {normalize(r.prompt) for r in evaluation}


def test_short_rows_are_counted_not_hidden(source: SourceConfig, tmp_path: Path) -> None:
    cases, plan = plan_cases(PrefillConfig(output=tmp_path / "out", source=source))
    assert len(cases) == len(plan) == 8 * len({case.request_id for case in cases})
    short = [case for case in cases if case.num_units < case.k]
    assert short
    assert all(case.k > 20 for case in short)


def test_long_harmful_responses_can_all_be_cut(source: SourceConfig) -> None:
    recipe = CourseCorrectionRecipe(source=source)
    kept = [request for request in read_requests(source)[0] if keep(request, recipe)]
    drafts = [draft(request, recipe) for request in kept]
    assert len(kept) > 50
    assert all(item.full_harmful.startswith(start) for item in drafts for start in item.starts)


def test_cst_set_is_groups_of_two_and_its_safety_rows_are_exact_flips(shared_data: Path) -> None:
    groups, bad = read_groups(ImportedRecipe(data=shared_data / "cst_multitask_subset.json"))
    assert (len(groups), len(bad)) == (330, 0)
    rows = {(g.prompt, g.configuration): [r.text for r in g.responses] for g in groups}
    prompts = {prompt for prompt, configuration in rows if configuration == "uncensored"}
    assert len(prompts) == 15
    assert all(rows[p, "harmless"] == rows[p, "uncensored"][::-1] for p in prompts)
    for group in groups:  # a preset's name stands for its own rendering and for nothing else
        if group.configuration in PRESETS:
            assert group.system == SafetyConfig(preset=group.configuration).render()
