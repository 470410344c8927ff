"""The training stage: groups in, a model folder out, by Ray Train and DeepSpeed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trimtab import cluster, models, registry
from trimtab.artifacts import Outcome, Record, read_log, require_record, run_stage, write_text
from trimtab.chat import Chat
from trimtab.config import InputError
from trimtab.console import say
from trimtab.host import has_bfloat16
from trimtab.training import pairwise
from trimtab.training.card import model_card
from trimtab.training.config import TrainingConfig
from trimtab.training.data import Prepared, tokenized
from trimtab.training.loop import BAD_LOSS
from trimtab.training.plan import Item, make_plan, steps_of, write_plan
from trimtab.training.progress import watch
from trimtab.training.store import write_groups

STAGE = "train"
ValidationFn = Callable[[Path], dict[str, float]]
"""Takes a model folder, gives numbers; ``corr_mean`` among them where keep-best asks for it."""


def run(config: TrainingConfig, *, validation_fn: ValidationFn | None = None) -> Record:
    """Train on ranked groups. Running it again goes on from the last checkpoint, or skips what is done.

    Args:
        validation_fn: called with each checkpoint's model folder, beside the training; what it gives is recorded.

    Raises:
        InputError: an input is missing or unfinished, or the settings don't go together.
    """
    refuse_what_does_not_fit(config, validation_fn)
    if config.name:
        registry.refuse_bad_name(config.name)
    folder = models.resolve(config.model)
    records = [require_record("data", part.path, "synthesize") for part in config.parts]
    inputs = {"model": models.fingerprint(folder)} | {f"data.{i}": r.fingerprint for i, r in enumerate(records)}

    def work(output: Path) -> Outcome:
        return _train(config, folder, inputs["model"], output, validation_fn)

    record = run_stage(STAGE, config.output, config, inputs, work)
    shutil.rmtree(config.output / "ray", ignore_errors=True)  # checkpoints: of no use behind the record, only before
    return record


def refuse_what_does_not_fit(config: TrainingConfig, validation_fn: ValidationFn | None) -> None:
    """Settings that exclude one another.

    Raises:
        InputError: naming the field and the remedy.
    """
    split = config.validation
    watches = split.keep_best or split.early_stopping_patience
    rules: list[tuple[bool, str, object, str, str]] = [
        (not config.data, "data", "[]", "no input", "give at least one output of trimtab synthesize"),
        (config.groups_per_step < config.num_workers, "groups_per_step", config.groups_per_step,
         f"is fewer than num_workers = {config.num_workers}", "raise it, or use fewer workers"),
        (config.objective == "ranked" and config.pair_order != "shuffled", "pair_order", config.pair_order,
         "means nothing to objective ranked", "leave it out, or use objective=pairwise"),
        (config.label_smoothing > 0 and config.loss_type != "sigmoid", "label_smoothing", config.label_smoothing,
         f"means nothing to loss_type {config.loss_type}", "set it to 0"),
        (config.loss_type == "plackett_luce" and (config.pairs, config.pair_weights) != ("all", "uniform"), "pairs",
         config.pairs, "plackett_luce takes the ranking as a whole", "leave pairs and pair_weights as they are"),
        (config.reference == "adapter" and config.lora is None, "reference", "adapter", "needs adapters",
         "set lora, or reference=precompute"),
        (config.load_in_4bit and (config.lora is None or not config.use_gpu), "load_in_4bit", True,
         "is for adapters on a GPU", "set lora and use_gpu, or leave it off"),
        (bool(config.name) and not config.merge, "name", config.name, "a folder of adapters alone can't be served",
         "set merge=true, or leave the name out"),
        (bool(owned := ours_of(config.deepspeed)), "deepspeed", ", ".join(owned), "is set by fields of its own",
         "use zero_stage, dtype, max_grad_norm, groups_per_step or learning_rate"),
        (config.attention == "flex_attention" and not config.use_gpu, "attention", "flex_attention",
         "has no backward pass on CPU", "use sdpa"),
        (bool(watches) and not split.share and split.metric != "corr_mean", "validation.share", split.share,
         "nothing is held out to choose by", "hold out some prompts, such as 0.1"),
        (bool(watches) and split.metric == "corr_mean" and validation_fn is None, "validation.metric", "corr_mean",
         "no validation function was handed in", "call trimtab pipeline, or use loss or accuracy"),
        (bool(split.early_stopping_patience) and split.metric == "corr_mean", "validation.early_stopping_patience",
         split.early_stopping_patience, "corr_mean comes too late to stop by", "use metric=loss or accuracy"),
    ]  # fmt: skip
    for broken, field, value, problem, remedy in rules:
        if broken:
            raise InputError(field, value, problem, remedy)
    if config.objective == "pairwise":
        pairwise.refuse_what_trl_lacks(config)


OWN_KEYS = {"optimizer", "scheduler", "bf16", "fp16", "gradient_clipping", "gradient_accumulation_steps",
            "train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization.stage"}  # fmt: skip


def ours_of(deepspeed: dict[str, Any]) -> list[str]:
    """Keys of DeepSpeed's configuration that decide the model, or that the plan must know, and so have own fields."""
    given = {*deepspeed, *(f"zero_optimization.{key}" for key in deepspeed.get("zero_optimization", {}))}
    return sorted(given & OWN_KEYS)


def _train(
    config: TrainingConfig, folder: Path, model_print: str, output: Path, validation_fn: ValidationFn | None
) -> Outcome:
    config = with_dtype(config)
    prepared = prepare(config, folder, output)
    from trimtab.training.fit import fit

    cluster.connect(config.ray)
    with watch(output, len(prepared.train) + len(prepared.validation)):
        probes = [group_id for _, group_id in prepared.probes.values()]
        chosen = fit(config, folder, model_print, output, probes, validation_fn)
    steps, validation = read_log(output / "steps.jsonl"), read_log(output / "validation.jsonl")
    counts = {"groups": len(prepared.train), "validation_groups": len(prepared.validation), "steps": len(steps),
              "tokens": int(sum(step["tokens"] for step in steps)),
              "truncated_responses": prepared.truncated_responses,
              "dropped_groups": prepared.dropped_groups,
              "control_token_groups": prepared.control_token_groups}  # fmt: skip
    results: dict[str, Any] = {"first": _mean(steps[:5]), "last": _mean(steps[-5:]), "checkpoint": chosen.metrics}
    if validation:
        results["validation"] = next(v for v in validation if v["step"] == chosen.metrics.get("eval_step", v["step"]))
    card = model_card(config, model_print, counts, results, prepared.systems)
    chosen.export(folder, config, prepared.systems, card, output / "model")
    results["model"] = models.fingerprint(output / "model")
    if config.name:
        results["registered"] = registry.register(config.name, output / "model", results["model"])
        say(f"  registered as {results['registered']}")
    return Outcome(counts=counts, results=results, timings_s={"steps": sum(step["seconds"] for step in steps)})


def with_dtype(config: TrainingConfig) -> TrainingConfig:
    """The configuration with ``dtype: auto`` resolved for the machine that the command runs on."""
    if config.dtype != "auto":
        return config
    dtype = "bfloat16" if config.use_gpu or has_bfloat16() else "float32"
    say(f"  computes in {dtype}")
    return config.model_copy(update={"dtype": dtype})


def prepare(config: TrainingConfig, folder: Path, output: Path) -> Prepared:
    """Tokenize the mixture and draw the plan, or read both where an interrupted run left them."""
    groups, summary = output / "groups.arrow", output / "prepared.json"
    if summary.is_file():
        values = json.loads(summary.read_text(encoding="utf-8"))
        train, validation = ([Item(**item) for item in values.pop(side)] for side in ("train", "validation"))
        prepared = Prepared(train, validation, **values)
    else:
        prepared = Prepared()
        write_groups(groups, tokenized(config, Chat.from_folder(str(folder)), prepared))
    steps = steps_of(prepared.train, config.num_train_epochs, config.groups_per_step, config.seed)
    if not summary.is_file():
        try:
            _refuse_nothing(config, prepared, steps)
        except InputError:
            groups.unlink()  # so that the folder is free for the settings that the message asks for
            raise
        write_text(summary, json.dumps(asdict(prepared)))
    _write_plans(config, prepared, steps, output)
    (output / BAD_LOSS).unlink(missing_ok=True)
    forged = f" ({prepared.control_token_groups} hold control tokens)" if prepared.control_token_groups else ""
    say(f"  {len(prepared.train)} groups, {len(prepared.validation)} for validation; "
        f"{prepared.truncated_responses} responses cut, {prepared.dropped_groups} groups dropped{forged}")  # fmt: skip
    return prepared


def _refuse_nothing(config: TrainingConfig, prepared: Prepared, steps: list[list[Item]]) -> None:
    if not prepared.train:
        raise InputError("max_length", config.max_length, "leaves no group", "raise it or give shorter prompts")
    if not steps:
        raise InputError("data", [part.weight for part in config.parts], "these weights draw no group", "raise them")
    if config.validation.share and not prepared.validation:
        raise InputError("validation.share", config.validation.share, "leaves no group to validate on", "raise it")


def _write_plans(config: TrainingConfig, prepared: Prepared, steps: list[list[Item]], output: Path) -> None:
    """The plans for this number of workers; a run that has checkpoints can't change it."""
    shape = {"num_workers": config.num_workers, "max_tokens": config.max_tokens, "zero_stage": config.zero_stage,
             "dtype": config.dtype}  # fmt: skip
    path = output / "shape.json"
    if path.is_file() and (output / "ray").is_dir():
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in shape.items():
            if before.get(name, value) != value:  # an older run has no dtype there
                problem = f"the checkpoints here were made with {before[name]}"
                raise InputError(name, value, problem, "use that, or choose another output")
    write_plan(output / "plan.parquet", make_plan(steps, config.num_workers, config.max_tokens)[0])
    validation = [prepared.validation] if prepared.validation else []
    write_plan(output / "validation_plan.parquet", make_plan(validation, config.num_workers, config.max_tokens)[0])
    write_text(path, json.dumps(shape))


def _mean(steps: list[dict[str, Any]]) -> dict[str, float]:
    names = ("dpo_loss", "nll", "accuracy", "margin")
    present = [name for name in names if steps and name in steps[-1]]
    return {name: round(sum(step[name] for step in steps) / len(steps), 4) for name in present}
