"""The configuration of ``trimtab train``, in the words of TRL's DPOConfig and PEFT where they have them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from trimtab.cluster import RayConfig
from trimtab.config import Config, placement


class LoRA(Config):
    """Low-rank adapters on the linear layers (PEFT's names)."""

    r: int = Field(24, ge=1)
    """Rank (CST: 24)."""
    lora_alpha: float = Field(48, gt=0)
    """Scale (CST: 48)."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout; 0 keeps the policy's first step equal to the reference."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to adapt."""


class TrainingConfig(Config):
    """``trimtab train``: DPO on ranked groups."""

    output: Path = placement()
    """Folder of the output: model/, steps.jsonl, record.json."""
    model: str = placement("smollm2-135m")
    """The base model, which is the reference as well: a folder, a Hub id or the embedded default."""
    data: tuple[Path, ...] = placement()
    """Outputs of ``trimtab synthesize``."""
    beta: float = Field(0.1, gt=0)
    """β of DPO (CST: 0.1)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences taken to be wrong (conservative DPO)."""
    likelihood_weight: float = Field(0.0, ge=0)
    """Weight of the mean negative log-likelihood per token of a group's demonstrations, without their given start."""
    likelihood_tokens: int | None = Field(None, ge=1)
    """Only the first so many tokens of each demonstration, where the model turns; none: all of it."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = "cosine"
    """Schedule, as transformers names it."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps that warm up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    num_train_epochs: float = Field(1, gt=0)
    """Passes over the groups."""
    groups_per_step: int = Field(4, ge=1)
    """Groups of one optimizer step, over all workers."""
    groups_per_forward: int = placement(1, ge=1)
    """Groups packed into one forest; ``groups_per_step`` must be a multiple of it times the workers."""
    max_length: int = Field(1024, ge=16)
    """Prompt and one response together, in tokens; longer responses are cut and counted."""
    lora: LoRA | None = None
    """Adapters; none trains all parameters."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Weight type of the forward and backward passes; the optimizer's master weights are float32."""
    zero_stage: Literal[0, 1, 2, 3] = placement(2)
    """DeepSpeed ZeRO stage."""
    num_workers: int = placement(1, ge=1)
    """Ray Train workers."""
    use_gpu: bool = placement(False)
    """One GPU a worker; else the cores are shared among the workers."""
    cpus_per_worker: float = placement(1, gt=0)
    """Logical CPUs that a worker asks of Ray."""
    checkpoint_steps: int = placement(25, ge=1)
    """Steps between checkpoints: what an interruption can cost."""
    max_failures: int = placement(1, ge=0)
    """Times that Ray Train starts lost workers again, from the last checkpoint."""
    seed: int = 0
    """Seed of the order of groups and of the adapters."""
    ray: RayConfig = placement(RayConfig())
