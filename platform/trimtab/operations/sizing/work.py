"""Rows, tokens, GPU-hours, wall time and cost of a run of so many requests."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trimtab.operations.sizing.config import CostNumbers, PlanConfig
from trimtab.operations.sizing.shapes import Shape

HOUR_S = 3600.0
REFERENCE_PARAMETERS = 7e9
"""What ``tokens_per_s_of_7b`` is meant for."""


@dataclass(frozen=True)
class Work:
    """What a run of so many requests makes."""

    requests: int
    generations: int
    groups: int
    pairs: int
    new_tokens: float
    trained_tokens: float


@dataclass(frozen=True)
class Hours:
    """One stage on so many GPUs."""

    gpus: int
    efficiency: float
    gpu_hours: float
    wall_hours: float
    possible: bool = True
    """Whether any of the cards holds it on so few GPUs."""


def work_of(config: PlanConfig, num_requests: int) -> Work:
    """Counts of a run."""
    generations = round(num_requests * config.generations_per_request)
    groups = num_requests * (1 + config.flips)
    pairs = groups * math.comb(config.responses_per_group, 2)
    trained = groups * config.training.trie_tokens * config.training.epochs
    return Work(num_requests, generations, groups, pairs, generations * config.new_tokens, trained)


def rate_of(config: PlanConfig, shape: Shape) -> float:
    """Generated tokens a second of one GPU: as given, else the assumption for 7B, inversely with the parameters."""
    return config.tokens_per_s or config.tokens_per_s_of_7b * REFERENCE_PARAMETERS / shape.num_parameters


def efficiency(config: PlanConfig, gpus: int) -> float:
    """Share of so many times one GPU's speed."""
    return float(config.efficiency_per_doubling ** math.log2(gpus))


def hours(config: PlanConfig, seconds_of_one: float, gpus: int, possible: bool = True) -> Hours:
    """GPU-hours and wall hours of work that takes one GPU so many seconds, the start included."""
    share = efficiency(config, gpus)
    wall = (seconds_of_one / (gpus * share) + config.start_s) / HOUR_S
    return Hours(gpus, share, wall * gpus, wall, possible)


def synthesis_seconds(config: PlanConfig, shape: Shape, work: Work) -> float:
    """Seconds of one GPU that generates everything."""
    return work.new_tokens / rate_of(config, shape)


def training_seconds(config: PlanConfig, shape: Shape, work: Work) -> float:
    """Seconds of one GPU: reference pass and steps, all parameters trained.

    Floating-point operations a token (Kaplan et al., arXiv 2001.08361): 2 a parameter forward and 4 backward; with
    checkpointing the forward once more. The reference pass is one forward, once however many epochs there are.
    """
    numbers = config.training
    a_token = 2 * shape.num_parameters
    step = a_token * (4 if numbers.gradient_checkpointing else 3)
    operations = work.trained_tokens * (step + a_token / numbers.epochs)
    return operations / (numbers.gpu_tflops * 1e12 * numbers.mfu)


def cost(synthesis_hours: float, training_hours: float, numbers: CostNumbers) -> dict[str, float]:
    """Price on demand, and with the given share of the synthesis on spot, whose interruptions cost work again."""
    price = numbers.price_per_gpu_hour
    spot_hours = synthesis_hours * numbers.spot_share
    spot = spot_hours * (1 + numbers.spot_redone) * price * (1 - numbers.spot_discount)
    on_demand = (synthesis_hours - spot_hours + training_hours) * price
    return {"on_demand": (synthesis_hours + training_hours) * price, "with_spot": spot + on_demand}
