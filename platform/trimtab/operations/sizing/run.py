"""The plan itself: from a configuration to one object with everything that is reckoned, as tables and JSON show it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.artifacts import Record, require_record
from trimtab.config import InputError
from trimtab.operations.sizing.assumptions import Assumption, assumptions
from trimtab.operations.sizing.config import PlanConfig
from trimtab.operations.sizing.limits import Limit, broken, limits
from trimtab.operations.sizing.memory import Fit, fits, gpus_of_an_engine
from trimtab.operations.sizing.shapes import Shape, shape_of
from trimtab.operations.sizing.storage import num_files, stored
from trimtab.operations.sizing.work import (
    Hours,
    Work,
    cost,
    hours,
    rate_of,
    synthesis_seconds,
    training_seconds,
    work_of,
)

SCHEMA = "trimtab-plan/1"
COUNTS = ("requests", "generations", "generated_tokens")


@dataclass(frozen=True)
class Size:
    """One number of requests."""

    work: Work
    synthesis: list[Hours]
    training: list[Hours]
    cost: list[dict[str, float]]
    storage: dict[str, float]
    num_files: int
    over: list[str]
    """Names of the limits that it is over."""


@dataclass(frozen=True)
class Plan:
    """Everything that is reckoned."""

    config: PlanConfig
    shape: Shape
    tokens_per_s: float
    sizes: list[Size]
    fits: list[Fit]
    engine_gpus: dict[float, int]
    """Card in GB -> GPUs of one engine."""
    limits: list[Limit]
    assumptions: list[Assumption]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        """The whole plan as plain values; a limit that is never reached breaks at null."""
        return {
            "schema": SCHEMA,
            "model": {"name": self.shape.name, "parameters": self.shape.num_parameters},
            "tokens_per_s_of_one_gpu": self.tokens_per_s,
            "sizes": [asdict(size) for size in self.sizes],
            "training_memory": [asdict(fit) | {"total": fit.total} for fit in self.fits],
            "gpus_of_one_engine": {f"{card:g}": count for card, count in self.engine_gpus.items()},
            "limits": [
                asdict(limit) | {"breaks_at": limit.breaks_at if limit.slope else None} for limit in self.limits
            ],
            "assumptions": [asdict(one) for one in self.assumptions],
            "notes": self.notes,
        }


def plan(config: PlanConfig) -> Plan:
    """Reckon a run.

    Raises:
        InputError: the model's size can't be told, or ``measured`` is no finished synthesis.
    """
    _refuse_nothing(config)
    resolved, taken, notes = _with_measured(config)
    shape = shape_of(config.model)
    cards = {card: gpus_of_an_engine(shape, card, config.training) for card in config.training.cards_gb}
    memory = fits(shape, config.training, config.gpus)
    return Plan(
        config=resolved, shape=shape, tokens_per_s=rate_of(resolved, shape),
        sizes=[_size(resolved, shape, count, min(cards.values()), memory) for count in config.num_requests],
        fits=memory, engine_gpus=cards, limits=limits(resolved), assumptions=assumptions(resolved, taken), notes=notes,
    )  # fmt: skip


def _refuse_nothing(config: PlanConfig) -> None:
    for field in ("num_requests", "gpus"):
        given = getattr(config, field)
        if not given or min(given) < 1:
            raise InputError(field, list(given), "needs numbers from 1", f"write --set '{field}=[8]'")
    cards = config.training.cards_gb
    if not cards or min(cards) <= 0:
        raise InputError(
            "training.cards_gb", list(cards), "needs sizes above 0", "write --set 'training.cards_gb=[80]'"
        )


def _size(config: PlanConfig, shape: Shape, num_requests: int, least_gpus: int, memory: Sequence[Fit]) -> Size:
    """One number of requests; an engine needs ``least_gpus`` of the largest cards."""
    work = work_of(config, num_requests)
    trains = {fit.gpus for fit in memory if fit.card_gb and not fit.adapters}
    generating, training = synthesis_seconds(config, shape, work), training_seconds(config, shape, work)
    made = [hours(config, generating, count, count >= least_gpus) for count in config.gpus]
    trained = [hours(config, training, count, count in trains) for count in config.gpus]
    costs = [cost(one.gpu_hours, other.gpu_hours, config.cost) for one, other in zip(made, trained, strict=True)]
    over = [limit.name for limit in broken(config, work)]
    return Size(work, made, trained, costs, stored(config, shape, work), num_files(config, work), over)


def _with_measured(config: PlanConfig) -> tuple[PlanConfig, list[str], list[str]]:
    """The configuration with what a finished synthesis says, except where the user gave a number; what was taken."""
    if config.measured is None:
        return config, [], []
    record = require_record("measured", config.measured, "synthesize")
    found, notes = _measured_numbers(record, str(config.measured))
    made_by = Path(str(record.config.get("model", ""))).name
    if "tokens_per_s" in found and made_by != Path(config.model).name:
        notes.append(f"{config.measured} is by {made_by}, whose tokens/s are taken for {config.model} as they are")
    taken = {key: value for key, value in found.items() if key not in config.model_fields_set}
    return config.model_copy(update=taken), list(taken), notes


def _measured_numbers(record: Record, where: str) -> tuple[dict[str, float], list[str]]:
    counts = record.counts
    if any(not counts.get(name) for name in COUNTS):
        raise InputError("measured", where, "generated nothing", "give the output of a recipe that generates")
    found: dict[str, float] = {
        "generations_per_request": counts["generations"] / counts["requests"],
        "new_tokens": counts["generated_tokens"] / counts["generations"],
    }
    ranks = (1 + math.sqrt(1 + 8 * counts.get("pairs", 0) / max(1, counts.get("groups", 0)))) / 2
    if ranks >= 2 and ranks.is_integer():
        found["responses_per_group"] = int(ranks)  # N answers make N·(N−1)/2 pairs
    rate = record.results.get("tokens_per_s")
    engine = record.config.get("engine", {})
    if not rate:
        return found, [f"{where} has no tokens/s: the rate is assumed"]
    if engine.get("type") != "vllm":
        return found, [f"{where} asked an endpoint, whose {rate:.0f} tokens/s are no GPU's rate here: it is assumed"]
    actors, accelerators = engine.get("num_actors", 1), engine.get("accelerators", 0)
    notes = []
    if engine.get("max_actors"):
        notes.append(
            f"{where} ran {actors} to {engine['max_actors']} actors; its rate is shared among the least of them"
        )
    if not accelerators:
        notes.append(
            f"{where} ran on CPU: its {rate:.0f} tokens/s stand for one GPU below; give tokens_per_s for a real one"
        )
    return found | {"tokens_per_s": rate / (actors * max(1, accelerators))}, notes
