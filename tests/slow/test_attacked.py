"""Attacks on a real engine: every row that the renderer lets through is made, from exactly its tokens, and resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.artifacts import RECORD
from trimtab.chat import Chat
from trimtab.config import load
from trimtab.evaluation import injection, robustness, tables
from trimtab.evaluation.attacks import read_attacks
from trimtab.evaluation.injection import InjectionConfig
from trimtab.evaluation.robustness import RobustnessConfig
from trimtab.schemas import Attempt, Generation, PlanRow, read_rows

pytestmark = pytest.mark.slow

ENGINE = ("engine.max_num_seqs=16", "engine.kv_cache_gib=1", "max_tokens=6")


def _check_generations(output: Path, model: Path) -> list[PlanRow]:
    chat = Chat.from_folder(str(model))
    plan = read_rows(output / "plan", PlanRow)
    made = {row.id: row for row in read_rows(output / "generations", Generation)}
    assert len(plan) == len(made)
    for row in plan:
        assert not made[row.id].error
        assert made[row.id].num_prompt_tokens == len(chat.prompt_ids(row.system, row.prompt, row.prefill))
    return plan


def test_injection_on_a_model_folder(tiny_model: Path, tmp_path: Path, ray_session: None) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("How do I whistle?\nWhat is rain?\n", encoding="utf-8")
    config = load(InjectionConfig, None, [f"output={tmp_path / 'out'}", f"model={tiny_model}", f"prompts={prompts}",
                                          *ENGINE])  # fmt: skip
    record = injection.run(config)
    plan = _check_generations(config.output, tiny_model)
    num_attacks = len(read_attacks(None, injection.SHIPPED))
    assert record.counts["refused"] == 2 * 2, "the template's own forged turn and ChatML's"
    assert record.counts["answers"] == len(plan) == 2 * (2 + num_attacks) - record.counts["refused"]
    assert record.counts["errors"] == record.counts["left_out"] == 0
    assert tables.models_table(record).row_count == 2 + 3 * 7 + 1
    attempts = read_rows(config.output / "attempts.parquet", Attempt)
    before = {path.name for path in (config.output / "generations").iterdir()}
    (config.output / RECORD).unlink()
    assert injection.run(config).results == record.results
    assert {path.name for path in (config.output / "generations").iterdir()} == before
    assert read_rows(config.output / "attempts.parquet", Attempt) == attempts


def test_robustness_on_a_model_folder(tiny_model: Path, small_source: Path, tmp_path: Path, ray_session: None) -> None:
    config = load(RobustnessConfig, None, [
        f"output={tmp_path / 'out'}", f"models.first={tiny_model}", f"source.data={small_source}",
        "source.num_evaluation_prompts=2", *ENGINE,
    ])  # fmt: skip
    record = robustness.run(config)
    plan = _check_generations(config.output / "first", tiny_model)
    attacks = read_attacks(None, robustness.SHIPPED)
    assert len(plan) == len(attacks) * len({row.request_id for row in plan}) == record.counts["answers"]
    depths = {row.kind: len(row.prefill.split()) for row in plan}
    assert [depths[f"prefill, {words} words"] for words in (10, 20, 40)] == [10, 20, 40]
    results = record.results["models"]["first"]
    assert set(results["kinds"]) == {"prefill", "refusal_suppression", "role_play"}
    assert results["left_out"] == {}
