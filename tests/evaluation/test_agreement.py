"""Agreement of verdicts with labels, against scikit-learn, and null where a measure has nothing to stand on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.evaluation.agreement import _cells, agreement, f1_and_kappa
from trimtab.judging import Answer

pytestmark = pytest.mark.slow  # importing scikit-learn takes a second
NAMES: dict[str, Answer] = {"y": "yes", "n": "no", "u": "unparsed"}


def _answers(text: str) -> list[Answer]:
    return [NAMES[letter] for letter in text]


def test_table_and_measures_of_a_known_case() -> None:
    found = agreement(_answers("yyyynnnnyn"), _answers("yyynynnnuu"), [f"p{n}" for n in range(10)])
    table = found.num_yes_said_yes, found.num_no_said_yes, found.num_yes_said_no, found.num_no_said_no
    assert table == (3, 1, 1, 3)
    assert (found.n, found.num_unparsed) == (8, 2)
    for measure in (found.accuracy, found.precision, found.recall, found.f1):
        assert measure.value == pytest.approx(0.75)
    assert found.kappa.value == pytest.approx(0.5)
    for measure in (found.accuracy, found.f1, found.kappa):
        assert measure.low is not None
        assert measure.high is not None
        assert measure.value is not None
        assert measure.low < measure.value < measure.high
        assert (measure.n, measure.num_clusters) == (8, 8)
    assert (found.precision.n, found.recall.n) == (4, 4)


@pytest.mark.parametrize(
    ("labels", "verdicts", "nulls"),
    [
        ("yn", "uu", {"accuracy", "precision", "recall", "f1", "kappa"}), ("", "", {"accuracy", "f1", "kappa"}),
        ("nnn", "nnn", {"precision", "recall", "f1", "kappa"}), ("yyn", "nnn", {"precision"}),
        ("nnn", "yny", {"recall"}), ("yyy", "yyy", {"kappa"}), ("yn", "ny", set()),
    ],
)  # fmt: skip
def test_a_measure_over_nothing_is_null(labels: str, verdicts: str, nulls: set[str]) -> None:
    found = agreement(_answers(labels), _answers(verdicts), [str(n) for n in range(len(labels))])
    assert {name for name in nulls if getattr(found, name).value is None} == nulls
    if labels and "u" not in verdicts:
        others = {"accuracy", "precision", "recall", "f1", "kappa"} - nulls
        assert all(getattr(found, name).value is not None for name in others)


def test_rows_of_one_prompt_count_as_one_when_the_interval_is_drawn() -> None:
    labels, verdicts = _answers("yn" * 40), _answers("yn" * 30 + "ny" * 10)
    apart = agreement(labels, verdicts, [f"p{n}" for n in range(80)]).kappa
    alike = agreement(labels, verdicts, [f"p{n // 20}" for n in range(80)]).kappa
    assert apart.value == alike.value
    assert apart.low is not None
    assert alike.low is not None
    assert alike.low < apart.low
    assert (apart.num_clusters, alike.num_clusters) == (80, 4)


def test_one_prompt_alone_gives_no_interval() -> None:
    found = agreement(_answers("yyn"), _answers("ynn"), ["p"] * 3)
    assert found.kappa.value is not None
    assert (found.kappa.low, found.f1.high) == (None, None)


def test_intervals_repeat_with_their_seed() -> None:
    args = _answers("yyynnnyn"), _answers("ynynnnyy"), [f"p{n}" for n in range(8)]
    assert agreement(*args, seed=3) == agreement(*args, seed=3)


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_resampled_measures_are_those_of_scikit_learn(rows: list[tuple[bool, bool, int]]) -> None:
    from sklearn.metrics import cohen_kappa_score, f1_score

    truth, said = (np.array([row[side] for row in rows]) for side in (0, 1))
    f1, kappa = f1_and_kappa(_cells(truth, said, np.array([str(row[2]) for row in rows])).sum(1))
    if (truth | said).any():
        assert f1 == pytest.approx(f1_score(truth, said))
    else:
        assert np.isnan(f1)
    if len(set(truth) | set(said)) == 2:
        assert kappa == pytest.approx(cohen_kappa_score(truth, said), abs=1e-12)
    else:
        assert np.isnan(kappa)
