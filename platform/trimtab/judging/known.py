"""What is known of a judge: how far it agrees with labels, as a calibration (``trimtab evaluate judge``) found it.

A shipped table and the user's own at ``$TRIMTAB_HOME``, keyed by the judge's identity and the question.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from trimtab import registry
from trimtab.artifacts import write_text
from trimtab.config import InputError
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
    kappa_without_trigger: Estimate | None = None
    """κ on the labels whose text uses none of training's triggers; none: not looked at."""
    created: str


def agreement_id(judge: JudgeConfig, question: Question) -> str:
    """The table's key: the judge's identity, of its texts only the question's own."""
    recipe = judge.identity()
    if "prompts" in recipe:
        recipe["prompts"] = recipe["prompts"][question]
    return make_id("agreement", json.dumps(recipe, sort_keys=True), question)


def known_agreement(judge: JudgeConfig, question: Question) -> KnownAgreement | None:
    """What the user's own calibration found, else the shipped one; None where nobody has looked.

    Raises:
        InputError: a table can't be read.
    """
    entries = _read(SHIPPED / "judges" / NAME) | _read(own_table())
    return entries.get(agreement_id(judge, question))


def remember(judge: JudgeConfig, found: KnownAgreement) -> None:
    """Write a calibration's result into the user's table; a later one for the same judge replaces it."""
    from filelock import FileLock

    path = own_table()
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        entries = _read(path) | {agreement_id(judge, found.question): found}
        plain = {name: entry.model_dump(mode="json") for name, entry in entries.items()}
        write_text(path, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def own_table() -> Path:
    """The user's table."""
    return registry.home() / "judges" / NAME


def described(judge: JudgeConfig, question: Question) -> str:
    """The judge in one line, with its known agreement for this question, or that it is unknown."""
    found = known_agreement(judge, question)
    if found is None:
        return f"{judge.description}, agreement with labels unknown"
    measured = f"accuracy {found.accuracy.text(2)}, Cohen's κ {found.kappa.text(2)}"
    if found.kappa_without_trigger:
        measured += f", κ {found.kappa_without_trigger.text(2)} on those without a trigger of training"
    return f"{judge.description}, agreement with {found.n} labels of {found.labels}: {measured}"


def _read(path: Path) -> dict[str, KnownAgreement]:
    """The entries of a table, none where there is no file.

    Raises:
        InputError: it is no table of agreements.
    """
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {name: KnownAgreement.model_validate(entry) for name, entry in dict(entries).items()}
    except (OSError, TypeError, ValueError) as error:
        problem = f"is no table of judges' agreement ({_reason(error)})"
        raise InputError("judge", path, problem, "remove it and run trimtab evaluate judge again") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'an entry'}: {first['msg']}"
    return str(error).splitlines()[0]
