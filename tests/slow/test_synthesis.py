"""Synthesis for real: a plan, many shards through Ray and vLLM, damage, retries, three chained passes, a preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.artifacts import Record, read_record
from trimtab.engine import OpenAIEngine
from trimtab.schemas import Generation, group_files, iter_groups, read_rows
from trimtab.sources import SourceConfig
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.synthesis.recipes.self_critique import SelfCritiqueRecipe
from trimtab.synthesis.retries import quarantined

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

ANY_TEXT = QualityConfig(min_words=0, max_repeated_share=None)


def _config(output: Path, model: Path, source: Path, engine: OpenAIEngine, **values: Any) -> SynthesisConfig:
    recipe = CourseCorrectionRecipe(source=SourceConfig(data=source, num_evaluation_prompts=4), max_tokens=6)
    settings = {"recipe": recipe, "quality": ANY_TEXT, "engine": engine, "requests_per_shard": 2, **values}
    return SynthesisConfig.model_validate({"output": output, "model": str(model), **settings})


@pytest.fixture(scope="module")
def made(
    served: OpenAIEngine, tiny_model: Path, small_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SynthesisConfig, Record]:
    config = _config(tmp_path_factory.mktemp("synthesis") / "out", tiny_model, small_source, served)
    assert len(synthesis.plan(config)) == 4
    return config, synthesis.run(config)


@pytest.fixture(scope="module")
def served(vllm_server: str, ray_session: None) -> OpenAIEngine:
    """The tiny model behind vLLM's own server: no engine has to start for each pass (the pipeline's test has one)."""
    return OpenAIEngine(base_url=vllm_server, model="tiny", rows_per_batch=4)


def test_every_request_has_its_group_and_flip_shard_by_shard(made: tuple[SynthesisConfig, Record]) -> None:
    config, record = made
    counts = record.counts
    assert counts["shards"] == len(group_files(config.output)) > 2
    assert (
        counts["generations"]
        == 5 * counts["requests"]
        == len({row.id for row in read_rows(config.output / "generations", Generation)})
    )
    assert counts["groups"] == 2 * counts["requests"] == len({group.id for group in iter_groups(config.output)})
    assert record.results["tokens_per_s"] > 0
    assert record.results["statistics"]["groups"] == counts["requests"]
    assert (config.output / "data_report.html").stat().st_size > 10_000


def test_damaged_files_are_named_and_made_again_and_nothing_else(
    served: OpenAIEngine, tiny_model: Path, small_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config(tmp_path / "out", tiny_model, small_source, served)
    record = synthesis.run(config)
    before = {row.id: row.finished_at for row in read_rows(config.output / "generations", Generation)}
    broken, *_ = sorted((config.output / "generations").glob("*.parquet"))
    lost = {row.id for row in read_rows(broken, Generation)}
    broken.write_bytes(broken.read_bytes()[:-20])
    group_files(config.output)[0].write_bytes(b"nothing")
    again = synthesis.run(config)
    out = capsys.readouterr().out
    assert f"{broken.name} could not be read; its rows are made again" in out
    assert "groups/00000.parquet could not be read; it is made again" in out
    after = {row.id: row.finished_at for row in read_rows(config.output / "generations", Generation)}
    assert {row_id for row_id in after if after[row_id] != before[row_id]} == lost
    assert again.counts == record.counts


def test_quarantined_generations_are_tried_again_by_the_flag_alone(
    served: OpenAIEngine, tiny_model: Path, small_source: Path, tmp_path: Path
) -> None:
    strict = QualityConfig(min_words=2, max_repeated_share=None)  # two of the random model's 40 texts are one word
    config = _config(tmp_path / "out", tiny_model, small_source, served, quality=strict, retry_temperature=1.5)
    first = synthesis.run(config)
    bad = [row for row in quarantined(config.output) if row.stage == "generation"]
    assert bad
    assert first.counts["groups"] == 2 * (first.counts["requests"] - first.counts["requests_without_group"])
    assert synthesis.run(config) == first
    second = synthesis.run(config, retry_quarantined=True)
    assert read_record(config.output) == second
    assert second.counts["requests"] == first.counts["requests"]
    retried = {row.id: row.attempts for row in quarantined(config.output) if row.stage == "generation"}
    assert set(retried) <= {row.id for row in bad}
    assert set(retried.values()) <= {2}
    assert second.counts["groups"] >= first.counts["groups"]


def test_self_critique_chains_three_passes(
    served: OpenAIEngine, tiny_model: Path, small_source: Path, tmp_path: Path
) -> None:
    source = SourceConfig(data=small_source, num_evaluation_prompts=4)
    recipe = SelfCritiqueRecipe(source=source, num_requests=2, max_tokens=8, critique_max_tokens=8, temperature=1.0)
    config = _config(tmp_path / "out", tiny_model, small_source, served, recipe=recipe)
    record = synthesis.run(config)
    assert record.counts["generations"] == 6
    assert {path.name for path in config.output.iterdir()} >= {"answer", "critique", "revision"}
    groups = list(iter_groups(config.output))
    assert {group.configuration for group in groups} == {"harmless", "uncensored"}
    assert [[r.role for r in group.responses] for group in groups[:2]] == [
        ["revision", "answer"],
        ["answer", "revision"],
    ]
