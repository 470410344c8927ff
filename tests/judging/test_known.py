"""What is known of a judge is found again by its identity and the question, and said with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import InputError
from trimtab.data import SHIPPED
from trimtab.judging import OpenAIJudge, Question, RulesJudge, described
from trimtab.judging.known import KnownAgreement, agreement_id, known_agreement, own_table, remember
from trimtab.stats import Estimate


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    return tmp_path


def _found(question: Question = "is_safe", **fields: Any) -> KnownAgreement:
    share = Estimate(value=0.8, low=0.7, high=0.9, n=50)
    values: dict[str, Any] = {"judge": "j", "question": question, "labels": "l.jsonl (0)", "n": 50, "num_unparsed": 2,
                              "accuracy": share, "kappa": share, "created": "now"}  # fmt: skip
    return KnownAgreement.model_validate(values | fields)


def test_agreement_is_of_one_judge_and_one_question() -> None:
    judge = OpenAIJudge(model="some-model")
    assert known_agreement(judge, "is_safe") is None
    assert described(judge, "is_safe") == "openai (some-model), agreement with labels unknown"
    remember(judge, _found())
    assert known_agreement(judge, "is_safe") == _found()
    assert known_agreement(judge.model_copy(update={"base_url": "http://elsewhere/v1"}), "is_safe") == _found()
    assert known_agreement(judge, "attack_success") is None
    assert known_agreement(OpenAIJudge(model="other"), "is_safe") is None
    line = described(judge, "is_safe")
    assert line == (
        "openai (some-model), agreement with 50 labels of l.jsonl (0): accuracy 0.80 [0.70, 0.90], Cohen's κ 0.80 "
        "[0.70, 0.90]"
    )


def test_a_later_calibration_replaces_its_own_entry_alone() -> None:
    judge = OpenAIJudge(model="some-model")
    remember(judge, _found())
    remember(judge, _found("attack_success", n=7))
    remember(judge, _found(n=60))
    assert known_agreement(judge, "is_safe") == _found(n=60)
    assert known_agreement(judge, "attack_success") == _found("attack_success", n=7)
    assert len(json.loads(own_table().read_text(encoding="utf-8"))) == 2


def test_only_the_questions_own_text_counts(tmp_path: Path) -> None:
    (tmp_path / "attack_success.txt").write_text("${mark} ${answer}", encoding="utf-8")
    plain, own = OpenAIJudge(), OpenAIJudge(prompts=tmp_path)
    assert agreement_id(own, "is_safe") == agreement_id(plain, "is_safe")
    assert agreement_id(own, "attack_success") != agreement_id(plain, "attack_success")


def test_shipped_table_knows_the_rules() -> None:
    entries = json.loads((SHIPPED / "judges" / "agreement.json").read_text(encoding="utf-8"))
    for entry in entries.values():
        KnownAgreement.model_validate(entry)
    for judge in (RulesJudge(version="rules-1"), RulesJudge(version="rules-2")):
        found = known_agreement(judge, "course_corrects")
        assert found is not None
        assert found.labels.startswith("course_corrects_fresh.jsonl, fresh half (")
        assert "on those without a trigger of training" in described(judge, "course_corrects")


def test_rules_say_that_they_are_weak_with_or_without_a_calibration() -> None:
    weak = f"rules ({RulesJudge().version}; weak: it sees phrases, not meaning), agreement with "
    for question in ("course_corrects", "attack_success", "is_safe"):
        assert described(RulesJudge(), question).startswith(weak)
    assert described(RulesJudge(), "is_safe") == f"{weak}labels unknown"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("\xff", "can't decode"),
        ("[1]", "cannot convert dictionary update sequence"),
        ("3", "object is not iterable"),
        ('{"a": {"judge": "j"}}', r"question: Field required"),
        ('{"a": 3}', "an entry: Input should be"),
    ],
)
def test_a_damaged_table_is_one_line(text: str, reason: str) -> None:
    own_table().parent.mkdir(parents=True)
    own_table().write_bytes(text.encode("latin-1"))
    line = rf"^judge: .*agreement\.json: is no table of judges' agreement \(.*{reason}[^\n]*\); remove it and [^\n]*$"
    for use in (lambda: described(RulesJudge(), "is_safe"), lambda: remember(RulesJudge(), _found())):
        with pytest.raises(InputError, match=line):
            use()
