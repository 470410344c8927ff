"""The gate's settings: what a request may ask for, and what happens to control tokens in its text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trimtab.config import Config


class GateSettings(Config):
    """What a request may ask for."""

    control_tokens: Literal["strict", "escape"] = "strict"
    """Control tokens in messages and personas: refused, or broken up by a space. In every other field: refused."""
    max_body_bytes: int = Field(256 * 1024, ge=1024)
    """A body's size."""
    max_depth: int = Field(32, ge=8, le=200)
    """How deep a body's objects and lists may be nested."""
    max_messages: int = Field(1024, ge=1)
    """Messages of a request."""
    max_tokens: int = Field(4096, ge=1)
    """Most tokens of one answer."""
    default_max_tokens: int = Field(512, ge=1)
    """Tokens of an answer where the request doesn't say; never more than max_tokens."""
    max_n: int = Field(4, ge=1)
    """Answers to one request."""
    context_tokens: int | None = Field(None, ge=1)
    """The engine's context: a longer request is refused here, and an answer's default length fits in; none: unknown."""
    body_timeout_s: float = Field(10, gt=0)
    """A body that takes longer to arrive is answered with 408."""
    limiter_timeout_s: float = Field(2, gt=0)
    """A limiter that takes longer to answer counts as dead: 503."""
    keep_seed: bool = True
    """Pass `seed` to the engine. False: it is left out, and the header x-trimtab-ignored says so. vLLM 0.29 on CPU dies
    of seeded requests whose prompt is computed in chunks."""
    adapters: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")], ...] = ()
    """LoRA adapters that a request may name, as `name:adapter`."""
