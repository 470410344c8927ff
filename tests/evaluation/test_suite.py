"""Several evaluations with one start of the engine: what an interrupted run may leave to the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.engine import OpenAIEngine
from trimtab.evaluation.prefill import PrefillConfig, plan_cases
from trimtab.evaluation.suite import recipe_of
from trimtab.sources import SourceConfig

CONFIG = PrefillConfig(
    output=Path("unused"), ks=(10,), source=SourceConfig(num_evaluation_prompts=2),
    engine=OpenAIEngine(base_url="http://a/v1", model="m"),
)  # fmt: skip


def _recipe(**changes: Any) -> str:
    config = CONFIG.model_copy(update=changes)
    return recipe_of(config, plan_cases(config)[1])


@pytest.mark.parametrize(
    "changes",
    [{"max_tokens": 9}, {"template": "reopen"}, {"top_p": 0.9}, {"engine": OpenAIEngine(base_url="u", model="n")}],
)
def test_other_settings_take_nothing_over_though_the_rows_have_the_same_ids(changes: dict[str, Any]) -> None:
    rows = [plan_cases(config)[1] for config in (CONFIG, CONFIG.model_copy(update=changes))]
    assert [row.id for row in rows[0]] == [row.id for row in rows[1]]
    assert _recipe(**changes) != _recipe()


def test_another_place_or_judge_is_the_same_recipe() -> None:
    moved = OpenAIEngine(base_url="http://b/v1", model="m", num_concurrent_requests=2)
    assert (
        _recipe(engine=moved, output=Path("elsewhere"), judge=CONFIG.judge.model_copy(update={"version": "rules-1"}))
        == _recipe()
    )
