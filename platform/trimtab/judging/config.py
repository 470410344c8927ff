"""The judges' configurations: weighed phrases, an OpenAI-compatible endpoint, or a model on this Ray.

A judge's ``identity`` is what can change a verdict: the model, how it is sampled and the words it is asked with; never
where it runs or how many calls are in flight.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field

from trimtab import models
from trimtab.config import Config, placement
from trimtab.engine import VLLMEngine
from trimtab.files import LocalPath
from trimtab.judging.prompts import digests
from trimtab.schemas import make_id

RulesVersion = Literal["rules-1", "rules-2"]


class RulesJudge(Config):
    """The built-in lists of phrases: free, offline, reproducible and weak."""

    type: Literal["rules"] = "rules"
    version: RulesVersion = "rules-2"
    """``rules-1``: any phrase of a list is a turn. ``rules-2``: phrases are weighed, with what comes after them.
    A version's verdicts never change."""

    @property
    def description(self) -> str:
        """One line for tables and reports."""
        return f"{self.type} ({self.version}; weak: it sees phrases, not meaning)"


class ModelJudge(Config):
    """What the judges that are language models have in common; use one of the two below."""

    type: Literal["openai", "vllm"]
    model: str
    max_tokens: int = Field(32, ge=1)
    """Most tokens of a judge's answer, which is a word or three short lines."""
    prompts: LocalPath | None = placement(None)
    """A folder whose ``<question>.txt`` stand in for the shipped texts; their content is part of the identity."""
    cache: LocalPath | None = placement(None)
    """Folder of the answers' cache; none: ``judge-cache`` in ``$TRIMTAB_HOME``. A model's name or files, not its
    address, say which judge answered: another model under the same name needs another folder."""

    def identity(self) -> dict[str, Any]:
        """What can change a verdict, with a fingerprint of each question's text."""
        return super().identity() | {"prompts": digests(self.prompts)}

    def answer_ids(self) -> Callable[[str], str]:
        """A function from a whole prompt to the id of this judge's answer to it."""
        recipe = json.dumps({name: value for name, value in self.identity().items() if name != "prompts"})
        return lambda prompt: make_id("judge", recipe, prompt)

    @property
    def description(self) -> str:
        """One line for tables and reports."""
        return f"{self.type} ({self.model}{'; own texts' if self.prompts else ''})"


class OpenAIJudge(ModelJudge):
    """A model behind an OpenAI-compatible endpoint."""

    type: Literal["openai"] = "openai"
    model: str = "gpt-4o"
    """Model name to send."""
    base_url: str = placement("https://api.openai.com/v1")
    """Address of the API, ending in /v1."""
    api_key_env: str = placement("OPENAI_API_KEY")
    """Environment variable that holds the key; never the key itself."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature (paper: 0)."""
    seed: int = 42
    """Seed that is sent (paper: 42)."""
    num_concurrent_requests: int = placement(16, ge=1)
    """Most requests in flight; fewer while the server says that it is too many."""
    timeout_s: float = placement(60, gt=0)
    """Time for one request."""
    max_retries: int = placement(6, ge=0)
    """Retries of the SDK, which honours Retry-After."""
    usd_per_million_prompt_tokens: float | None = placement(None, ge=0)
    """Price of the judge's input; with both prices the cost is shown."""
    usd_per_million_completion_tokens: float | None = placement(None, ge=0)
    """Price of the judge's output."""


class VLLMJudge(ModelJudge):
    """A model on this Ray; its answers are greedy."""

    type: Literal["vllm"] = "vllm"
    model: str = placement()
    """A folder, a Hub id, ``name@version`` or the embedded model; its weights, not its place, are the identity."""
    engine: VLLMEngine = VLLMEngine()

    def identity(self) -> dict[str, Any]:
        """What can change a verdict, with the fingerprint of the model's folder."""
        return super().identity() | {"model": _fingerprint(self.model)}


@lru_cache
def _fingerprint(model: str) -> str:
    return models.fingerprint(models.resolve(model))


JudgeConfig = Annotated[RulesJudge | OpenAIJudge | VLLMJudge, Field(discriminator="type")]
