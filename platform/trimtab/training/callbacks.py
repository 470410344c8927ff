"""What happens beside the steps: the step log, preparation under the engine, checkpoints through Ray Train."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trimtab.training import policy, reference
from trimtab.training.trainer import BadLossError, RankedTrainer

TRL_NAMES = {"rewards/accuracies": "accuracy", "rewards/margins": "margin", "eval_loss": "eval_dpo_loss",
             "eval_rewards/accuracies": "eval_accuracy", "eval_rewards/margins": "eval_margin"}  # fmt: skip


class Prepare(TrainerCallback):
    """Before the first step: probe how this architecture can be scored, and score the reference.

    Both run through DeepSpeed's engine, where ZeRO-3 has the weights, on all workers alike.
    """

    def __init__(self, output: Path, model_fingerprint: str, probes: list[str]) -> None:
        self.output, self.fingerprint, self.probes = output, model_fingerprint, probes
        self.trainer: RankedTrainer | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Probe on the groups that ask most of a form, then score what isn't scored yet."""
        trainer = self.trainer
        assert trainer is not None
        config, store, engine = trainer.config, trainer.store, trainer.model_wrapped
        groups = [(store[group_id].prompt, store[group_id].responses) for group_id in self.probes]
        engine.eval()
        trainer.form, errors = policy.probe(engine, groups, config.dtype, config.layout, args.device)
        if state.is_world_process_zero:
            text = json.dumps({"form": trainer.form, "errors": errors})
            (self.output / "probe.json").write_text(text, encoding="utf-8")
        if config.reference == "precompute":
            folder = self.output / "reference" / self.fingerprint
            if config.lora is None and state.global_step and reference.num_missing(folder, store.ids):
                raise RuntimeError(f"{folder} lost scores of the untrained model, which is trained by now; delete "
                                   f"{self.output} and run again")  # fmt: skip
            with trainer.as_reference():
                reference.score(engine, trainer.form, store, store.ids, folder, args.device)
            trainer.reference = reference.read(folder)


class StepLog(TrainerCallback):
    """Appends one JSON line for each optimizer step and validation: what the progress line and the report read."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.started = time.monotonic()
        self.total_tokens = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the step's clock (kept over accumulation)."""
        self.started = time.monotonic()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Write the step's or the validation's line."""
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        line: dict[str, Any] = {"step": state.global_step, "steps": state.max_steps}
        line |= {TRL_NAMES.get(name, name): round(value, 6) for name, value in logs.items()
                 if isinstance(value, int | float)}  # fmt: skip
        if "num_tokens" in logs:  # TRL's own count, of all steps of this process
            line["tokens"], self.total_tokens = logs["num_tokens"] - self.total_tokens, logs["num_tokens"]
            line.setdefault("dpo_loss", line.get("loss"))
        if "loss" in logs:
            line["seconds"] = round(time.monotonic() - self.started, 3)
        with (self.output / ("steps.jsonl" if "loss" in logs else "validation.jsonl")).open("a") as file:
            file.write(json.dumps(line) + "\n")


class RayCheckpoints(TrainerCallback):
    """Hands each checkpoint to Ray Train: every worker its own shards, uploaded while training goes on."""

    def __init__(self, validate: bool) -> None:
        self.validate = validate
        self.metrics: dict[str, float] = {}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Validate at the last step as well, so that its checkpoint has numbers."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        """Keep the numbers for the checkpoint that follows."""
        self.metrics = {"eval_step": state.global_step, **metrics}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the checkpoint that was just written."""
        from ray import train
        from ray.train import Checkpoint, CheckpointUploadMode

        assert args.output_dir is not None
        refuse_weights_that_are_no_numbers(kwargs["model"], state.global_step)
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        mode = CheckpointUploadMode.ASYNC
        train.report(
            {"step": state.global_step, **self.metrics}, checkpoint=Checkpoint.from_directory(str(folder)),
            checkpoint_dir_name=f"checkpoint-{state.global_step:06d}", checkpoint_upload_mode=mode,
            validation=self.validate,
        )  # fmt: skip


def refuse_weights_that_are_no_numbers(model: Any, step: int) -> None:
    """A step with an infinite gradient ruins the weights before any loss shows it: such a checkpoint is not kept.

    Raises:
        BadLossError: a trained weight is not finite.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(getattr(parameter, "ds_tensor", parameter)).all():
            raise BadLossError(f"weights of {name} are no numbers after step {step}; lower learning_rate; "
                               "the last good checkpoint is kept")  # fmt: skip
