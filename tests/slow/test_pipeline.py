"""The whole loop on a random two-layer model: real vLLM, Ray Data, Ray Train, DeepSpeed, Ray Serve."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import serving_port
from trimtab import pipeline
from trimtab.artifacts import read_log, read_record
from trimtab.config import load
from trimtab.schemas import Verdict, iter_groups, read_rows

pytestmark = pytest.mark.slow

STAGES = ("base/prefill", "base/configurable", "base/retention", "groups", "train", "tuned/prefill",
          "tuned/configurable", "tuned/retention", "report", "endpoint")  # fmt: skip
HELD: dict[int, float] = {}
"""Step -> CPUs of Ray that are still held when it has ended."""


@contextlib.contextmanager
def _watched_step(config: pipeline.PipelineConfig, number: int, title: str) -> Iterator[None]:
    """A step as it is, and a look at what it leaves behind."""
    import ray

    with _step(config, number, title):
        yield
    for _ in range(40):  # Ray learns within seconds that an actor is gone
        HELD[number] = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0)
        if HELD[number] == 0:
            break
        time.sleep(0.25)


_step = pipeline._step


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, small_source: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> pipeline.PipelineConfig:
    """A pipeline that ran to its end; Ray is kept for the tests after it."""
    config = load(pipeline.PipelineConfig, None, [
        f"output={tmp_path_factory.mktemp('runs') / 'demo'}", f"model={tiny_model}", f"data={small_source}",
        "num_evaluation_prompts=4", "synthesis_max_tokens=12", "max_tokens=12", f"port={serving_port()}",
        "engine.max_num_seqs=16", "engine.kv_cache_gib=1", "engine.cores_per_actor=1",
        "safe_response=source", "training.max_length=1500",
        "quality.min_words=0", "quality.max_repeated_share=null", "num_validation_prompts=2",
        "training.validation.metric=corr_mean", "training.validation.keep_best=true",
    ])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_step", _watched_step)
        pipeline.run(config, keep_ray=True)
    return config


def test_every_stage_leaves_a_record(finished: pipeline.PipelineConfig) -> None:
    records = {stage: read_record(finished.output / stage) for stage in STAGES}
    assert all(records.values()), [stage for stage, record in records.items() if record is None]


def test_every_step_gives_back_what_it_asked_of_ray(finished: pipeline.PipelineConfig) -> None:
    assert sorted(HELD) == [1, 2, 3, 4, 5, 6]
    assert not any(HELD.values()), HELD


def test_groups_and_flips_are_the_same_responses_reversed(finished: pipeline.PipelineConfig) -> None:
    groups = list(iter_groups(finished.output / "groups"))
    harmless = {group.source: group for group in groups if group.configuration == "harmless"}
    uncensored = {group.source: group for group in groups if group.configuration == "uncensored"}
    assert harmless
    assert harmless.keys() == uncensored.keys()
    for source, group in harmless.items():
        assert uncensored[source].responses == group.responses[::-1]
        assert [response.role for response in group.responses] == ["SR", "SYN_1", "SYN_2", "SYN_3", "SYN_4", "FHR"]


def test_no_evaluation_prompt_is_trained_on(finished: pipeline.PipelineConfig) -> None:
    trained = {group.prompt for group in iter_groups(finished.output / "groups")}
    measured = {row.prompt for row in read_rows(finished.output / "base" / "prefill" / "verdicts.parquet", Verdict)}
    assert len(measured) == 4
    assert not trained & measured


def test_training_steps_are_logged_once_each(finished: pipeline.PipelineConfig) -> None:
    steps = read_log(finished.output / "train" / "steps.jsonl")
    assert [step["step"] for step in steps] == list(range(1, steps[-1]["steps"] + 1))
    assert steps[0]["dpo_loss"] == pytest.approx(0.6931, abs=0.01)


def test_checkpoint_is_measured_by_corr_mean_on_prompts_of_its_own(finished: pipeline.PipelineConfig) -> None:
    from trimtab.sources import read_requests, split_requests

    record = read_record(finished.output / "train")
    assert record is not None
    assert 0 <= record.results["checkpoint"]["corr_mean"] <= 1
    source = finished.source.model_copy(update={"split": "validation"})
    held = {request.prompt for request in split_requests(read_requests(source)[0], source)[1]}
    trained = {group.prompt for group in iter_groups(finished.output / "groups")}
    assert len(held) == 2
    assert not trained & held


def test_trained_model_differs_and_names_its_configurations(
    finished: pipeline.PipelineConfig, tiny_model: Path
) -> None:
    import json

    from trimtab import models
    from trimtab.safety import SafetyConfig

    model = finished.output / "train" / "model"
    models.check_folder(model)
    assert models.fingerprint(model) != models.fingerprint(tiny_model)
    learned = {c["name"]: c["system"] for c in json.loads((model / "trimtab.json").read_text())["configurations"]}
    assert learned == {name: SafetyConfig(preset=name).render() for name in ("harmless", "uncensored")}


def test_second_run_skips_everything(finished: pipeline.PipelineConfig, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.output.rglob("*") if path.is_file()}
    pipeline.run(finished, keep_ray=True)
    assert {path: path.stat().st_mtime_ns for path in finished.output.rglob("*") if path.is_file()} == before
    assert len(re.findall("already done", capfd.readouterr().out)) == len(STAGES)


def _as_job(config: pipeline.PipelineConfig, least: float) -> pipeline.PipelineConfig:
    settings = {"name": "tuned", "gates": {"corr_mean": least}}
    return pipeline.PipelineConfig.model_validate(config.model_dump() | {"endpoint": False, "promote": settings})


def test_tuned_model_is_promoted_behind_the_gates_alone(
    finished: pipeline.PipelineConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from trimtab import models, registry
    from trimtab.config import InputError

    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"gates\.corr_mean: 1\.0: the model has"):
        pipeline.run(_as_job(finished, 1.0), keep_ray=True)
    assert registry.aliases("tuned") == {}
    for _ in range(2):
        assert pipeline.run(_as_job(finished, 0.0), keep_ray=True).stage == "report"
    assert registry.aliases("tuned") == {"production": 1}
    assert models.resolve("tuned@production") == (finished.output / "train" / "model").resolve()
    said = capfd.readouterr().out
    assert "[6/6] promotion" in said
    assert "endpoint" not in said
