"""A request on its way to a group: which generations each recipe asks for, pass after pass, and what came of them.

Course correction needs one pass through the engine, self-critique three, each of which reads what the one before
wrote. ``walk`` follows one request as far as its generations go, so that planning and assembling share one path.
Plain functions of plain values: no Ray, no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from trimtab.chat import ControlGuard
from trimtab.files import AnyPath
from trimtab.schemas import CONTENT_CHARS, Generation, PlanRow, Quarantined, RankedGroup, Request, reason_of
from trimtab.synthesis.quality import QualityConfig, problem
from trimtab.synthesis.recipes import course_correction, self_critique
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe, Draft
from trimtab.synthesis.recipes.self_critique import SelfCritiqueRecipe

GeneratingRecipe = CourseCorrectionRecipe | SelfCritiqueRecipe


@dataclass(frozen=True)
class Checks:
    """What a generation must pass to be used."""

    quality: QualityConfig
    guard: ControlGuard | None = None
    """Finds the model's control tokens; none: an endpoint renders for itself."""


@dataclass
class Made:
    """What the engine wrote for some plan rows, the last attempt counting, and how often it tried."""

    rows: dict[str, Generation] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)

    def add(self, generations: Sequence[Generation]) -> None:
        """A later attempt at the same rows."""
        for row in generations:
            self.rows[row.id] = row
            self.attempts[row.id] = self.attempts.get(row.id, 0) + 1


@dataclass
class Walk:
    """Where a request stands: rows that are to be made next, or a whole set of texts, or what stopped it."""

    next_pass: str | None = None
    rows: list[PlanRow] = field(default_factory=list)
    chosen: dict[str, Generation] = field(default_factory=dict)
    bad: list[Quarantined] = field(default_factory=list)


def pass_names(recipe_: GeneratingRecipe) -> tuple[str, ...]:
    """The passes through the engine, which are folders below the output; one pass needs no folder of its own."""
    return self_critique.STEPS if isinstance(recipe_, SelfCritiqueRecipe) else ("",)


def pass_folder(output: AnyPath, name: str) -> AnyPath:
    """Where a pass has its plan, generations and checkpoint."""
    return output / name if name else output


def material(request: Request, recipe_: GeneratingRecipe) -> Draft | Request:
    """What a request gives before anything is generated.

    Raises:
        ValueError: the request can't be used, such as a harmful response that can't be cut.
    """
    return course_correction.draft(request, recipe_) if isinstance(recipe_, CourseCorrectionRecipe) else request


def walk(item: Draft | Request, recipe_: GeneratingRecipe, checks: Checks, made: Made, shard: int = 0) -> Walk:
    """Follow a request through its passes as far as its generations go; ``shard`` is that of the rows to be made."""
    chosen: dict[str, Generation] = {}
    for name in pass_names(recipe_):
        rows = _rows(item, recipe_, name, chosen, shard)
        if not any(row.id in made.rows for row in rows):
            return Walk(next_pass=name, rows=rows)
        picked, bad = pick(rows, made, checks)
        if bad:
            return Walk(bad=bad)
        chosen |= picked
    return Walk(chosen=chosen)


def _rows(
    item: Draft | Request, recipe_: GeneratingRecipe, name: str, chosen: Mapping[str, Generation], shard: int
) -> list[PlanRow]:
    if isinstance(item, Draft):
        assert isinstance(recipe_, CourseCorrectionRecipe)
        return course_correction.plan_rows(item, recipe_, shard)
    assert isinstance(recipe_, SelfCritiqueRecipe)
    texts = {step: {item.id: text} for step, text in _texts(recipe_, chosen).items()}
    return self_critique.plan_rows(name, [item], texts, recipe_, shard)


def pick(rows: Sequence[PlanRow], made: Made, checks: Checks) -> tuple[dict[str, Generation], list[Quarantined]]:
    """For each kind the first candidate that can be used, and why those of a kind without one can't."""
    chosen: dict[str, Generation] = {}
    bad: list[Quarantined] = []
    for kind, candidates in groupby(rows, key=lambda row: row.kind):
        failed = []
        for row in candidates:
            generation = made.rows.get(row.id)
            reason = generation_problem(generation, kind, checks)
            if generation is not None and reason is None:
                chosen[kind] = generation
                break
            failed.append(_bad_row(row, f"{kind}: {reason}", made))
        if kind not in chosen:
            bad += failed
    return chosen, bad


def generation_problem(generation: Generation | None, kind: str, checks: Checks) -> str | None:
    """Why a generation can't be used; None where it can."""
    if generation is None:
        return "was not generated"
    if generation.error:
        return generation.error
    if not generation.text.strip():
        return "the model wrote nothing"
    return _control_token(generation.text, checks.guard) or problem(generation.text, kind, checks.quality)


def _control_token(text: str, guard: ControlGuard | None) -> str | None:
    """The model spelled a control token in plain letters: a later prompt, or training, would make a turn of it."""
    try:
        if guard:
            guard.refuse("text", text)
    except ValueError as error:
        return str(error)
    return None


def _bad_row(row: PlanRow, reason: str, made: Made) -> Quarantined:
    return Quarantined(
        source_row=-1, reason=reason, content=row.prompt[:CONTENT_CHARS], stage="generation", id=row.id,
        attempts=made.attempts.get(row.id, 0),
    )  # fmt: skip


def group_of(item: Draft | Request, recipe_: GeneratingRecipe, chosen: dict[str, Generation]) -> RankedGroup:
    """The ranked group of a request that has all its texts.

    Raises:
        ValueError: two responses are equal, or one is empty.
    """
    if isinstance(item, Draft):
        assert isinstance(recipe_, CourseCorrectionRecipe)
        return course_correction.build_group(item, chosen, recipe_)
    assert isinstance(recipe_, SelfCritiqueRecipe)
    return self_critique.build_group(item, _texts(recipe_, chosen), recipe_)


def _texts(recipe_: SelfCritiqueRecipe, chosen: Mapping[str, Generation]) -> dict[str, str]:
    """The steps' texts, ended at their last whole sentence."""
    return {step: self_critique.written(made, step, recipe_) for step, made in chosen.items()}


def quarantine(request: Request, error: ValueError, stage: str) -> Quarantined:
    """A request that can't be used, at the stage where that showed."""
    values = {"source_row": request.source_row, "reason": reason_of(error), "content": request.prompt[:CONTENT_CHARS]}
    return Quarantined.model_validate(values | {"stage": stage, "id": request.id})
