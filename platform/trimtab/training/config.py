"""The configuration of ``trimtab train``, in the words of TRL's DPOConfig and PEFT where they have them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trimtab.cluster import RayConfig
from trimtab.config import Config, placement
from trimtab.files import LocalPath, Location


class LoRA(Config):
    """Low-rank adapters on the linear layers (PEFT's names)."""

    r: int = Field(24, ge=1)
    """Rank (CST: 24)."""
    lora_alpha: float = Field(48, gt=0)
    """Scale (CST: 48)."""
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout (CST: 0.05); 0 keeps the policy's first step equal to the reference."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to adapt."""


class LossConfig(Config):
    """The objective on one ranked group."""

    loss_type: Literal["sigmoid", "ipo", "plackett_luce"] = "sigmoid"
    """``sigmoid`` (DPO) and ``ipo`` over pairs, as TRL has them; ``plackett_luce`` over the ranking as a whole."""
    beta: float = Field(0.1, gt=0)
    """β of DPO (CST: 0.1); τ of IPO."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of preferences taken to be wrong (conservative DPO); ``sigmoid`` only."""
    length_normalization: bool = False
    """Log-ratios per token of the response instead of summed (TRL's ``sigmoid_norm``); IPO always does so."""
    pairs: Literal["all", "adjacent"] = "all"
    """All N·(N−1)/2 pairs of a group, or the N−1 of neighbours in the ranking."""
    pair_weights: Literal["uniform", "rank_gap"] = "uniform"
    """``rank_gap``: a pair counts in proportion to how far apart its two ranks are."""
    likelihood_weight: float = Field(0.0, ge=0)
    """Weight of the mean negative log-likelihood per token of a group's demonstrations, without their given start."""
    likelihood_tokens: int | None = Field(None, ge=1)
    """Only the first so many tokens of each demonstration, where the model turns; none: all of it."""


class DataPart(Config):
    """One part of a mixture."""

    path: Location = placement()
    """Output of ``trimtab synthesize``, a folder or its URI: C²-SYN groups, CST pairs or an imported set."""
    weight: float = Field(1.0, gt=0)
    """Times that a group of this part is seen in an epoch: 2 is twice, 0.5 a seeded half of its prompts."""
    configurations: tuple[str, ...] | None = None
    """Only groups of these safety configurations; ``[harmless]`` alone is the plain-DPO baseline, without flips."""


class ValidationConfig(Config):
    """Validation on held-out prompts at checkpoints."""

    share: float = Field(0.0, ge=0, lt=0.5)
    """Share of the prompts held out of training, near-duplicates with them; 0: no validation."""
    metric: Literal["loss", "accuracy", "corr_mean"] = "loss"
    """What keep-best and early stopping look at; ``corr_mean`` needs a validation function."""
    keep_best: bool = False
    """Write the checkpoint with the best metric, not the last."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after so many validations without a better one (``loss`` and ``accuracy``)."""
    seed: int = 0
    """Seed of the split."""


class TrainingConfig(LossConfig):
    """``trimtab train``: DPO on ranked groups."""

    output: LocalPath = placement()
    """Folder of the output: model/, steps.jsonl, record.json."""
    model: str = placement("smollm2-135m")
    """The base model, which is the reference as well: a folder, a registered name@version, a Hub id or the default."""
    data: tuple[Location | DataPart, ...] = ()
    """Outputs of ``trimtab synthesize``, folders or URIs, perhaps with weights."""
    objective: Literal["ranked", "pairwise"] = "ranked"
    """``ranked``: the token trie of each group; ``pairwise``: TRL's own DPOTrainer on the shuffled pairs."""
    pair_order: Literal["shuffled", "grouped"] = "shuffled"
    """``pairwise`` only: pairs of all groups mixed, or those of a group one after the other, as ``ranked`` has them."""
    layout: Literal["auto", "trie", "grouped"] = placement("auto")
    """How a group is computed; ``auto``: ``trie`` where a probe at start-up finds it equal to plain sequences."""
    attention: Literal["auto", "sdpa", "flex_attention"] = placement("auto")
    """``auto``: FlexAttention's block mask on GPU, SDPA's dense mask on CPU."""
    reference: Literal["precompute", "adapter"] = placement("precompute")
    """``precompute``: one pass before training, stored; ``adapter``: adapters switched off at each step (LoRA)."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of AdamW."""
    lr_scheduler_type: str = "cosine"
    """Schedule, as transformers names it."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """Share of the steps that warm up."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    num_train_epochs: float = Field(1, gt=0)
    """Passes over the groups. A step of few groups says less than one of as many shuffled pairs, whose prompts differ;
    with small data give ``ranked`` about three (``training_quality``)."""
    groups_per_step: int = Field(4, ge=1)
    """Groups of one optimizer step, over all workers and forward passes."""
    max_tokens: int | None = placement(None, ge=16)
    """Groups of a step are packed into forests of at most so many tokens; none: one group a forward pass."""
    max_length: int = Field(1024, ge=16)
    """Prompt and one response together, in tokens; longer responses are cut and counted."""
    lora: LoRA | None = None
    """Adapters; none trains all parameters."""
    load_in_4bit: bool = False
    """Base weights in 4 bits under the adapters (QLoRA, as CST was published); needs a GPU and bitsandbytes."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Weight type of the forward and backward passes; the optimizer's master weights are float32. ``auto`` is bfloat16,
    or float32 on a CPU that is slow in bfloat16."""
    gradient_checkpointing: bool = placement(False)
    """Compute activations again in the backward pass instead of keeping them."""
    zero_stage: Literal[0, 1, 2, 3] = placement(2)
    """DeepSpeed ZeRO stage."""
    deepspeed: dict[str, Any] = placement({})
    """Passed through into DeepSpeed's configuration, such as ``zero_optimization: {offload_optimizer: …}``."""
    num_workers: int = placement(1, ge=1)
    """Ray Train workers."""
    use_gpu: bool = placement(False)
    """One GPU a worker; else the cores are shared among the workers."""
    cpus_per_worker: float = placement(1, gt=0)
    """Logical CPUs that a worker asks of Ray."""
    save_steps: int = placement(25, ge=1)
    """Steps between checkpoints: what an interruption can cost."""
    save_total_limit: int = placement(1, ge=1)
    """Checkpoints that are kept (the best one besides)."""
    max_failures: int = placement(1, ge=0)
    """Times that Ray Train starts lost workers again, from the last checkpoint."""
    validation: ValidationConfig = ValidationConfig()
    report_to: tuple[str, ...] = placement(("tensorboard",))
    """Trackers, as transformers names them: tensorboard, trackio, mlflow, wandb, …"""
    merge: bool = True
    """Merge adapters into the written model; false writes the adapter's own folder."""
    name: str | None = placement(None)
    """Register the model in ``$TRIMTAB_HOME`` under this name, as its next version."""
    seed: int = 0
    """Seed of the order of groups and of the adapters."""
    ray: RayConfig = placement(RayConfig())

    @property
    def parts(self) -> list[DataPart]:
        """The mixture; a plain path has weight 1."""
        return [part if isinstance(part, DataPart) else DataPart(path=part) for part in self.data]

    def identity(self) -> dict[str, Any]:
        """Paths of the data are no identity (their fingerprints are inputs); weights and selections are."""
        return super().identity() | {"data": [part.identity() for part in self.parts]}
