"""The self-critique recipe: answer, critique of the answer, revision; revision ≻ answer (arXiv 2404.00495).

Each step is one generation for each request, and its prompt holds the texts of the steps before. Plain
functions of plain values: no Ray, no engine. The two requests to the model are text files, filled in by a
sandboxed Jinja in which a person's or a model's text is a value and never part of the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from trimtab.config import Config, InputError, placement
from trimtab.files import AnyPath, Location
from trimtab.near_duplicates import normalize
from trimtab.safety import DEFAULT_PRESET, SafetyConfig
from trimtab.schemas import CONTENT_CHARS, Generation, PlanRow, Quarantined, RankedGroup, Request, Response, make_id
from trimtab.sources import (
    FIELDS,
    SourceConfig,
    read_json_rows,
    read_requests,
    refuse_too_many_bad,
    small_text,
    split_requests,
)
from trimtab.synthesis.recipes.course_correction import finished
from trimtab.synthesis.recipes.derived import check_flips

STEPS = ("answer", "critique", "revision")
NAMES = {"critique_request": ("prompt", "answer"), "revision_request": ("prompt", "answer", "critique")}
"""The values that each template must use: without them a step knows nothing of the one before."""
SHIPPED = Path(__file__).parents[2] / "data"
MIN_REPEATED_WORDS = 8
"""A revision and a critique of which one begins with the other, so many words long, say the same."""


class SelfCritiqueRecipe(Config):
    """Groups of two from prompts alone: a model's answer, and its own revision of it, which is better."""

    type: Literal["self_critique"] = "self_critique"
    source: SourceConfig = SourceConfig()
    """Where prompts come from: PKU-SafeRLHF rows, or rows with just a ``prompt``; the evaluation split is left out."""
    num_requests: int | None = Field(None, ge=1)
    """Use at most so many distinct prompts; none: all."""
    answer_configuration: str = "uncensored"
    """s0: the safety configuration under which the first answer is given."""
    configuration: str = DEFAULT_PRESET
    """s1: that of the critique and of the revision, and the one under which the group's ranking holds."""
    flips: tuple[str, ...] = ("uncensored",)
    """Configurations under which the same responses are ranked in reverse; no generation."""
    max_tokens: int = Field(256, ge=1)
    """New tokens of the answer, and of the revision."""
    critique_max_tokens: int = Field(256, ge=1)
    """New tokens of the critique."""
    trim_unfinished: bool = True
    """End a generation that ran out of tokens at its last whole sentence."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature of all steps; 0 takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of the probability that is sampled from."""
    seed: int = 0
    """Seed of sampling, and part of the ids."""
    critique_request: Location | None = placement(None)
    """A Jinja text with ``prompt`` and ``answer``, or its URI; none: the shipped one. Its content is an input."""
    revision_request: Location | None = placement(None)
    """A Jinja text with ``prompt``, ``answer`` and ``critique``, or its URI; none: the shipped one."""

    @model_validator(mode="after")
    def _check(self) -> SelfCritiqueRecipe:
        for preset in (self.answer_configuration, self.configuration):
            SafetyConfig(preset=preset).render()
        check_flips(self.configuration, self.flips)
        return self


def training_requests(recipe: SelfCritiqueRecipe) -> tuple[list[Request], list[Quarantined]]:
    """The first request of each prompt of the training split, and the bad rows of the source.

    The split is made before prompts are told apart, so that it is that of every other stage.

    Raises:
        InputError: the source can't be read, has too many bad rows, or can't be split as asked.
    """
    requests, bad = read_prompts(recipe.source)
    training, _ = split_requests(requests, recipe.source)
    first: dict[str, Request] = {}
    for request in training:
        first.setdefault(request.prompt, request)
    return list(first.values())[: recipe.num_requests], bad


def read_prompts(source: SourceConfig) -> tuple[list[Request], list[Quarantined]]:
    """Requests from PKU-SafeRLHF rows (``read_requests``), or from rows that have just a ``prompt``.

    Raises:
        InputError: the file is missing, empty, no JSON, without a prompt, or has too many bad rows.
    """
    rows = list(read_json_rows("data", source.path))
    first = next((row for row in rows if isinstance(row, dict)), {})
    if set(first) & (set(FIELDS) - {"prompt"}):
        return read_requests(source)
    requests, bad = [], []
    for number, row in enumerate(rows):
        try:
            prompt = _prompt_of(row)
        except ValueError as error:
            bad.append(Quarantined(source_row=number, reason=str(error), content=ascii(row)[:CONTENT_CHARS]))
        else:
            requests.append(Request(id=make_id("request", prompt, ""), prompt=prompt, harmful="", source_row=number))
    refuse_too_many_bad("data", source.path, bad, len(rows), source.max_bad_share)
    if not requests:
        raise InputError("data", source.path, "no row has a prompt", "give rows with a prompt")
    return requests, bad


def _prompt_of(row: Any) -> str:
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str):
        raise ValueError("field prompt is missing or not text")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("field prompt is not valid Unicode text") from None
    if not prompt.strip():
        raise ValueError("field prompt is empty")
    return prompt.strip()


def template_texts(recipe: SelfCritiqueRecipe) -> dict[str, str]:
    """The templates in use, by field, checked.

    Raises:
        InputError: a file is missing or no Jinja text, or uses other values than those of its step.
    """
    texts = {name: _template_text(name, getattr(recipe, name)) for name in NAMES}
    for name, text in texts.items():
        _check_template(name, getattr(recipe, name) or SHIPPED / f"{name}.txt", text)
    return texts


def recipe_texts(recipe: SelfCritiqueRecipe) -> dict[str, str]:
    """Fingerprints of the templates in use: inputs of the stage."""
    return {name: make_id(text) for name, text in template_texts(recipe).items()}


def _template_text(name: str, path: AnyPath | None) -> str:
    return small_text(name, path or SHIPPED / f"{name}.txt", "a Jinja text file")


@lru_cache(maxsize=16)
def _check_template(name: str, path: AnyPath, text: str) -> None:
    try:
        used = meta.find_undeclared_variables(_environment().parse(text))
        _environment().from_string(text).render(dict.fromkeys(NAMES[name], "x"))
    except (TemplateError, TypeError) as error:
        raise InputError(name, path, f"is not a Jinja text that can be filled in ({error})", "mend it") from error
    if used != set(NAMES[name]):
        wanted = ", ".join(NAMES[name])
        problem = f"uses the values {', '.join(sorted(used)) or 'none'}"
        raise InputError(name, path, problem, f"use {wanted}, each as {{{{ name }}}}")


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """Plain text, so nothing is escaped; a name without a value is an error."""
    return ImmutableSandboxedEnvironment(autoescape=False, undefined=StrictUndefined)


@lru_cache(maxsize=8)
def _template(text: str) -> Template:
    return _environment().from_string(text)


def plan_rows(
    step: str, requests: Sequence[Request], texts: Mapping[str, Mapping[str, str]], recipe: SelfCritiqueRecipe,
    shard: int = 0,
) -> list[PlanRow]:  # fmt: skip
    """The generations of one step.

    Args:
        step: one of ``STEPS``.
        texts: the texts of the steps before, by step and request id; a request that lacks one is left out.
    """
    before = STEPS[: STEPS.index(step)]
    template = template_texts(recipe)[f"{step}_request"] if before else None
    made = {name: texts.get(name, {}) for name in before}
    rows = []
    for request in requests:
        if all(request.id in made[name] for name in before):
            values = {"prompt": request.prompt} | {name: made[name][request.id] for name in before}
            prompt = _template(template).render(values).strip() if template is not None else request.prompt
            rows.append(_plan_row(step, request, prompt, recipe, shard))
    return rows


def _plan_row(step: str, request: Request, prompt: str, recipe: SelfCritiqueRecipe, shard: int) -> PlanRow:
    preset = recipe.answer_configuration if step == "answer" else recipe.configuration
    return PlanRow(
        id=generation_id(request, step, recipe), request_id=request.id, kind=step,
        system=SafetyConfig(preset=preset).render(), prompt=prompt, max_tokens=max_tokens(step, recipe),
        temperature=recipe.temperature, top_p=recipe.top_p, seed=recipe.seed, shard=shard,
    )  # fmt: skip


def generation_id(request: Request, step: str, recipe: SelfCritiqueRecipe) -> str:
    """The deterministic id of one generation of a request; the shard that it is in is none of it."""
    presets = (recipe.answer_configuration, recipe.configuration)
    return make_id("self_critique", request.id, step, recipe.seed, *presets)


def max_tokens(step: str, recipe: SelfCritiqueRecipe) -> int:
    """New tokens that a step may write."""
    return recipe.critique_max_tokens if step == "critique" else recipe.max_tokens


def written(generation: Generation, step: str, recipe: SelfCritiqueRecipe) -> str:
    """The text of a step without the space around it, ended at its last whole sentence where it ran out of tokens.

    Raises:
        ValueError: the generation failed, or is empty.
    """
    if generation.error:
        raise ValueError(f"{step}: {generation.error}")
    text = finished(generation, max_tokens(step, recipe), recipe.trim_unfinished).strip()
    if not text:
        raise ValueError(f"{step}: the model wrote nothing")
    return text


def build_group(request: Request, texts_of_request: Mapping[str, str], recipe: SelfCritiqueRecipe) -> RankedGroup:
    """The ranked group of a request: its revision above its first answer.

    Raises:
        ValueError: a step's text is missing or empty, or the revision says what the answer or the critique says.
    """
    for step in STEPS:
        if not texts_of_request.get(step, "").strip():
            raise ValueError(f"{step}: the model wrote nothing")
    answer, critique, revision = (texts_of_request[step].strip() for step in STEPS)
    if _plain(revision) == _plain(answer):
        raise ValueError("revision: is the answer again, so nothing is ranked")
    if _repeats(_plain(revision), _plain(critique)):
        raise ValueError("revision: repeats the critique instead of answering")
    presets = (recipe.answer_configuration, recipe.configuration)
    return RankedGroup(
        id=make_id("self_critique_group", request.id, recipe.seed, *presets), source=request.id,
        configuration=recipe.configuration, system=SafetyConfig(preset=recipe.configuration).render(),
        prompt=request.prompt,
        responses=(Response(role="revision", text=revision), Response(role="answer", text=answer)),
    )  # fmt: skip


def _plain(text: str) -> str:
    """Words alone, or the text itself where it has none."""
    return normalize(text) or text


def _repeats(revision: str, critique: str) -> bool:
    short, long = sorted((revision, critique), key=len)
    is_beginning = long.startswith(f"{short} ") and len(short.split()) >= MIN_REPEATED_WORDS
    return short == long or is_beginning
