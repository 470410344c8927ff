"""Training for real on Ray Train and DeepSpeed: workers, ZeRO stages, packing and interruptions change nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.slow.conftest import has_checkpoint, restarted_at
from trimtab import registry
from trimtab.artifacts import Record, read_log, read_record
from trimtab.training import run as training
from trimtab.training.config import LoRA, TrainingConfig, ValidationConfig
from trimtab.training.fit import TrainingError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

SIZES = {"dtype": "float32", "learning_rate": 1e-3, "groups_per_step": 4, "report_to": ()}
TWO_WORKERS = {"num_workers": 2, "zero_stage": 2}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def straight(
    tiny_model: Path, ranked_groups: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> Path:
    """One worker, ZeRO-0, one group a forward pass, twelve steps without interruption."""
    output = tmp_path_factory.mktemp("straight") / "out"
    _train(output, tiny_model, ranked_groups, zero_stage=0)
    return output


@pytest.fixture(scope="module")
def two_workers(
    tiny_model: Path, ranked_groups: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> Path:
    """The same steps on two workers with ZeRO-2."""
    output = tmp_path_factory.mktemp("two_workers") / "out"
    _train(output, tiny_model, ranked_groups, **TWO_WORKERS)
    return output


def _train(output: Path, model: Path, groups: Path, **values: Any) -> Record:
    config = {"output": output, "model": str(model), "data": (groups,), "num_train_epochs": 2, **SIZES, **values}
    return training.run(TrainingConfig.model_validate(config))


def _weights(output: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(output / "model" / "model.safetensors")


def _distance(left: Path, right: Path, base: Path) -> float:
    """Largest difference of two models' weights, relative to how far training moved them."""
    from safetensors.torch import load_file

    one, other, start = _weights(left), _weights(right), load_file(base / "model.safetensors")
    moved = max(float((one[name] - start[name].float()).abs().max()) for name in one)
    assert moved > 1e-3, "training did not move the weights"
    return max(float((one[name] - other[name]).abs().max()) for name in one) / moved


@pytest.mark.parametrize(
    "values",
    [
        {"num_workers": 2, "zero_stage": 3, "max_tokens": 1200, "gradient_checkpointing": True},
        {"layout": "grouped", "zero_stage": 1},
    ],
    ids=["zero-3, packed, recomputed activations", "zero-1, grouped"],
)
def test_how_the_work_is_spread_does_not_change_the_model(
    straight: Path, tiny_model: Path, ranked_groups: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    _train(tmp_path / "out", tiny_model, ranked_groups, **values)
    _same_training(straight, tmp_path / "out", tiny_model)


def test_two_workers_with_sharded_optimizer_make_the_same_model(
    straight: Path, two_workers: Path, tiny_model: Path
) -> None:
    _same_training(straight, two_workers, tiny_model)


def _same_training(expected: Path, found: Path, base: Path) -> None:
    """The same twelve losses, and weights within 1 % of the distance moved."""
    losses = [[step["dpo_loss"] for step in read_log(folder / "steps.jsonl")] for folder in (expected, found)]
    assert len(losses[0]) == len(losses[1]) == 12
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert _distance(expected, found, base) < 1e-2


def test_loss_falls_from_log_two_and_the_record_says_what_was_made(straight: Path, tiny_model: Path) -> None:
    steps = read_log(straight / "steps.jsonl")
    assert steps[0]["dpo_loss"] == pytest.approx(0.693147, abs=1e-4)
    assert steps[-1]["dpo_loss"] < 0.68
    record = read_record(straight)
    assert record is not None
    assert {name: count for name, count in record.counts.items() if count and name != "tokens"} == {
        "groups": 24, "steps": 12
    }  # fmt: skip
    systems = json.loads((straight / "model" / "trimtab.json").read_text())["configurations"]
    card = (straight / "model" / "README.md").read_text()
    assert [entry["name"] for entry in systems] == ["harmless", "uncensored"]
    assert all(f"**{entry['name']}**: {entry['system']}" in card for entry in systems)
    assert str(tiny_model.parent) not in card


@pytest.mark.parametrize(
    ("uninterrupted", "shape", "tolerance"), [("straight", {"zero_stage": 0}, 0.0), ("two_workers", TWO_WORKERS, 1e-6)]
)
def test_killed_worker_is_started_again_from_its_checkpoint(
    request: pytest.FixtureRequest, tiny_model: Path, ranked_groups: Path, tmp_path: Path, uninterrupted: str,
    shape: dict[str, int], tolerance: float,
) -> None:  # fmt: skip
    output, expected = tmp_path / "out", request.getfixturevalue(uninterrupted)
    killed: list[int] = []

    def kill_worker() -> None:
        """kill -9 of the train worker that this test's Ray started, once step 5 is done and 4 is saved."""
        while not killed:
            time.sleep(0.05)
            if has_checkpoint(output) and len(read_log(output / "steps.jsonl")) >= 5:
                workers = [child for child in psutil.Process().children(recursive=True) if _is_train_worker(child)]
                for worker in workers[:1]:
                    os.kill(worker.pid, signal.SIGKILL)
                    killed.append(worker.pid)

    thread = threading.Thread(target=kill_worker, daemon=True)
    thread.start()
    _train(output, tiny_model, ranked_groups, save_steps=2, **shape)
    assert len(killed) == 1
    assert restarted_at(output) > 1
    assert _distance(expected, output, tiny_model) <= tolerance


def _is_train_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_loss_that_is_no_number_names_its_groups_and_keeps_the_checkpoint(
    tiny_model: Path, ranked_groups: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"^the loss is nan at step \d+ on groups [0-9a-f]{20}"):
        _train(tmp_path / "out", tiny_model, ranked_groups, learning_rate=1e18, save_steps=1, max_grad_norm=1e9)
    assert list((tmp_path / "out").glob("ray/checkpoint-0*"))
    assert not (tmp_path / "out" / "model").exists()


def test_adapters_switched_off_are_the_reference_that_is_stored(
    tiny_model: Path, ranked_groups: Path, tmp_path: Path
) -> None:
    common = {"lora": LoRA(r=4), "num_train_epochs": 1, "num_workers": 1}
    _train(tmp_path / "stored", tiny_model, ranked_groups, **common)
    _train(tmp_path / "adapter", tiny_model, ranked_groups, reference="adapter", merge=False, **common)
    losses = [
        [step["dpo_loss"] for step in read_log(tmp_path / name / "steps.jsonl")] for name in ("stored", "adapter")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[1][0] == pytest.approx(0.693147, abs=1e-4)
    assert losses[1][-1] < 0.69
    assert not (tmp_path / "adapter" / "reference").exists()
    assert {path.name for path in (tmp_path / "adapter" / "model").glob("adapter*")} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip


def test_best_checkpoint_is_kept_by_the_callers_function_and_registered(
    tiny_model: Path, ranked_groups: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    output, seen = tmp_path / "out", tmp_path / "seen"
    seen.mkdir()

    def corr(model: Path) -> dict[str, float]:
        """A measure that the second of the three checkpoints wins."""
        assert (model / "tokenizer.json").is_file()
        number = len(list(seen.iterdir()))
        (seen / f"{number}.safetensors").write_bytes((model / "model.safetensors").read_bytes())
        return {"corr_mean": [0.1, 0.3, 0.2][number]}

    split = ValidationConfig(share=0.2, metric="corr_mean", keep_best=True)
    values = {"output": output, "model": str(tiny_model), "data": (ranked_groups,), "validation": split,
              "save_steps": 2, "name": "tiny", **SIZES, "report_to": ("tensorboard",)}  # fmt: skip
    record = training.run(TrainingConfig.model_validate(values), validation_fn=corr)
    assert record.results["checkpoint"]["corr_mean"] == 0.3
    assert record.results["checkpoint"]["step"] == 4
    best, kept = load_file(seen / "1.safetensors"), _weights(output)
    assert all(bool((best[name] == kept[name]).all()) for name in kept)
    validation = read_log(output / "validation.jsonl")
    assert [line["step"] for line in validation] == [2, 4, 5]
    assert {"eval_accuracy_gap_1", "eval_accuracy_gap_5", "eval_dpo_loss", "eval_margin"} <= set(validation[0])
    assert record.counts["groups"] + record.counts["validation_groups"] == 24
    assert registry.entry_of("tiny@1")["fingerprint"] == record.results["model"]
    assert list((output / "tensorboard").glob("events.*"))


def test_pairwise_is_trls_trainer_on_the_same_groups_and_its_best_checkpoint_is_kept(
    tiny_model: Path, ranked_groups: Path, tmp_path: Path
) -> None:
    split = ValidationConfig(share=0.2, metric="accuracy", keep_best=True)
    record = _train(tmp_path / "out", tiny_model, ranked_groups, objective="pairwise", num_train_epochs=1, save_steps=2,
                    num_workers=2, validation=split, learning_rate=3e-4)  # fmt: skip
    steps, validation = (read_log(tmp_path / "out" / f"{name}.jsonl") for name in ("steps", "validation"))
    assert record.counts["steps"] == len(steps) == 5
    assert steps[0]["dpo_loss"] == pytest.approx(0.693147, abs=1e-3)
    assert steps[-1]["dpo_loss"] < steps[0]["dpo_loss"]
    best = max(line["eval_accuracy"] for line in validation)
    assert record.results["checkpoint"]["eval_accuracy"] == pytest.approx(best)
    assert _weights(tmp_path / "out")


def test_training_that_gets_worse_stops_early_and_keeps_its_best_checkpoint(
    tiny_model: Path, ranked_groups: Path, tmp_path: Path
) -> None:
    split = ValidationConfig(share=0.2, keep_best=True, early_stopping_patience=1)
    record = _train(tmp_path / "out", tiny_model, ranked_groups, save_steps=1, validation=split, zero_stage=0,
                    learning_rate=0.5, lr_scheduler_type="constant", warmup_ratio=0)  # fmt: skip
    losses = [line["eval_dpo_loss"] for line in read_log(tmp_path / "out" / "validation.jsonl")]
    assert losses[-1] >= min(losses[:-1])
    assert record.counts["steps"] == len(losses) < 10
    assert record.results["checkpoint"]["eval_dpo_loss"] == pytest.approx(min(losses), abs=1e-5)
