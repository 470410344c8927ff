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

from trimtab.training.loss import ranked_dpo_loss
from trimtab.training.trie import build_forest

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


def _trie_dpo(model: Any, groups: list[Group], references: list[list[float]]) -> Tensor:
    import torch

    from trimtab.training.policy import TriePolicy, to_tensors

    forest = build_forest(groups)
    log_probs = TriePolicy(model)(**to_tensors(forest, torch.device("cpu")))
    losses = [
        ranked_dpo_loss(torch.stack([log_probs[path].sum() for path in paths]), torch.tensor(reference), BETA)[0]
        for paths, reference in zip(forest.paths, references, strict=True)
    ]
    return torch.stack(losses).mean()


def _gradient(model: Any, loss: Tensor) -> Tensor:
    import torch

    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("num_groups", [1, 2], ids=["one group", "a packed forest of two"])
def test_loss_and_gradient_are_those_of_plain_pairs(model: Any, num_groups: int) -> None:
    import torch

    groups, references = [_group(seed) for seed in range(num_groups)], [_reference(seed) for seed in range(num_groups)]
    pairs = zip(groups, references, strict=True)
    plain = torch.stack([_pairwise_dpo(model, group, reference) for group, reference in pairs]).mean()
    trie = _trie_dpo(model, groups, references)
    assert trie.item() == pytest.approx(plain.item(), rel=1e-5)
    assert plain.item() > 0.01
    expected, found = _gradient(model, plain), _gradient(model, trie)
    assert expected.norm() > 1e-3
    assert (found - expected).norm() / expected.norm() <= 1e-5


def test_log_probabilities_are_those_of_plain_forwards_with_and_without_gradient(model: Any) -> None:
    import torch

    from trimtab.training.policy import TriePolicy, plain_log_probs, to_tensors

    prompt, responses = _group(7)
    forest = build_forest([(prompt, responses)])
    tensors = to_tensors(forest, torch.device("cpu"))
    scored = TriePolicy(model)(**tensors)
    with torch.no_grad():
        torch.testing.assert_close(TriePolicy(model)(**tensors), scored.detach())
        for path, response in zip(forest.paths[0], responses, strict=True):
            plain = plain_log_probs(model, prompt, response)
            assert plain.shape == (len(response),)
            torch.testing.assert_close(scored[path], plain, rtol=1e-4, atol=1e-4)
            total = _sequence_log_prob(model, prompt, response)
            assert plain.sum().item() == pytest.approx(total.item(), rel=1e-5)


def test_chunks_of_the_vocabulary_head_change_nothing(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _gradient(model, _trie_dpo(model, [_group(1)], [_reference(1)]))
    monkeypatch.setattr("trimtab.training.policy.CHUNK", 7)
    pieces = _gradient(model, _trie_dpo(model, [_group(1)], [_reference(1)]))
    assert (whole - pieces).norm() / whole.norm() <= 1e-5


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft's use of transformers
def test_adapters_score_as_the_model_below_them_before_the_first_step(model: Any, tiny_model: Path) -> None:
    import torch

    from trimtab.training.config import LoRA, TrainingConfig
    from trimtab.training.loop import load_model
    from trimtab.training.policy import TriePolicy, to_tensors

    config = TrainingConfig(output=Path("x"), data=(Path("x"),), lora=LoRA(r=2), dtype="float32")
    adapted = TriePolicy(load_model(str(tiny_model), config)).eval()
    tensors = to_tensors(build_forest([_group(3)]), torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(adapted(**tensors), TriePolicy(model)(**tensors))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


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
