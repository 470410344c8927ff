"""The gate of one replica: what it needs to know, as a plain object that travels to it, and how it is put together.

Nothing secret stands here: keys are read by the replica from their file. Presets come by Serve's ``user_config``, so
that they change without a restart; until they have come a replica is harmless only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.chat import Chat
from trimtab.config import Config, InputError
from trimtab.files import LocalPath
from trimtab.policy.audit import AuditFile, NoAudit
from trimtab.policy.gate import Gate
from trimtab.policy.keys import KeyFile, Open
from trimtab.policy.ports import App, Audit
from trimtab.policy.preparing import check_presets
from trimtab.policy.presets import Presets, require_learned
from trimtab.policy.settings import GateSettings
from trimtab.safety import DEFAULT_PRESET
from trimtab.serving.limits import Bounded, RayLimiter
from trimtab.serving.metrics import ServeMetrics

logger = logging.getLogger("trimtab.serving")


class Gating(Config):
    """What a replica's gate is made from."""

    folder: str
    """The model's folder: its tokenizer."""
    model: str
    """The model's name."""
    keys: LocalPath | None
    audit: LocalPath | None
    limits: str
    """Name of the actor that holds the limits."""
    budgets: LocalPath
    most_ongoing: int
    """Requests in this replica; more are refused."""
    settings: GateSettings
    learned: tuple[dict[str, str], ...] | None
    """The model's record of configurations; None: it has none."""
    force_presets: bool


class Gated:
    """A replica's gate, and the presets that it has now."""

    def __init__(self, gating: Gating) -> None:
        """
        Raises:
            InputError: the key file or the audit log can't be used.
        """
        self.gating = gating
        self._keys = KeyFile(gating.keys) if gating.keys else Open()
        self._audit: Audit = AuditFile(gating.audit) if gating.audit else NoAudit()
        self._presets = Presets.builtin().only([DEFAULT_PRESET])
        self._configured = False
        self._gate: Gate | None = None
        self._limiter = RayLimiter(gating.limits, gating.budgets)

    def gate(self, app: App) -> Gate:
        """The gate in front of an app."""
        gating = self.gating
        metrics = ServeMetrics()
        limiter = Bounded(self._limiter, gating.most_ongoing, metrics.in_flight)
        self._gate = Gate(
            app, Chat.from_folder(gating.folder), model=gating.model, keys=self._keys, presets=self._presets,
            limiter=limiter, audit=self._audit, metrics=metrics, settings=gating.settings,
        )  # fmt: skip
        return self._gate

    async def configure(self, user_config: Mapping[str, Any]) -> None:
        """What Serve hands a replica, before it is up and whenever it changes; it is up when its limiter answers.

        Raises:
            InputError: as ``take``.
        """
        first = not self._configured
        await asyncio.to_thread(self.take, user_config)  # streams go on: a large tokenizer takes a second to search
        if first:
            await self._limiter.ready()

    def take(self, user_config: Mapping[str, Any]) -> None:
        """Take the presets of a ``user_config``; later ones that can't be used leave those that are.

        Raises:
            InputError: the first ones can't be used.
        """
        try:
            presets, _ = usable(user_config.get("presets") or {}, self.gating)
        except InputError as error:
            if not self._configured:
                raise
            logger.error("the presets that were go on: %s", error)
            return
        self._presets, self._configured = presets, True
        if self._gate is not None:
            self._gate.presets = presets


def offered(
    own: Mapping[str, str], learned: Sequence[Mapping[str, Any]] | None, forced: bool
) -> tuple[Presets, str | None]:
    """The presets that a server offers, and a line to say about them.

    The user's own are all offered or refused; of the built-in ones those that the model has learned.

    Raises:
        InputError: an own one is none, or the model never learned it.
    """
    presets = Presets.from_values(own)
    if learned is not None and not forced:
        known = presets.learned(learned)
        presets = presets.only([name for name in presets.names if name in known or name in own])
    return presets, require_learned(presets, learned, forced)


def usable(own: Mapping[str, str], gating: Gating) -> tuple[Presets, str | None]:
    """What ``offered`` gives, after the user's own presets were searched for the model's control tokens.

    Raises:
        InputError: an own one is none, the model never learned it, or it would change the turns.
    """
    found = offered(own, gating.learned, gating.force_presets)
    if own:
        check_presets(Chat.from_folder(gating.folder), Presets.from_values(own))
    return found


def own_presets(path: Path | None) -> dict[str, str]:
    """What a presets file adds to the built-in ones, as names and system prompts.

    Raises:
        InputError: the file can't be used.
    """
    builtin, presets = Presets.builtin(), Presets.from_file(path)
    return {
        name: presets[name].system for name in presets.names if name not in builtin or presets[name] != builtin[name]
    }
