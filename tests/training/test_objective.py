"""The likelihood term of the trainer: which tokens of which responses it takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from trimtab.training.config import TrainingConfig
from trimtab.training.metrics import Seen
from trimtab.training.store import TokenizedGroup


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("length", "expected"), [(None, -(3 + 4 + 6 + 7 + 8) / 5), (1, -(3 + 6) / 2)])
def test_likelihood_takes_the_first_tokens_behind_the_given_start(length: int | None, expected: float) -> None:
    import torch

    from trimtab.training.trainer import RankedTrainer

    group = TokenizedGroup("g", [1], [[1] * 4, [1] * 4, [1]], learn_from=[2, 1, 0], num_demonstrations=2)
    config = TrainingConfig(output=Path("x"), data=(), likelihood_weight=1, likelihood_tokens=length)
    paths = [np.arange(1, 5), np.arange(5, 9), np.array([9])]
    paths = [path.astype(np.int64) for path in paths]
    trainer = SimpleNamespace(config=config, seen=Seen())
    loss = RankedTrainer._group_loss(trainer, torch.arange(10.0), group, paths, [0.0, 0.0, 0.0], count=True)
    means = trainer.seen.means()
    assert means["nll"] == pytest.approx(expected)
    assert loss.item() == pytest.approx(means["dpo_loss"] + means["nll"])
