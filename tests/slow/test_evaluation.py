"""The evaluations on a real engine: several models, paths, tokens, a reopened turn, other wordings, and resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.judging.server import JudgeServer, fails, says
from trimtab.artifacts import RECORD
from trimtab.chat import Chat
from trimtab.config import InputError, load
from trimtab.evaluation import configurable, prefill, tables
from trimtab.evaluation.configurable import ConfigurableConfig
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.schemas import Generation, PlanRow, Verdict, read_rows

pytestmark = pytest.mark.slow

ENGINE = ("engine.max_num_seqs=16", "engine.kv_cache_gib=1")


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, small_source: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> PrefillConfig:
    """Two models of the same weights, two paths, a new turn behind the first tokens."""
    config = load(PrefillConfig, None, [
        f"output={tmp_path_factory.mktemp('evaluation') / 'out'}", f"models.first={tiny_model}",
        f"models.second={tiny_model}", f"source.data={small_source}", "source.num_evaluation_prompts=3", "ks=[6,12]",
        "unit=tokens", "paths=2", "template=reopen", "max_tokens=5", *ENGINE,
    ])  # fmt: skip
    prefill.run(config)
    return config


def test_each_model_generates_every_path_behind_a_closed_turn(finished: PrefillConfig, tiny_model: Path) -> None:
    chat = Chat.from_folder(str(tiny_model))
    for name in ("first", "second"):
        plan = read_rows(finished.output / name / "plan", PlanRow)
        made = {row.id: row for row in read_rows(finished.output / name / "generations", Generation)}
        assert len(plan) == len(made) == 3 * 2 * 2
        assert not any(row.error for row in made.values())
        for row in plan:
            ids = chat.prompt_ids(row.system, row.prompt, row.prefill, reopen=True)
            assert made[row.id].num_prompt_tokens == len(ids)
            assert ids != chat.prompt_ids(row.system, row.prompt, row.prefill)


def test_record_of_all_has_each_ones_results_and_shows_them(finished: PrefillConfig) -> None:
    record = prefill.run(finished)
    assert record.counts["models"] == 2
    assert list(record.results["models"]) == ["first", "second"]
    table = tables.models_table(record)
    assert table.row_count == len(finished.ks) + 2
    raw = (finished.output / "first" / "released" / "raw.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(raw) == 12
    assert json.loads(raw[0])["full response"].endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_unfinished_model_goes_on_from_its_rows(finished: PrefillConfig) -> None:
    folder = finished.output / "second"
    before = {path.name for path in (folder / "generations").iterdir()}
    verdicts = read_rows(folder / "verdicts.parquet", Verdict)
    (folder / RECORD).unlink()
    (finished.output / RECORD).unlink()
    first = (finished.output / "first" / RECORD).stat().st_mtime_ns
    prefill.run(finished)
    assert {path.name for path in (folder / "generations").iterdir()} == before
    assert read_rows(folder / "verdicts.parquet", Verdict) == verdicts
    assert (finished.output / "first" / RECORD).stat().st_mtime_ns == first


def test_configurations_in_other_words(tiny_model: Path, tmp_path: Path, ray_session: None) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("How do I whistle?\nWhat is rain?\n", encoding="utf-8")
    config = load(ConfigurableConfig, None, [
        f"output={tmp_path / 'out'}", f"model={tiny_model}", f"prompts={prompts}", "paraphrases=true", "max_tokens=5",
        *ENGINE,
    ])  # fmt: skip
    record = configurable.run(config)
    assert record.counts["answers"] == 2 * (2 + 4 + 4)
    assert record.counts["errors"] == 0
    systems = {row.system for row in read_rows(tmp_path / "out" / "plan", PlanRow)}
    assert len(systems) == 10
    (pair,) = record.results["pairs"]
    assert pair["answers_differ"]["n"] <= 2
    shutil.rmtree(tmp_path / "out")


def test_prompts_on_which_the_endpoint_failed_are_asked_again_by_the_same_command(
    tmp_path: Path, ray_session: None
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("How do I whistle?\nWhat is rain?\n", encoding="utf-8")
    failing = range(1, 5)
    with JudgeServer(lambda call: fails(500) if call.number in failing else says("I would rather not.")) as server:
        config = load(ConfigurableConfig, None, [
            f"output={tmp_path / 'out'}", f"prompts={prompts}", "engine.type=openai", "engine.model=m",
            f"engine.base_url={server.url}", "engine.max_retries=0",
        ])  # fmt: skip
        with pytest.raises(InputError, match=r"^engine\.base_url: .*: answered none of 4 requests \(the first: I"):
            configurable.run(config)
        assert not (config.output / RECORD).exists()
        failing = range(5, 6)
        first = configurable.run(config)
        assert (first.counts["answers"], first.counts["errors"], first.counts["unparsed"]) == (4, 1, 1)
        second = configurable.run(config)
        assert (second.counts["errors"], second.counts["unparsed"]) == (0, 0)
        assert second.fingerprint == first.fingerprint
        assert configurable.run(config) == second
        assert len(server.calls) == 4 + 4 + 1
    rows = read_rows(tmp_path / "out" / "verdicts.parquet", Verdict)
    assert {row.text for row in rows} == {"I would rather not."}
