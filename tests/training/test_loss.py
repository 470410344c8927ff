"""The trie loss against plain pairwise DPO: same value, same gradient, in float32, on a real model."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.training.config import LossConfig
from trimtab.training.loss import group_loss

if TYPE_CHECKING:
    from torch import Tensor

Group = tuple[list[int], list[list[int]]]
BETA = 0.3


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Any]:
    """The tiny model in float32, on one core: it is too small for two."""
    import torch
    from transformers import AutoModelForCausalLM

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="sdpa").eval()
    torch.set_num_threads(before)


def _group(seed: int) -> Group:
    """Six responses as synthesis makes them: four that share growing prefixes of the last, and a plain one."""
    rng = random.Random(seed)
    harmful = [rng.randrange(3, 900) for _ in range(24)]
    turns = [harmful[: 5 * i] + [rng.randrange(3, 900) for _ in range(8)] for i in range(1, 5)]
    own = [rng.randrange(3, 900) for _ in range(10)]
    return [rng.randrange(3, 900) for _ in range(12)], [own, *turns, harmful]


def _reference(seed: int) -> list[float]:
    return [random.Random(seed + 50).uniform(-120, -60) for _ in range(6)]


def _sequence_log_prob(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """By the definition: one ordinary forward of one sequence."""
    import torch

    logits = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(logits[len(prompt) + place - 1, token] for place, token in enumerate(response))


def _pairwise_dpo(model: Any, group: Group, reference: list[float]) -> Tensor:
    """Plain DPO: each pair with its own two forwards."""
    import torch

    prompt, responses = group
    losses = []
    for i, j in combinations(range(len(responses)), 2):
        chosen, rejected = (_sequence_log_prob(model, prompt, responses[place]) for place in (i, j))
        logits = (chosen - reference[i]) - (rejected - reference[j])
        losses.append(-torch.log(torch.sigmoid(BETA * logits)))
    return torch.stack(losses).mean()


def ranked_dpo_loss(
    policy: Tensor, reference: Tensor, beta: float, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The default objective."""
    return _loss(policy, reference, beta=beta, label_smoothing=label_smoothing)


def _loss(policy: Tensor, reference: Tensor, lengths: list[int] | None = None, **config: Any) -> tuple[Tensor, Tensor]:
    import torch

    counts = torch.tensor(lengths or [10] * len(policy), dtype=policy.dtype)
    return group_loss(policy, reference, counts, LossConfig(**config))


def _trie_dpo(model: Any, groups: list[Group], references: list[list[float]], form: Any = "trie") -> Tensor:
    import torch

    from trimtab.training.policy import lay_out, score

    layout = lay_out(groups, form, torch.device("cpu"))
    log_probs = score(model, **layout.tensors)
    losses = [
        ranked_dpo_loss(torch.stack([log_probs[path].sum() for path in paths]), torch.tensor(reference), BETA)[0]
        for paths, reference in zip(layout.paths, references, strict=True)
    ]
    return torch.stack(losses).mean()


def _gradient(model: Any, loss: Tensor) -> Tensor:
    import torch

    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("form", ["trie", "grouped", "plain"])
@pytest.mark.parametrize("num_groups", [1, 2], ids=["one group", "two packed together"])
def test_loss_and_gradient_are_those_of_plain_pairs(model: Any, num_groups: int, form: str) -> None:
    import torch

    groups, references = [_group(seed) for seed in range(num_groups)], [_reference(seed) for seed in range(num_groups)]
    pairs = zip(groups, references, strict=True)
    plain = torch.stack([_pairwise_dpo(model, group, reference) for group, reference in pairs]).mean()
    trie = _trie_dpo(model, groups, references, form)
    assert trie.item() == pytest.approx(plain.item(), rel=1e-5)
    assert plain.item() > 0.01
    expected, found = _gradient(model, plain), _gradient(model, trie)
    assert expected.norm() > 1e-3
    assert (found - expected).norm() / expected.norm() <= 1e-5


def test_chunks_of_the_vocabulary_head_change_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _gradient(model, _trie_dpo(model, [_group(1)], [_reference(1)]))
    monkeypatch.setattr("trimtab.training.policy.CHUNK", 7)
    pieces = _gradient(model, _trie_dpo(model, [_group(1)], [_reference(1)]))
    assert (whole - pieces).norm() / whole.norm() <= 1e-5


def _trl_sigmoid_loss(chosen: float, rejected: float, beta: float, smoothing: float) -> float:
    """TRL's ``loss_type="sigmoid"``: ``chosen`` and ``rejected`` are log-ratios of policy and reference."""

    def logsigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))

    logits = chosen - rejected
    return -logsigmoid(beta * logits) * (1 - smoothing) - logsigmoid(-beta * logits) * smoothing


ratios = st.lists(st.floats(-60, 60), min_size=2, max_size=7)


@given(ratios=ratios, beta=st.floats(0.01, 1), smoothing=st.floats(0, 0.49))
def test_loss_is_the_mean_of_trls_over_the_pairs(ratios: list[float], beta: float, smoothing: float) -> None:
    import torch

    policy = torch.tensor(ratios, dtype=torch.float64) - 100
    reference = torch.full_like(policy, -100)
    loss, margins = ranked_dpo_loss(policy, reference, beta, smoothing)
    expected = [_trl_sigmoid_loss(better, worse, beta, smoothing) for better, worse in combinations(ratios, 2)]
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-7, abs=1e-9)
    rewards = [beta * (better - worse) for better, worse in combinations(ratios, 2)]
    assert margins.tolist() == pytest.approx(rewards, abs=1e-7)
    assert not margins.requires_grad


def test_unmoved_policy_has_loss_log_two_and_a_gradient_that_ranks() -> None:
    import torch

    reference = torch.tensor([-3.0, -5.0, -4.0])
    policy = reference.clone().requires_grad_()
    loss, margins = ranked_dpo_loss(policy, reference, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert margins.tolist() == [0, 0, 0]
    assert policy.grad is not None
    assert policy.grad[0] < policy.grad[1] == 0 < policy.grad[2]


def test_label_smoothing_mixes_the_two_signs() -> None:
    import torch

    policy, reference = torch.tensor([2.0, -1.0]), torch.zeros(2)
    right, wrong = (ranked_dpo_loss(p, reference, 1.0)[0] for p in (policy, policy.flip(0)))
    mixed = ranked_dpo_loss(policy, reference, 1.0, label_smoothing=0.25)[0]
    assert mixed.item() == pytest.approx(0.75 * right.item() + 0.25 * wrong.item())
    assert right < mixed < wrong


def test_extreme_margins_stay_finite() -> None:
    import torch

    policy = torch.tensor([-1e4, 1e4]).requires_grad_()
    loss, _ = ranked_dpo_loss(policy, torch.zeros(2), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-1.0, 1.0])


def test_length_normalization_is_trls_sigmoid_norm() -> None:
    import torch

    policy, reference, lengths = torch.tensor([-30.0, -44.0]), torch.tensor([-36.0, -40.0]), [12, 8]
    loss, margins = _loss(policy, reference, lengths, beta=2.0, length_normalization=True)
    assert margins.item() == pytest.approx(2.0 * (6 / 12 - -4 / 8))
    assert loss.item() == pytest.approx(_trl_sigmoid_loss(6 / 12, -4 / 8, 2.0, 0))


def test_ipo_is_trls_squared_distance_per_token() -> None:
    import torch

    policy, reference, lengths = torch.tensor([-30.0, -44.0, -9.0]), torch.tensor([-36.0, -40.0, -9.0]), [12, 8, 3]
    loss, _ = _loss(policy, reference, lengths, loss_type="ipo", beta=0.25)
    ratios = [6 / 12, -4 / 8, 0]
    assert loss.item() == pytest.approx(np.mean([(a - b - 1 / (2 * 0.25)) ** 2 for a, b in combinations(ratios, 2)]))


@given(ratios=ratios, beta=st.floats(0.01, 1))
def test_plackett_luce_is_the_probability_of_drawing_the_ranking(ratios: list[float], beta: float) -> None:
    import torch

    policy = torch.tensor(ratios, dtype=torch.float64)
    loss, _ = _loss(policy, torch.zeros_like(policy), loss_type="plackett_luce", beta=beta)
    scores = [beta * ratio for ratio in ratios]
    draws = [score - np.logaddexp.reduce(scores[place:]) for place, score in enumerate(scores)]
    assert loss.item() == pytest.approx(-sum(draws) / (len(ratios) - 1), rel=1e-7, abs=1e-9)


@given(first=st.floats(-40, 40), second=st.floats(-40, 40))
def test_plackett_luce_of_two_is_dpo(first: float, second: float) -> None:
    import torch

    policy = torch.tensor([first, second], dtype=torch.float64)
    plackett, dpo = (_loss(policy, torch.zeros(2), loss_type=kind)[0] for kind in ("plackett_luce", "sigmoid"))
    assert plackett.item() == pytest.approx(dpo.item(), rel=1e-9, abs=1e-12)


def test_adjacent_pairs_and_rank_gap_weights() -> None:
    import torch

    ratios = [3.0, -1.0, 2.0]
    policy = torch.tensor(ratios, dtype=torch.float64)
    by_pair = {(i, j): _trl_sigmoid_loss(ratios[i], ratios[j], 0.1, 0) for i, j in combinations(range(3), 2)}
    adjacent = _loss(policy, torch.zeros(3), pairs="adjacent")[0].item()
    assert adjacent == pytest.approx((by_pair[0, 1] + by_pair[1, 2]) / 2)
    weighted, margins = _loss(policy, torch.zeros(3), pair_weights="rank_gap")
    assert weighted.item() == pytest.approx((by_pair[0, 1] + by_pair[1, 2] + 2 * by_pair[0, 2]) / 4)
    assert len(margins) == 3
