"""The training stage: groups in, a model folder out, by Ray Train and DeepSpeed."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab import cluster, models
from trimtab.artifacts import Outcome, Record, require_record, run_stage
from trimtab.chat import Chat
from trimtab.config import InputError
from trimtab.console import Progress, say
from trimtab.training.config import TrainingConfig
from trimtab.training.data import read_groups, tokenize

STAGE = "train"
POLL_S = 1.0


def run(config: TrainingConfig) -> Record:
    """Train on ranked groups. Running it again goes on from the last checkpoint, or skips what is done.

    Raises:
        InputError: an input is missing or unfinished, or the batch can't be divided among the workers.
    """
    folder = models.resolve(config.model)
    per_forward = config.groups_per_forward * config.num_workers
    if config.groups_per_step % per_forward:
        problem = f"is no multiple of groups_per_forward x num_workers = {per_forward}"
        raise InputError("groups_per_step", config.groups_per_step, problem, "change one of them")
    if not config.data:
        raise InputError("data", "[]", "no input", "give at least one output of trimtab synthesize")
    records = [require_record("data", path, "synthesize") for path in config.data]
    inputs = {"model": models.fingerprint(folder)} | {f"data.{i}": r.fingerprint for i, r in enumerate(records)}

    def work(output: Path) -> Outcome:
        return _train(config, folder, output)

    return run_stage(STAGE, config.output, config, inputs, work)


def _train(config: TrainingConfig, folder: Path, output: Path) -> Outcome:
    groups, cut = tokenize(read_groups(list(config.data)), Chat.from_folder(str(folder)), config.max_length)
    if not groups:
        raise InputError("max_length", config.max_length, "leaves no group", "raise it or give shorter prompts")
    say(f"  {len(groups)} groups; {cut.truncated_responses} responses cut, {cut.dropped_groups} groups dropped")
    (output / "reference").mkdir(exist_ok=True)
    cluster.connect(config.ray)
    with _watch(output, len(groups)):
        _fit(config, folder, output)
    steps = read_steps(output)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    counts = {"groups": len(groups), "steps": len(steps), "tokens": int(sum(step["tokens"] for step in steps)),
              "truncated_responses": cut.truncated_responses, "dropped_groups": cut.dropped_groups}  # fmt: skip
    results = {"first": _mean(steps[:5]), "last": _mean(steps[-5:]), "model": models.fingerprint(output / "model")}
    return Outcome(counts=counts, results=results, timings_s={"steps": sum(step["seconds"] for step in steps)})


def _fit(config: TrainingConfig, folder: Path, output: Path) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from trimtab.training.loop import train_worker

    absolute = config.model_copy(update={"data": tuple(path.resolve() for path in config.data)})
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": absolute.model_dump_json(),
            "model": str(folder),
            "output": str(output.resolve()),
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers, use_gpu=config.use_gpu, resources_per_worker=_resources(config)
        ),
        run_config=RunConfig(
            name="ray", storage_path=str(output.resolve()),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )  # fmt: skip
    trainer.fit()


def _resources(config: TrainingConfig) -> dict[str, float]:
    return {"CPU": config.cpus_per_worker, "GPU": 1} if config.use_gpu else {"CPU": config.cpus_per_worker}


def read_steps(output: Path) -> list[dict[str, Any]]:
    """The step log, each step once: after a resume the later line of a step counts."""
    path = output / "steps.jsonl"
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    steps = {step["step"]: step for step in map(json.loads, lines)}
    return [steps[number] for number in sorted(steps)]


def _mean(steps: list[dict[str, Any]]) -> dict[str, float]:
    names = ("dpo_loss", "nll", "accuracy", "margin")
    return {name: round(sum(step[name] for step in steps) / len(steps), 4) for name in names} if steps else {}


@contextlib.contextmanager
def _watch(output: Path, num_groups: int) -> Iterator[None]:
    """Show the reference pass, then the steps, from the files that the workers write."""
    stop = threading.Event()

    def poll(reference: Progress) -> None:
        training: Progress | None = None
        while not stop.wait(POLL_S):
            steps = read_steps(output)
            if not steps:
                reference.update(sum(int(path.read_text() or 0) for path in (output / "reference").glob("*.count")))
                continue
            if training is None:
                reference.update(num_groups)
                reference.__exit__()
                training = Progress("training", steps[-1]["steps"], "steps").__enter__()
            training.update(len(steps), _note(steps[-10:]))
        if training is not None:
            training.update(len(read_steps(output)))
            training.__exit__()

    with Progress("reference", num_groups, "groups") as progress:
        thread = threading.Thread(target=poll, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _note(steps: list[dict[str, Any]]) -> str:
    rate = sum(step["tokens"] for step in steps) / max(1e-9, sum(step["seconds"] for step in steps))
    mean = _mean(steps)
    return f"loss {mean['dpo_loss']:.3f}, pairs right {mean['accuracy']:.0%}, {rate:.0f} tokens/s"
