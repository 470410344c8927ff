"""How far verdicts agree with labels: accuracy, precision, recall, F1 and Cohen's κ, each with its interval.

Rows of one prompt are alike, so the intervals resample whole prompts. What was not scored is counted apart; a measure
over nothing (the precision of a judge that never says yes) is null, never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from trimtab.judging import Answer
from trimtab.stats import EMPTY, LEVEL, NUM_RESAMPLES, Estimate, clustered_mean

SHARE = (0.0, 1.0)


class Agreement(BaseModel):
    """Verdicts against labels; ``yes`` is the class that precision, recall and F1 are about."""

    model_config = ConfigDict(frozen=True)
    n: int
    """Rows with a verdict."""
    num_unparsed: int
    """Rows without one, which are in no measure."""
    num_yes_said_yes: int
    num_no_said_yes: int
    num_yes_said_no: int
    num_no_said_no: int
    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    kappa: Estimate
    """Cohen's κ. Its interval, as that of F1, is the percentiles' and has no width where all rows agree."""


def agreement(labels: Sequence[Answer], verdicts: Sequence[Answer], prompts: Sequence[str], seed: int = 0) -> Agreement:
    """Compare verdicts with labels, row by row.

    Args:
        labels: yes or no, shape ``[n]``.
        verdicts: yes, no or unparsed, shape ``[n]``.
        prompts: what a row is alike with, shape ``[n]``.
        seed: of the intervals' resampling.
    """
    rows = [row for row in zip(labels, verdicts, prompts, strict=True) if row[1] != "unparsed"]
    truth, said = (np.array([row[side] == "yes" for row in rows], dtype=bool) for side in (0, 1))
    alike = np.array([row[2] for row in rows], dtype=str)
    f1, kappa = _f1_and_kappa(truth, said, alike, seed)
    return Agreement(
        n=len(rows), num_unparsed=len(labels) - len(rows), num_yes_said_yes=int((truth & said).sum()),
        num_no_said_yes=int((~truth & said).sum()), num_yes_said_no=int((truth & ~said).sum()),
        num_no_said_no=int((~truth & ~said).sum()), accuracy=_share(truth == said, alike, seed),
        precision=_share(truth[said], alike[said], seed), recall=_share(said[truth], alike[truth], seed),
        f1=f1, kappa=kappa,
    )  # fmt: skip


def _share(values: Any, prompts: Any, seed: int) -> Estimate:
    return clustered_mean(values.astype(float).tolist(), prompts.tolist(), bounds=SHARE, seed=seed)


def _f1_and_kappa(truth: Any, said: Any, prompts: Any, seed: int) -> tuple[Estimate, Estimate]:
    """Both by scikit-learn; null where there is nothing that could agree, or only one class on both sides."""
    from sklearn.metrics import cohen_kappa_score, f1_score

    cells = _cells(truth, said, prompts)
    drawn = f1_and_kappa(_resampled(cells, seed))
    with_yes, two_classes = bool((truth | said).any()), len(np.unique(np.concatenate([truth, said]))) == 2
    f1 = float(f1_score(truth, said)) if with_yes else None
    kappa = float(cohen_kappa_score(truth, said)) if two_classes else None
    size = len(truth), cells.shape[1]
    return _estimate(f1, *size, drawn[0]), _estimate(kappa, *size, drawn[1])


def _estimate(value: float | None, n: int, num_prompts: int, drawn: Any) -> Estimate:
    """The percentile interval of what was drawn; resamples in which the measure isn't defined are left out."""
    if value is None:
        return EMPTY
    defined = drawn[np.isfinite(drawn)]
    if not len(defined):
        return Estimate(value=value, low=None, high=None, n=n, num_clusters=num_prompts)
    low, high = np.quantile(defined, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(value=value, low=float(low), high=float(high), n=n, num_clusters=num_prompts)


def _cells(truth: Any, said: Any, prompts: Any) -> Any:
    """The four cells of the confusion table by prompt, shape ``[4, prompts]``: yes/yes, no/yes, yes/no, no/no."""
    names, column = np.unique(prompts, return_inverse=True)
    counts = np.zeros((4, len(names)))
    np.add.at(counts, (np.where(said, 0, 2) + ~truth, column), 1.0)
    return counts


def _resampled(cells: Any, seed: int) -> Any:
    """Confusion tables of bootstrap samples of the prompts, shape ``[4, resamples]``; none where one prompt is all."""
    num = cells.shape[1]
    if num < 2:
        return np.empty((4, 0))
    return cells @ np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), NUM_RESAMPLES).T


def f1_and_kappa(tables: Any) -> Any:
    """The two of many confusion tables at once, for which scikit-learn has no function.

    Args:
        tables: the cells yes/yes, no/yes, yes/no and no/no, shape ``[4, ...]``.

    Returns:
        Shape ``[2, ...]``; NaN where one isn't defined.
    """
    tp, fp, fn, tn = tables
    n = tables.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        by_chance = ((tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)) / n**2
        return np.stack([2 * tp / (2 * tp + fp + fn), ((tp + tn) / n - by_chance) / (1 - by_chance)])
