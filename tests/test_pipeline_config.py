"""What the pipeline hands to its stages."""

from __future__ import annotations

from pathlib import Path

from trimtab.config import load
from trimtab.pipeline import PipelineConfig, measurements

OVERRIDES = ["output=out", "judge.type=openai", "judge.model=m", "judge.base_url=http://unused/v1", "max_tokens=9"]


def test_judge_of_the_pipeline_judges_both_evaluations_of_both_models() -> None:
    config = load(PipelineConfig, None, OVERRIDES)
    for name in ("base", "tuned"):
        prefill, configurable, _ = measurements(config, name, Path("out") / name, None)
        assert prefill.judge == configurable.judge == config.judge
        assert config.judge.identity()["model"] == "m"
        assert prefill.source == configurable.source == config.source
        assert (prefill.model, configurable.max_tokens) == (name, 9)


def test_judge_of_the_pipeline_is_the_rules_where_none_is_named() -> None:
    prefill, *_ = measurements(load(PipelineConfig, None, ["output=out"]), "base", Path("out"), None)
    assert prefill.judge.type == "rules"
