"""What is known of a judge: how far it agrees with labels, as a calibration (``trimtab evaluate judge``) found it.

A shipped table and the user's own at ``$TRIMTAB_HOME``, keyed by the judge's identity and the question.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trimtab import registry
from trimtab.artifacts import write_text
from trimtab.data import SHIPPED
from trimtab.judging.config import JudgeConfig
from trimtab.judging.questions import Question
from trimtab.schemas import make_id
from trimtab.stats import Estimate

NAME = "agreement.json"


class KnownAgreement(BaseModel):
    """A calibration's result for one judge and one question."""

    model_config = ConfigDict(frozen=True)
    judge: str
    question: Question
    labels: str
    """Which labels: the file's name and fingerprint."""
    n: int
    """Labels on which the judge gave a verdict."""
    num_unparsed: int
    accuracy: Estimate
    kappa: Estimate
    created: str


def agreement_id(judge: JudgeConfig, question: Question) -> str:
    """The table's key: the judge's identity, of its texts only the question's own."""
    recipe = judge.identity()
    if "prompts" in recipe:
        recipe["prompts"] = recipe["prompts"][question]
    return make_id("agreement", json.dumps(recipe, sort_keys=True), question)


def known_agreement(judge: JudgeConfig, question: Question) -> KnownAgreement | None:
    """What the user's own calibration found, else the shipped one; None where nobody has looked."""
    entries = _read(SHIPPED / "judges" / NAME) | _read(own_table())
    found = entries.get(agreement_id(judge, question))
    return KnownAgreement.model_validate(found) if found else None


def remember(judge: JudgeConfig, found: KnownAgreement) -> None:
    """Write a calibration's result into the user's table; a later one for the same judge replaces it."""
    from filelock import FileLock

    path = own_table()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        entries = _read(path) | {agreement_id(judge, found.question): found.model_dump(mode="json")}
        write_text(path, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def own_table() -> Path:
    """The user's table."""
    return registry.home() / "judges" / NAME


def described(judge: JudgeConfig, question: Question) -> str:
    """The judge in one line, with its known agreement for this question, or that it is unknown."""
    found = known_agreement(judge, question)
    if found is None:
        return f"{judge.description}, agreement with labels unknown"
    measured = f"accuracy {found.accuracy.text(2)}, Cohen's κ {found.kappa.text(2)}"
    return f"{judge.description}, agreement with {found.n} labels: {measured}"


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
