"""What is sent to a cluster and what is refused, without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from trimtab.cli import STAGES
from trimtab.config import Config, InputError, load
from trimtab.evaluation.report import ReportConfig
from trimtab.operations import submission
from trimtab.pipeline import PipelineConfig
from trimtab.synthesis.config import SynthesisConfig

ROOT = Path(__file__).parents[2]
KEY = "abcdefgh-planted-12345"


def _synthesis(*overrides: str) -> SynthesisConfig:
    return load(SynthesisConfig, None, ["output=/data/groups", *overrides])


def test_id_is_of_the_recipe_and_the_output_and_not_of_the_machines() -> None:
    base = submission.base_id("synthesize", _synthesis())
    assert base == submission.base_id("synthesize", _synthesis("ray.num_cpus=7"))
    others = [_synthesis("recipe.num_requests=5"), load(SynthesisConfig, None, ["output=/data/other"])]
    assert len({base, *(submission.base_id("synthesize", other) for other in others)}) == 3
    assert submission.base_id("evaluate prefill", _synthesis()).startswith("evaluate-prefill-")


def test_paths_that_mean_something_else_on_the_cluster_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tuned").mkdir(parents=True)
    relative: list[Config] = [
        load(SynthesisConfig, None, ["output=runs/x"]),
        load(PipelineConfig, None, ["output=/data/x", "model=runs/tuned"]),
        load(ReportConfig, None, ["output=/data/x", "runs=[tuned=runs/tuned]"]),
    ]
    for config in relative:
        with pytest.raises(InputError, match="is relative, and a job runs in a folder of its own"):
            submission.refuse_places_of_this_machine(config)


def test_absolute_paths_uris_and_names_of_models_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("smollm2-135m", "owner/name", "name@production"):
        submission.refuse_places_of_this_machine(load(PipelineConfig, None, ["output=/data/x", f"model={model}"]))
    submission.refuse_places_of_this_machine(load(SynthesisConfig, None, ["output=s3://bucket/groups"]))


@pytest.mark.parametrize(
    "value",
    [f"/data/{KEY}", "https://user:pass@host/x", "sk-0123456789abcdef0123", "hf_01234567890123456789ab"],
    ids=["environment", "url", "openai", "hub"],
)
def test_secrets_are_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    config = load(PipelineConfig, None, ["output=/data/x", f"model={value}"])
    with pytest.raises(InputError, match=r"^model: \(not shown\): .*jobs are readable") as refused:
        submission.refuse_secrets(config)
    assert value not in str(refused.value)
    assert KEY not in str(refused.value)


def test_names_of_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_API_KEY", KEY)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    judge = ["judge.type=openai", "judge.model=m", "judge.base_url=http://host/v1", "judge.api_key_env=JUDGE_API_KEY"]
    submission.refuse_secrets(load(PipelineConfig, None, ["output=/data/x", *judge]))


def test_runtime_environment_is_the_same_as_that_of_ray_job_submit() -> None:
    given = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text(encoding="utf-8"))
    assert given["env_vars"] == submission.ENV_VARS
    assert (ROOT / given["py_modules"][0] / "operations" / "submission.py").is_file()


def test_each_job_script_runs_a_stage_that_can_be_submitted() -> None:
    for script in (ROOT / "jobs").glob("*.py"):
        assert any(f'run_job("{name}")' in script.read_text(encoding="utf-8") for name in STAGES), script.name
