"""What runs in each Ray Train worker: load, score the reference, train under DeepSpeed, save."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from trimtab.chat import Chat
from trimtab.training.config import TrainingConfig
from trimtab.training.data import TokenizedGroup, read_groups, tokenize

PROBE_TOLERANCE = {"bfloat16": 0.1, "float32": 1e-3}


def train_worker(arguments: dict[str, Any]) -> None:
    """The train loop of one worker.

    Args:
        arguments: ``config`` (JSON of TrainingConfig), ``model`` (folder) and ``output`` (folder that all workers see).
    """
    config = TrainingConfig.model_validate_json(arguments["config"])
    output, folder = Path(arguments["output"]), arguments["model"]
    _prepare_process(config)
    import torch
    from ray import train
    from torch import distributed

    from trimtab.training import reference
    from trimtab.training.policy import TriePolicy

    rank, world = train.get_context().get_world_rank(), train.get_context().get_world_size()
    groups, _ = tokenize(read_groups(list(config.data)), Chat.from_folder(folder), config.max_length)
    torch.manual_seed(config.seed)
    policy = TriePolicy(load_model(folder, config))
    if config.use_gpu:
        policy.to(f"cuda:{torch.cuda.current_device()}")
    probe(policy, groups[0], config)
    reference.score(policy, groups[rank::world], output / "reference" / f"reference-{rank}-of-{world}.parquet")
    if world > 1:
        distributed.barrier()
    trainer = build_trainer(config, policy, groups, reference.read(output / "reference"), output)
    _use_all_cores(config)  # accelerate has set its own number meanwhile
    trainer.train(resume_from_checkpoint=last_checkpoint(output))
    save(trainer, folder, config, output / "model")


def _prepare_process(config: TrainingConfig) -> None:
    """Environment that must stand before torch and deepspeed are imported, and this worker's share of the cores."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not config.use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        _use_all_cores(config)


def _use_all_cores(config: TrainingConfig) -> None:
    if not config.use_gpu:
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // config.num_workers))


def load_model(folder: str, config: TrainingConfig) -> Any:
    """The base model in the training dtype, with adapters where configured."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, config.dtype), attn_implementation="sdpa", trust_remote_code=False
    )
    if config.lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    values = config.lora.model_dump() | {"task_type": "CAUSAL_LM"}
    if isinstance(values["target_modules"], tuple):
        values["target_modules"] = list(values["target_modules"])
    return get_peft_model(model, LoraConfig(**values))


def probe(policy: Any, group: TokenizedGroup, config: TrainingConfig) -> None:
    """Check on one real group that this architecture scores a trie as it scores plain sequences.

    Raises:
        ValueError: it ignores the mask or the positions (sliding window, ALiBi, linear attention, logit scaling).
    """
    import torch

    from trimtab.training.policy import plain_log_probs, to_tensors
    from trimtab.training.trie import build_forest

    forest = build_forest([(group.prompt, group.responses)])
    policy.eval()
    with torch.no_grad():
        tensors = to_tensors(forest, next(policy.parameters()).device)
        trie = policy(**tensors)
        for path, response in list(zip(forest.paths[0], group.responses, strict=True))[-2:]:
            error = (trie[torch.from_numpy(path)] - plain_log_probs(policy.model, group.prompt, response)).abs().mean()
            if not error < PROBE_TOLERANCE[config.dtype]:
                raise ValueError(
                    f"model: this architecture can't score a token trie (mean error {error:.3g} nats a token)"
                )


def build_trainer(
    config: TrainingConfig, policy: Any, groups: list[TokenizedGroup], reference: dict[str, list[float]], output: Path
) -> Any:
    """The trainer of this worker, with DeepSpeed's configuration."""
    from transformers import TrainingArguments

    from trimtab.training.trainer import RankedTrainer, StepLog, collate

    accumulation = config.groups_per_step // (config.groups_per_forward * config.num_workers)
    arguments = TrainingArguments(
        output_dir=str(output / "checkpoints"), per_device_train_batch_size=config.groups_per_forward,
        gradient_accumulation_steps=accumulation, learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type, warmup_steps=config.warmup_ratio,
        max_grad_norm=config.max_grad_norm, num_train_epochs=config.num_train_epochs, seed=config.seed,
        bf16=config.dtype == "bfloat16", use_cpu=not config.use_gpu, save_steps=config.checkpoint_steps,
        save_total_limit=1, report_to=[], disable_tqdm=True, logging_strategy="no", remove_unused_columns=False,
        dataloader_pin_memory=False, deepspeed=deepspeed_config(config, accumulation),
    )  # fmt: skip
    log = StepLog(output / "steps.jsonl")
    is_main = int(os.environ.get("RANK", "0")) == 0
    trainer = RankedTrainer(
        config, reference, model=policy, args=arguments, train_dataset=groups, data_collator=collate,
        callbacks=[log] if is_main else [],
    )  # fmt: skip
    log.trainer = trainer
    return trainer


def deepspeed_config(config: TrainingConfig, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration; AdamW is torch's own on CPU, where DeepSpeed's needs a compiled kernel."""
    stage: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        stage["stage3_gather_16bit_weights_on_model_save"] = True
    adam = {"lr": config.learning_rate, "weight_decay": 0.0, "torch_adam": not config.use_gpu}
    return {
        "train_micro_batch_size_per_gpu": config.groups_per_forward,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": stage,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "optimizer": {"type": "AdamW", "params": adam},
    }


def last_checkpoint(output: Path) -> str | None:
    """The newest finished checkpoint of an interrupted run."""
    from transformers.trainer_utils import get_last_checkpoint

    folder = output / "checkpoints"
    return get_last_checkpoint(str(folder)) if folder.is_dir() else None


def save(trainer: Any, base: str, config: TrainingConfig, target: Path) -> None:
    """Write the trained model as a plain safetensors folder, adapters merged in float32; rank 0 writes."""
    import torch
    from transformers import AutoTokenizer

    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.process_index != 0:
        return
    model = load_model(base, config).float()
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=False)
    merged = model.merge_and_unload() if config.lora else model
    part = target.with_name(".model.part")
    shutil.rmtree(part, ignore_errors=True)
    merged.to(getattr(torch, config.dtype)).save_pretrained(part)
    AutoTokenizer.from_pretrained(base).save_pretrained(part)
    systems = sorted({(group.configuration, group.system or "") for group in read_groups(list(config.data))})
    text = json.dumps({"configurations": [{"name": name, "system": system} for name, system in systems]}, indent=2)
    (part / "trimtab.json").write_text(text, encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    part.replace(target)
