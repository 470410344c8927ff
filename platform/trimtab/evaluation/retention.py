"""What general chat lost: the model's loss per token on the base model's own answers to benign prompts.

Measured for the base on its own answers and for a tuned model on the same answers, prompt by prompt:
the rise in nats per token is how far the tuned model moved away from ordinary language.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from trimtab import cluster
from trimtab.artifacts import Outcome, Record, require_record
from trimtab.chat import ControlGuard
from trimtab.config import InputError, placement
from trimtab.data import lines
from trimtab.evaluation.prompts import forged
from trimtab.evaluation.stage import EvaluationConfig, Made, control_guard, model_folder, run_evaluation
from trimtab.files import LocalPath, Location
from trimtab.safety import system_prompt
from trimtab.schemas import (
    CONTENT_CHARS,
    Generation,
    PlanRow,
    Quarantined,
    RetentionRow,
    make_id,
    read_rows,
    write_rows,
)
from trimtab.sources import read_text
from trimtab.stats import Estimate, clustered_mean, paired_difference

STAGE = "evaluate retention"
SHIPPED = "benign_prompts.txt"


class RetentionConfig(EvaluationConfig):
    """``trimtab evaluate retention``: measure what general chat lost."""

    base: LocalPath | None = placement(None)
    """Output of the same command for the base model, whose answers are scored; none: this model's own answers."""
    prompts: Location | None = None
    """A text file of benign prompts, one a line, or its URI; none: the shipped ones."""
    num_prompts: int = Field(32, ge=1)
    """How many of them are asked."""
    configuration: str | None = "harmless"
    """The safety configuration of the system turn; none: no system turn of ours."""
    max_tokens: int = Field(64, ge=1)
    """New tokens of an answer; answers are greedy."""


def run(config: RetentionConfig, made: Made | None = None) -> Record:
    """Measure the loss per token on the base's answers. Running it again goes on, or skips what is done.

    Args:
        made: generations that a caller has for these rows already (see ``suite``); none: the engine's.

    Returns:
        A record whose ``results`` hold the Estimate ``nll`` (nats per token, mean over prompts).
    """
    folder = model_folder(config)
    if folder is None:
        raise InputError(
            "engine.type", config.engine.type, "can't score text", "use the vllm engine and a model folder"
        )
    prompts, bad = asked_prompts(config, control_guard(config))
    plan = _plan(prompts, config)
    inputs = {"prompts": make_id(*(row.prompt for row in plan))}
    if config.base:
        inputs["base"] = require_record("base", config.base, STAGE).fingerprint

    def finish(written: list[Generation], output: Path) -> Outcome:
        scored = _answers_of(config.base) if config.base else {row.id: row.text for row in written}
        cluster.connect(config.ray)
        rows = _score(str(folder), plan, written, scored)
        write_rows(output / "answers.parquet", RetentionRow, rows)
        nll = clustered_mean([row.nll for row in rows], [row.id for row in rows])
        write_rows(output / "quarantine.parquet", Quarantined, bad)
        return Outcome(counts={"prompts": len(rows), "quarantined": len(bad)}, results={"nll": nll.model_dump()})

    return run_evaluation(STAGE, config, inputs, plan, finish, made)


def plan_answers(config: RetentionConfig, guard: ControlGuard | None = None) -> list[PlanRow]:
    """One greedy answer for each benign prompt."""
    return _plan(asked_prompts(config, guard)[0], config)


def asked_prompts(config: RetentionConfig, guard: ControlGuard | None = None) -> tuple[list[str], list[Quarantined]]:
    """The benign prompts, each once, and those of a user's file that hold control tokens of the model."""
    path = config.prompts
    text = read_text("prompts", path, "a text file, one prompt a line").splitlines() if path else lines(SHIPPED)
    first: dict[str, int] = {}
    for number, line in enumerate(text):
        if prompt := line.strip():
            first.setdefault(prompt, number)
    prompts = list(first)[: config.num_prompts]
    bad = [Quarantined(source_row=first[prompt], reason=reason, content=prompt[:CONTENT_CHARS])
           for prompt in prompts if (reason := forged(guard, prompt))]  # fmt: skip
    unusable = {row.source_row for row in bad}
    return [prompt for prompt in prompts if first[prompt] not in unusable], bad


def _plan(prompts: list[str], config: RetentionConfig) -> list[PlanRow]:
    system = system_prompt(config.configuration)
    return [
        PlanRow(id=make_id("benign", prompt, config.configuration), request_id=make_id("benign", prompt),
                kind="benign", system=system, prompt=prompt, max_tokens=config.max_tokens)
        for prompt in prompts
    ]  # fmt: skip


def _answers_of(base: Path) -> dict[str, str]:
    return {row.id: row.scored for row in read_rows(base / "answers.parquet", RetentionRow)}


def _score(folder: str, plan: list[PlanRow], written: list[Generation], scored: dict[str, str]) -> list[RetentionRow]:
    """Losses of this model, by one plain forward a prompt, in a process of Ray's."""
    import ray

    kept = [(row, own) for row, own in zip(plan, written, strict=True) if scored.get(row.id, "").strip()]
    texts = [(row.system, row.prompt, scored[row.id]) for row, _ in kept]
    losses = ray.get(ray.remote(mean_nll).options(num_cpus=1).remote(folder, texts))
    return [
        RetentionRow(id=row.id, prompt=row.prompt, answer=own.text, scored=scored[row.id], nll=nll, num_tokens=n)
        for (row, own), (nll, n) in zip(kept, losses, strict=True)
    ]  # fmt: skip


def mean_nll(folder: str, texts: list[tuple[str | None, str, str]]) -> list[tuple[float, int]]:
    """(mean negative log-likelihood per token in nats, tokens) of answers to (system, prompt), in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from trimtab.chat import Chat

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    chat = Chat.from_folder(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    found = []
    with torch.no_grad():
        for system, prompt, answer in texts:
            head, tail = chat.prompt_ids(system, prompt), chat.encode(answer)
            ids = torch.tensor([[*head, *tail]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(head) - 1 : -1]
            nll = torch.nn.functional.cross_entropy(logits.float(), ids[0, len(head) :])
            found.append((float(nll), len(tail)))
    return found


def compare(before: Path, after: Path) -> Estimate:
    """Rise of the loss per token (after − before) on the same answers, over prompts, in nats."""
    sides = [{row.id: row.nll for row in read_rows(folder / "answers.parquet", RetentionRow)}
             for folder in (before, after)]  # fmt: skip
    return paired_difference(sides[0], sides[1], {row_id: row_id for row_id in sides[0]})
