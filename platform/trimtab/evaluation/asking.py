"""Which prompts an evaluation asks: those of a user's file, or the held-out ones of the source."""

from __future__ import annotations

from trimtab.artifacts import file_fingerprint
from trimtab.chat import ControlGuard
from trimtab.config import placement
from trimtab.evaluation.prompts import read_categories
from trimtab.evaluation.several import ModelsConfig
from trimtab.evaluation.stage import held_out
from trimtab.files import Location
from trimtab.schemas import Quarantined, Request, make_id
from trimtab.sources import SourceConfig, require_file


class AskingConfig(ModelsConfig):
    """The fields of an evaluation that asks whole prompts."""

    source: SourceConfig = SourceConfig()
    """Requests; only the evaluation split's prompts are asked."""
    prompts: Location | None = placement(None)
    """A file of prompts to ask instead, or its URI: rows with a ``prompt``, or a text file with one a line."""


def asked_inputs(config: AskingConfig) -> dict[str, str]:
    """The fingerprint of what is asked.

    Raises:
        InputError: the file isn't there.
    """
    field, asked = ("prompts", config.prompts) if config.prompts else ("data", config.source.path)
    require_file(field, asked)
    return {field: file_fingerprint(asked, field)}


def asked_requests(
    config: AskingConfig, guard: ControlGuard | None = None
) -> tuple[list[Request], list[Quarantined]]:  # fmt: skip
    """The requests, one a prompt (those of a file have no harmful response), and what can't be asked.

    Args:
        guard: of the model; prompts that hold its control tokens are set aside.
    """
    if not config.prompts:
        return held_out(config.source, guard)
    found, bad = read_categories("prompts", config.prompts, config.source.max_bad_share, guard)
    return [Request(id=make_id("prompt", prompt), prompt=prompt, harmful="", source_row=number, category=category)
            for number, (prompt, category) in enumerate(found.items())], bad  # fmt: skip
