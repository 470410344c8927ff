"""Ray Train around the worker loop, and the choice of the checkpoint that becomes the model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.cluster import wait_for_room
from trimtab.training.config import TrainingConfig
from trimtab.training.loop import METRICS, train_worker


@dataclass(frozen=True)
class Chosen:
    """A checkpoint and what was measured on it."""

    checkpoint: Any
    metrics: dict[str, Any]
    cpus: float

    def export(self, base: Path, config: TrainingConfig, systems: dict[str, list[str]], card: str, to: Path) -> None:
        """Write its model folder, in a Ray task: merging needs a model's memory, which the driver may not have."""
        import ray

        task = ray.remote(num_cpus=self.cpus)(_export)
        absolute = to.resolve()
        ray.get(task.remote(self.checkpoint, base, config.model_dump_json(), systems, card, absolute))


def _export(checkpoint: Any, base: Path, config: str, systems: dict[str, list[str]], card: str, to: Path) -> None:
    from trimtab.training.export import write_model

    with checkpoint.as_directory() as folder:
        write_model(Path(folder), base, TrainingConfig.model_validate_json(config), systems, card, to)


def fit(
    config: TrainingConfig, folder: Path, model_print: str, output: Path, probes: list[str],
    validation_fn: Callable[[Path], dict[str, float]] | None,
) -> Chosen:  # fmt: skip
    """Train, from the last checkpoint where there is one; the last or the best checkpoint of the run."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    wait_for_room([_resources(config)] * config.num_workers, "num_workers", "lower num_workers or cpus_per_worker")
    metric, greater = METRICS[config.validation.metric]
    best = {"checkpoint_score_attribute": metric, "checkpoint_score_order": "max" if greater else "min"}
    trainer = TorchTrainer(
        worker_of(config),
        train_loop_config={
            "config": config.model_dump_json(), "model": str(folder), "fingerprint": model_print,
            "output": str(output.resolve()), "probes": probes, "validate": validation_fn is not None,
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=_resources(config)
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(output.resolve()),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.save_total_limit, **(best if config.validation.keep_best else {})
            ),
        ),
        validation_config=_validation(config, folder, validation_fn),
    )  # fmt: skip
    result = _fitted(trainer)
    measured = list(result.best_checkpoints or [])
    wanted = [(found, numbers) for found, numbers in measured if metric in numbers]
    if config.validation.keep_best:
        if not wanted:
            raise TrainingError(f"validation.metric: {metric} was measured on no checkpoint that is left; see the log")
        checkpoint, metrics = (max if greater else min)(wanted, key=lambda entry: entry[1][metric])
    else:
        checkpoint, metrics = max(measured, key=lambda entry: entry[1]["step"])
    return Chosen(checkpoint, dict(metrics), config.cpus_per_worker)


class TrainingError(RuntimeError):
    """Why a worker stopped, in one line."""


def _fitted(trainer: Any) -> Any:
    """The result; what a worker raised becomes one line, its traceback stays behind it."""
    from ray.train import WorkerGroupError

    try:
        return trainer.fit()
    except WorkerGroupError as error:
        reasons = [str(failure).strip().splitlines() for failure in error.worker_failures.values()]
        lines = [reason[-1] for reason in reasons if reason]
        raise TrainingError(lines[0] if lines else str(error)) from error


def worker_of(config: TrainingConfig) -> Callable[[dict[str, Any]], None]:
    """The train loop of the objective."""
    if config.objective == "ranked":
        return train_worker
    from trimtab.training.pairwise import train_pairs_worker

    return train_pairs_worker


def _resources(config: TrainingConfig) -> dict[str, float]:
    return {"CPU": config.cpus_per_worker, "GPU": 1} if config.use_gpu else {"CPU": config.cpus_per_worker}


def _validation(config: TrainingConfig, base: Path, function: Callable[[Path], dict[str, float]] | None) -> Any:
    """Ray Train's asynchronous validation: a task per checkpoint, beside the training."""
    if function is None:
        return None
    from ray.train import ValidationConfig

    def validate(checkpoint: Any) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="trimtab-validation-") as scratch:
            target = Path(scratch) / "model"
            whole = config.model_copy(update={"merge": True})
            _export(checkpoint, base, whole.model_dump_json(), {}, "", target)
            return function(target)

    return ValidationConfig(fn=validate, ray_remote_kwargs={"num_cpus": config.cpus_per_worker})
