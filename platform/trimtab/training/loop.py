"""What runs in each Ray Train worker: load the model, train under DeepSpeed, report checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trimtab.training.config import TrainingConfig

BAD_LOSS = "bad_loss.txt"
METRICS = {"loss": ("eval_dpo_loss", False), "accuracy": ("eval_accuracy", True), "corr_mean": ("corr_mean", True)}
"""Validation metric -> (its name in the logs, whether more is better)."""


def train_worker(arguments: dict[str, Any]) -> None:
    """The train loop of one worker on ranked groups; arguments as for ``run_worker``."""
    run_worker(arguments, build_trainer)


def run_worker(arguments: dict[str, Any], build: Callable[[TrainingConfig, dict[str, Any], str], Any]) -> None:
    """Train with the trainer that ``build`` makes, from the last checkpoint where there is one.

    Args:
        arguments: ``config`` (JSON of TrainingConfig), ``model`` (folder), ``fingerprint`` (of the model),
            ``output`` (folder that all workers see), ``probes`` (ids of the groups to probe the model on),
            ``validate`` (whether a validation function was handed in).
        build: makes the trainer from the configuration, the arguments and a scratch folder.
    """
    config = TrainingConfig.model_validate_json(arguments["config"])
    output = Path(arguments["output"])
    prepare_process(config, output)
    from ray import train

    checkpoint = train.get_checkpoint()
    finished = output / "trained.json"
    if checkpoint is not None and finished.is_file():
        return  # trained to its end, perhaps an early one, before the model was written
    scratch = scratch_folder(output)
    trainer = build(config, arguments, str(scratch))
    use_all_cores(config)  # accelerate has set its own number meanwhile
    with _bad_loss_is_final(output):
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as folder:
                trainer.train(resume_from_checkpoint=folder)
    wait_for_uploads()
    if trainer.is_world_process_zero():
        finished.write_text(json.dumps({"step": trainer.state.global_step}), encoding="utf-8")
    shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _bad_loss_is_final(output: Path) -> Iterator[None]:
    """A loss that is no number comes again from the same checkpoint: Ray Train's next attempt gives up at once."""
    from trimtab.training.trainer import BadLossError

    path = output / BAD_LOSS
    if path.is_file():
        raise BadLossError(path.read_text(encoding="utf-8"))
    try:
        yield
    except BadLossError as error:
        path.write_text(str(error), encoding="utf-8")
        raise


def scratch_folder(output: Path) -> Path:
    """Where this worker writes checkpoints before they are uploaded, emptied of what a killed one left there."""
    from ray import train

    name = hashlib.sha256(f"{output}/{train.get_context().get_world_rank()}".encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"trimtab-checkpoints-{os.getuid()}" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)
    return folder


def wait_for_uploads() -> None:
    """Checkpoints are uploaded from the scratch folder, so it must stay until all are; validations may go on."""
    from ray import train
    from ray.train import CheckpointConsistencyMode

    train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)


def prepare_process(config: TrainingConfig, output: Path) -> None:
    """Environment that must stand before torch and deepspeed are imported, and this worker's share of the cores."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(output / "tensorboard")
    if not config.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        use_all_cores(config)


def use_all_cores(config: TrainingConfig) -> None:
    """Share this machine's cores among its workers."""
    if not config.use_gpu:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.num_workers))


def build_trainer(config: TrainingConfig, arguments: dict[str, Any], scratch: str) -> Any:
    """The trainer of this worker, on its plan and store."""
    import torch

    from trimtab.training import callbacks
    from trimtab.training.plan import read_plan
    from trimtab.training.policy import as_scorer
    from trimtab.training.store import GroupStore
    from trimtab.training.trainer import Forwards, RankedTrainer

    output = Path(arguments["output"])
    plan, validation = read_plan(output / "plan.parquet"), read_plan(output / "validation_plan.parquet")
    args = training_arguments(config, scratch, max(forward.part for forward in plan) + 1, bool(validation))
    torch.manual_seed(config.seed)
    store = GroupStore(output / "groups.arrow")
    prepare = callbacks.Prepare(output, arguments["fingerprint"], arguments["probes"])
    trainer = RankedTrainer(
        config, store, model=as_scorer(load_model(arguments["model"], config)), args=args,
        callbacks=[prepare, *hooks(config, output, arguments["validate"])],
        train_dataset=Forwards(store, plan), eval_dataset=Forwards(store, validation) if validation else None,
    )  # fmt: skip
    prepare.trainer = trainer
    return trainer


def hooks(config: TrainingConfig, output: Path, validate: bool) -> list[Any]:
    """What both trainers have beside their steps: the step log, checkpoints, early stopping where it is asked for."""
    from transformers import EarlyStoppingCallback

    from trimtab.training import callbacks

    patience = config.validation.early_stopping_patience
    stopping = [EarlyStoppingCallback(patience)] if patience else []
    return [callbacks.StepLog(output), callbacks.RayCheckpoints(validate), *stopping]


def arguments_of_both(config: TrainingConfig, scratch: str, parts: int, validates: bool) -> dict[str, Any]:
    """The library's arguments that are the same for both trainers: ``parts`` forward passes a step, one epoch."""
    metric, greater = METRICS[config.validation.metric]
    watched = validates and config.validation.metric != "corr_mean"
    return {
        "output_dir": scratch, "per_device_train_batch_size": 1, "gradient_accumulation_steps": parts,
        "num_train_epochs": 1, "learning_rate": config.learning_rate, "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_ratio, "max_grad_norm": config.max_grad_norm, "seed": config.seed,
        "bf16": config.dtype == "bfloat16", "use_cpu": not config.use_gpu, "save_steps": config.save_steps,
        "eval_strategy": "steps" if validates else "no", "eval_steps": config.save_steps,
        "metric_for_best_model": metric if watched else None, "greater_is_better": greater if watched else None,
        "gradient_checkpointing": config.gradient_checkpointing, "report_to": list(config.report_to),
        "disable_tqdm": True, "logging_strategy": "steps", "logging_steps": 1, "dataloader_pin_memory": False,
        "save_on_each_node": True, "restore_callback_states_from_checkpoint": True,
        "deepspeed": deepspeed_config(config, parts),
    }  # fmt: skip


def training_arguments(config: TrainingConfig, scratch: str, parts: int, validates: bool) -> Any:
    """The trie trainer's arguments: one forward pass of the plan a batch."""
    from transformers import TrainingArguments

    return TrainingArguments(**arguments_of_both(config, scratch, parts, validates), remove_unused_columns=False)


def deepspeed_config(config: TrainingConfig, parts: int) -> dict[str, Any]:
    """DeepSpeed's configuration; AdamW is torch's own on CPU, where DeepSpeed's needs a compiled kernel."""
    stage: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        stage["stage3_gather_16bit_weights_on_model_save"] = True
    adam = {"lr": config.learning_rate, "weight_decay": 0.0, "torch_adam": not config.use_gpu}
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": parts,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": stage,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "optimizer": {"type": "AdamW", "params": adam},
    }
    if config.dtype == "bfloat16" and parts > 1 and config.zero_stage in (1, 2):
        values["data_types"] = {"grad_accum_dtype": "fp32"}  # else the passes of a step are summed in bfloat16
    return _merged(values, config.deepspeed)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` laid on ``base``, mappings merged key by key."""
    nested = {key: _merged(base[key], value) for key, value in over.items()
              if isinstance(value, dict) and isinstance(base.get(key), dict)}  # fmt: skip
    return {**base, **over, **nested}


def load_model(folder: str, config: TrainingConfig) -> Any:
    """The base model in the training dtype, with adapters where configured."""
    import torch
    from transformers import AutoModelForCausalLM

    attention = config.attention
    if attention == "auto":
        attention = "flex_attention" if config.use_gpu else "sdpa"
    extra: dict[str, Any] = {}
    if config.load_in_4bit:
        from transformers import BitsAndBytesConfig

        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, config.dtype), attn_implementation=attention, trust_remote_code=False, **extra
    )
    without_dropout(model)
    return with_adapters(model, config) if config.lora else model


def without_dropout(model: Any) -> None:
    """Switch the base model's dropout off, as TRL does: a policy must begin equal to its reference."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def with_adapters(model: Any, config: TrainingConfig) -> Any:
    """PEFT's LoRA adapters on a model."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    assert config.lora is not None
    if config.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.gradient_checkpointing)
    values = config.lora.model_dump() | {"task_type": "CAUSAL_LM"}
    if isinstance(values["target_modules"], tuple):
        values["target_modules"] = list(values["target_modules"])
    return get_peft_model(model, LoraConfig(**values))
