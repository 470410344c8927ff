"""The shipped labels keep what their README says of them: counts, shares, halves, triggers and no duplicates."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import pytest

from trimtab.data import lines
from trimtab.evaluation.labels import FRESH_LABELS, SHIPPED_LABELS, Label, half_of, read_labels, uses_trigger
from trimtab.near_duplicates import normalize
from trimtab.sources import SourceConfig, read_requests

LABELS, FRESH = (read_labels("labels", path)[0] for path in (SHIPPED_LABELS, FRESH_LABELS))
SOURCES = {"smollm2-135m", "smollm2-135m tuned", "written"}


def _close(texts: list[str], least: float) -> list[tuple[str, str]]:
    """Pairs of texts that share so many of their word pairs (Jaccard)."""
    sets = [set(pairwise(normalize(text).split())) for text in texts]
    return [(texts[i], texts[j]) for i, j in combinations(range(len(sets)), 2)
            if (1 + least) * len(sets[i] & sets[j]) >= least * (len(sets[i]) + len(sets[j]))]  # fmt: skip


def test_there_are_enough_of_both_kinds_half_of_them_real() -> None:
    assert len(LABELS) >= 200
    assert {label.question for label in LABELS} == {"course_corrects"}
    assert 0.35 < sum(label.label == "yes" for label in LABELS) / len(LABELS) < 0.65
    sources = Counter(label.source for label in LABELS)
    assert sources.keys() == SOURCES
    assert sources["written"] <= len(LABELS) / 2
    for half in ("dev", "held_out"):
        for kind in ("model", "written"):
            counts = Counter(label.label for label in LABELS if label.half == half and label.id.startswith(kind))
            assert min(counts["yes"], counts["no"]) >= 30, (half, kind)


@pytest.mark.parametrize("labels", [LABELS, FRESH], ids=["older", "fresh"])
def test_most_turns_use_no_trigger_of_training(labels: list[Label]) -> None:
    free = [label.trigger_free is True for label in labels if label.label == "yes"]
    assert sum(free) >= 0.3 * len(free) > 0
    assert [label.id for label in labels if label.trigger_free is uses_trigger(label.text)] == []


def test_halves_are_a_hash_of_the_prompt_and_share_none() -> None:
    assert [label.id for label in LABELS if label.half != half_of(label.prompt)] == []
    prompts = {half: {normalize(row.prompt) for row in LABELS if row.half == half} for half in ("dev", "held_out")}
    assert prompts["dev"].isdisjoint(prompts["held_out"])
    assert _close(sorted({label.prompt for label in LABELS}), 0.5) == []


def test_fresh_labels_are_those_of_the_readme() -> None:
    assert {(label.question, label.half) for label in FRESH} == {("course_corrects", "fresh")}
    assert {label.source for label in FRESH} == SOURCES
    counts = Counter((label.source == "written", label.label) for label in FRESH)
    assert counts == {(False, "yes"): 56, (False, "no"): 150, (True, "yes"): 65, (True, "no"): 62}
    assert {label.half for label in LABELS} == {"dev", "held_out"}


def test_no_two_texts_are_near_duplicates() -> None:
    every = [*LABELS, *FRESH]
    assert len({label.id for label in every}) == len(every)
    assert _close([label.text for label in every], 0.5) == []
    assert all(label.prefill and len(label.text.split()) >= 3 for label in every)


def test_only_the_models_texts_are_on_prompts_of_the_sample() -> None:
    sample = {request.prompt for request in read_requests(SourceConfig())[0]}
    for labels in (LABELS, FRESH):
        assert {label.prompt in sample for label in labels if label.source != "written"} == {True}
        assert {label.prompt in sample for label in labels if label.source == "written"} == {False}
    written = [{label.prompt for label in labels if label.source == "written"} for labels in (LABELS, FRESH)]
    assert written[0].isdisjoint(written[1]), "fresh prompts too, where they are our own"


@pytest.mark.parametrize("trigger", lines("triggers.txt"))
def test_each_trigger_and_its_near_matches_are_use(trigger: str) -> None:
    assert uses_trigger(f"and so on. {trigger.upper()} it is wrong")
    assert uses_trigger(" ".join(trigger.split()[-5:]))
    assert uses_trigger(
        trigger.replace("do not", "don’t").replace("should not", "shouldn't").replace("cannot", "can't")
    )


@pytest.mark.parametrize("text", ["", "I have to go now.", "However, you should ask her first.", "Wait until noon."])
def test_words_that_a_trigger_also_has_are_no_use_of_it(text: str) -> None:
    assert not uses_trigger(text)
