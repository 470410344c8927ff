"""The course-correction recipe: which generations a request needs, and the ranked group they make.

SR ≻ SYN_1 ≻ … ≻ SYN_K ≻ FHR: correcting beats not correcting, and earlier beats later
(arXiv 2407.16637, §4). Plain functions of plain values: no Ray, no model.
"""

from __future__ import annotations

import random
import re
from typing import Literal

from pydantic import Field, model_validator

from trimtab.config import Config, InputError
from trimtab.data import lines
from trimtab.files import AnyPath, Location
from trimtab.safety import SafetyConfig
from trimtab.schemas import Generation, PlanRow, RankedGroup, Request, Response, make_id
from trimtab.sources import SourceConfig, small_text

KEYWORDS = ("how", "what", "How", "What")
SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s|$)")


class CourseCorrectionRecipe(Config):
    """C²-SYN ranked groups from harmful requests (arXiv 2407.16637), and their CST flips."""

    type: Literal["course_correction"] = "course_correction"
    source: SourceConfig = SourceConfig()
    """Where requests come from; the evaluation split is left out."""
    num_requests: int | None = Field(None, ge=1)
    """Use at most this many requests; none: all that pass the filter."""
    min_words: int = Field(80, ge=1)
    """A request is kept when its harmful response has more whitespace words than this (paper: 80)."""
    num_cuts: int = Field(4, ge=1, le=16)
    """K: how many initial harmful responses, and so corrections (paper: 4)."""
    mode: Literal["one_opener", "paper"] = "one_opener"
    """``one_opener``: one for the whole group, FHR included, so that prefixes are shared; ``paper``: one each."""
    safe_response: Literal["model", "source"] = "model"
    """SR: the model's own answer (paper), or the row's safe response where it has one."""
    max_tokens: int = Field(128, ge=1)
    """New tokens of each generation (paper: 128)."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy (paper)."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling."""
    num_candidates: int = Field(1, ge=1)
    """Candidates of each generation, sampled apart; the group takes the first that passes the quality checks."""
    near_duplicates: float | None = Field(0.8, gt=0, le=1)
    """Requests whose prompts are at least so alike (Jaccard, word pairs) are one: the first is kept; none: all are."""
    trim_unfinished: bool = True
    """End a generation that ran out of tokens at its last whole sentence."""
    configuration: str = "harmless"
    """The safety configuration under which the group's ranking holds and its responses are generated."""
    flips: tuple[str, ...] = ("uncensored",)
    """Configurations under which the same responses are ranked in reverse (arXiv 2404.00495); no generation."""
    openers: Location | None = None
    """A text file of affirmative openers, one a line, or its URI; none: the 15 shipped ones."""
    triggers: Location | None = None
    """A text file of correction triggers, one a line, or its URI; none: the 15 shipped ones."""
    seed: int = 0
    """Seed of the draws of openers, triggers and cuts."""

    @model_validator(mode="after")
    def _candidates_differ(self) -> CourseCorrectionRecipe:
        if self.num_candidates > 1 and self.temperature == 0:
            raise ValueError("num_candidates: greedy candidates are all the same; set temperature above 0")
        return self

    def opener_lines(self) -> tuple[str, ...]:
        """The openers to draw from."""
        return _lines(self.openers, "openers.txt")

    def trigger_lines(self) -> tuple[str, ...]:
        """The triggers to draw from."""
        return _lines(self.triggers, "triggers.txt")


def _lines(path: AnyPath | None, shipped: str) -> tuple[str, ...]:
    if path is None:
        return lines(shipped)
    field = shipped.removesuffix(".txt")
    text = small_text(field, path, "a text file, one a line")
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise InputError(field, path, "is empty", "give at least one line")
    return found


def keep(request: Request, recipe: CourseCorrectionRecipe) -> bool:
    """The paper's filter: the prompt asks how or what, and the harmful response is long enough."""
    asks = any(word in request.prompt for word in KEYWORDS)
    return asks and len(request.harmful.split()) > recipe.min_words


class Draft(Config):
    """One request made ready: what is given, and what must be generated."""

    request: Request
    full_harmful: str
    starts: tuple[str, ...]
    """opener + IHR_i, for i = 1 … K."""
    triggers: tuple[str, ...]


def draft(request: Request, recipe: CourseCorrectionRecipe) -> Draft:
    """Draw openers, triggers and cuts of a request, seeded by its id.

    Raises:
        ValueError: the harmful response can't be cut K times.
    """
    from trimtab.synthesis.recipes.cuts import cut

    rng = random.Random(make_id(recipe.seed, request.id))
    parts = cut(request.harmful, recipe.num_cuts, rng)
    one = rng.choice(recipe.opener_lines())
    shared = recipe.mode == "one_opener"
    openers = [one if shared else rng.choice(recipe.opener_lines()) for _ in parts]
    return Draft(
        request=request,
        full_harmful=f"{one} {request.harmful}" if shared else request.harmful,
        starts=tuple(f"{opener} {part}" for opener, part in zip(openers, parts, strict=True)),
        triggers=tuple(rng.choice(recipe.trigger_lines()) for _ in parts),
    )


def plan_rows(item: Draft, recipe: CourseCorrectionRecipe, shard: int = 0) -> list[PlanRow]:
    """The generations that a request needs: SR unless the source gives it, and SYN_1 … SYN_K."""
    system = SafetyConfig(preset=recipe.configuration).render()
    prefills = [(f"SYN_{i}", f"{start} {trigger}") for i, (start, trigger) in _numbered(item)]
    if recipe.safe_response == "model" or not item.request.safe:
        prefills.insert(0, ("SR", ""))
    return [
        PlanRow(
            id=generation_id(item.request, kind, recipe, candidate), request_id=item.request.id, kind=kind,
            system=system, prompt=item.request.prompt, prefill=prefill, max_tokens=recipe.max_tokens,
            temperature=recipe.temperature, top_p=recipe.top_p, seed=recipe.seed + candidate, shard=shard,
        )
        for kind, prefill in prefills
        for candidate in range(recipe.num_candidates)
    ]  # fmt: skip


def generation_id(request: Request, kind: str, recipe: CourseCorrectionRecipe, candidate: int = 0) -> str:
    """The deterministic id of one generation of a request."""
    return make_id("generation", request.id, kind, recipe.seed, recipe.mode, recipe.num_cuts, candidate)


def _numbered(item: Draft) -> list[tuple[int, tuple[str, str]]]:
    return list(enumerate(zip(item.starts, item.triggers, strict=True), start=1))


def build_group(item: Draft, made: dict[str, Generation], recipe: CourseCorrectionRecipe) -> RankedGroup:
    """The ranked group of a request from its generations (by kind), which passed their checks.

    Raises:
        ValueError: a response is empty, or two are equal.
    """
    written = {kind: finished(row, recipe.max_tokens, recipe.trim_unfinished) for kind, row in made.items()}
    safe = written["SR"].strip() if "SR" in written else item.request.safe or ""
    corrections = [
        Response(role=f"SYN_{i}", text=f"{start} {trigger}{written[f'SYN_{i}']}", num_prefill_chars=len(start))
        for i, (start, trigger) in _numbered(item)
    ]
    return RankedGroup(
        id=make_id("group", item.request.id, recipe.configuration, recipe.seed, recipe.mode),
        source=item.request.id, configuration=recipe.configuration,
        system=SafetyConfig(preset=recipe.configuration).render(), prompt=item.request.prompt,
        responses=(Response(role="SR", text=safe), *corrections, Response(role="FHR", text=item.full_harmful)),
        num_demonstrations=1 + len(corrections),
    )  # fmt: skip


def finished(generation: Generation, max_tokens: int, trim: bool) -> str:
    """The written text; one that ran out of tokens ends at its last whole sentence, where it has one."""
    text = generation.text.rstrip()
    if not trim or generation.num_tokens < max_tokens:
        return text
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
