"""The objectives on a group: what its N log-probabilities, read from one trie, are asked to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trimtab.training.config import LossConfig

if TYPE_CHECKING:
    from torch import Tensor


def group_loss(policy: Tensor, reference: Tensor, lengths: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The preference loss of a group ranked best to worst.

    With h_i = π_i − ref_i (divided by the response's tokens where normalised), over pairs i < j:

    - ``sigmoid``: −log σ(β(h_i − h_j)), DPO (Rafailov et al., arXiv 2305.18290, eq. 7), with conservative label
      smoothing ε: (1 − ε)·that + ε·(−log σ(−β(h_i − h_j)));
    - ``ipo``: (h_i − h_j − 1/(2β))² on log-ratios per token, as TRL has it (Azar et al., arXiv 2310.12036, eq. 17);
    - ``plackett_luce``: −log of the probability that ranking by β·h draws this order (arXiv 2305.18290, eq. 20),
      divided by N − 1, so that for N = 2 it is ``sigmoid``.

    Pair losses are averaged with the weights of ``pair_weights`` over the pairs of ``pairs``.

    Args:
        policy: log-probabilities of the N responses in nats, shape ``[N]``.
        reference: the same under the reference model, shape ``[N]``.
        lengths: tokens of the responses, shape ``[N]``.

    Returns:
        The loss (scalar), and the reward margins β(h_i − h_j) of all pairs, shape ``[N·(N−1)/2]``, detached.
    """
    import torch

    ratios = policy - reference
    if config.length_normalization or config.loss_type == "ipo":
        ratios = ratios / lengths
    better, worse = torch.triu_indices(len(ratios), len(ratios), offset=1, device=ratios.device)
    differences = ratios[better] - ratios[worse]
    margins = config.beta * differences.detach()
    if config.loss_type == "plackett_luce":
        return _plackett_luce(config.beta * ratios), margins
    weights = _pair_weights(worse - better, config).to(ratios.dtype)
    return (weights * _pair_losses(differences, config)).sum(), margins


def _pair_losses(differences: Tensor, config: LossConfig) -> Tensor:
    from torch.nn.functional import logsigmoid

    if config.loss_type == "ipo":
        return (differences - 1 / (2 * config.beta)) ** 2
    logits, smoothing = config.beta * differences, config.label_smoothing
    return -logsigmoid(logits) * (1 - smoothing) - logsigmoid(-logits) * smoothing


def _pair_weights(gaps: Tensor, config: LossConfig) -> Tensor:
    """Weights of the pairs by their distance in rank; they sum to 1."""
    weights = gaps.double() if config.pair_weights == "rank_gap" else gaps.double() * 0 + 1
    if config.pairs == "adjacent":
        weights = weights * (gaps == 1)
    return weights / weights.sum()


def _plackett_luce(scores: Tensor) -> Tensor:
    """Mean over the first N − 1 places of −log softmax of the place's score among those not drawn yet."""
    remaining = scores.flip(0).logcumsumexp(0).flip(0)
    return (remaining - scores)[:-1].mean()
