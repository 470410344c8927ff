"""A plan for a reader: hours and cost, memory, storage, the data plane's limits, and every assumption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trimtab.operations.sizing.limits import Limit, count_of
from trimtab.operations.sizing.memory import GIB, STAGES, Fit
from trimtab.operations.sizing.run import Plan, Size
from trimtab.operations.sizing.work import Hours

if TYPE_CHECKING:
    from rich.table import Table


NONE = "—"
TEXTS = ("then", "source")
"""Columns of words."""


def tables(plan: Plan) -> Iterator[Table]:
    """All tables, in reading order."""
    for size in plan.sizes:
        yield _hours(plan, size)
    for adapters in (False, True):
        yield _memory(plan, adapters)
    yield _storage(plan)
    yield _limits(plan)
    yield _assumptions(plan)


def lines(plan: Plan) -> Iterator[str]:
    """What stands above the tables."""
    parameters = big(plan.shape.num_parameters)
    yield f"model: {plan.shape.name}, {parameters} parameters; one GPU: {plan.tokens_per_s:.0f} tokens/s"
    engines = ", ".join(f"{count} of {card:g} GB" for card, count in plan.engine_gpus.items())
    yield f"GPUs of one engine (weights in bfloat16 and a fifth for the KV cache): {engines}"
    yield from (f"note: {note}" for note in plan.notes)
    for size in plan.sizes:
        for limit in plan.limits:
            if limit.name in size.over:
                yield f"{big(size.work.pairs)} pairs: over the limit of {limit.name}: {limit.remedy}"


def _table(title: str, *columns: str, caption: str = "") -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and column not in TEXTS else "left")
    return table


def _hours(plan: Plan, size: Size) -> Table:
    work = size.work
    title = (f"{big(work.pairs)} pairs: {big(work.requests)} requests, {big(work.generations)} generations, "
             f"{big(work.new_tokens)} new tokens; {big(work.trained_tokens)} tokens trained")  # fmt: skip
    columns = ("GPUs", "efficiency", "synthesis GPU-h", "wall", "training GPU-h", "wall", "on demand", "with spot")
    table = _table(title, *columns, caption="training: all parameters; cost: both; —: no card holds it")
    for made, trained, cost in zip(size.synthesis, size.training, size.cost, strict=True):
        both = made.possible and trained.possible
        prices = [_number(cost[name]) if both else NONE for name in ("on_demand", "with_spot")]
        table.add_row(str(made.gpus), f"{made.efficiency:.2f}", *_stage(made), *_stage(trained), *prices)
    return table


def _stage(hours: Hours) -> tuple[str, str]:
    """GPU-hours and wall time, where a card holds it."""
    return (_number(hours.gpu_hours), _wall(hours.wall_hours)) if hours.possible else (NONE, NONE)


def _memory(plan: Plan, adapters: bool) -> Table:
    numbers = plan.config.training
    kind = f"LoRA of rank {numbers.lora_r}" if adapters else "all parameters"
    mine = [
        fit for fit in plan.fits if fit.adapters == adapters and fit.checkpointing == numbers.gradient_checkpointing
    ]
    other = next(f for f in plan.fits if f.adapters == adapters and f.checkpointing != numbers.gradient_checkpointing)
    kept, else_ = ("with", "without") if numbers.gradient_checkpointing else ("without", "with")
    held, held_else = _gib(mine[0].activations), _gib(other.activations)
    caption = (f"GiB and the smallest card (GB), —: none; activations {held} GiB {kept} checkpointing "
               f"({held_else} {else_}) at {numbers.trie_tokens_per_pass} tokens a pass")  # fmt: skip
    gpus = sorted({fit.gpus for fit in mine})
    table = _table(f"training memory of each GPU: {kind}", "ZeRO", *map(str, gpus), caption=caption)
    for stage in STAGES:
        found = {fit.gpus: fit for fit in mine if fit.stage == stage}
        table.add_row(str(stage), *(_fit(found[count]) for count in gpus))
    return table


def _fit(fit: Fit) -> str:
    return f"{_gib(fit.total)} ({fit.card_gb:g})" if fit.card_gb else f"{_gib(fit.total)} ({NONE})"


def _storage(plan: Plan) -> Table:
    table = _table("storage, GiB", "what", *(f"{big(size.work.pairs)} pairs" for size in plan.sizes))
    for name in plan.sizes[0].storage:
        table.add_row(name, *(_gib(size.storage[name]) for size in plan.sizes))
    table.add_row("all", *(_gib(sum(size.storage.values())) for size in plan.sizes))
    table.add_row("files of generations", *(big(size.num_files) for size in plan.sizes))
    return table


def _limits(plan: Plan) -> Table:
    from rich.text import Text

    sizes = plan.sizes
    table = _table("the data plane's own limits", "what", *(f"{big(size.work.pairs)} pairs" for size in sizes), "most",
                   "breaks at", "then")  # fmt: skip
    for limit in plan.limits:
        values = [_measure(limit, limit.at(count_of(limit, plan.config, size.work))) for size in sizes]
        breaks = f"{big(limit.breaks_at)} {limit.unit}" if limit.slope else "never"
        table.add_row(Text(limit.name), *values, _measure(limit, limit.most), breaks, Text(limit.remedy))
    return table


def _measure(limit: Limit, value: float) -> str:
    return f"{_number(value)} {limit.measure}"


def _assumptions(plan: Plan) -> Table:
    from rich.text import Text

    table = _table("assumptions: each can be another, by --set key=value", "key", "value", "source")
    for one in plan.assumptions:
        table.add_row(one.key, Text(_value(one.value)), Text(one.source))
    return table


def _value(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    return ", ".join(f"{item:g}" for item in value) if isinstance(value, tuple) else str(value)


def _gib(num_bytes: float) -> str:
    return _number(num_bytes / GIB)


def _wall(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours < 1 else f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} d"


def _number(value: float) -> str:
    """Three digits that say something, thousands with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def big(count: float) -> str:
    """50,000 as 50K, 75,000,000 as 75M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"
