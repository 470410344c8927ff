"""The objective on a group: DPO over all its pairs, and a likelihood term on what is worth imitating."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def ranked_dpo_loss(
    policy: Tensor, reference: Tensor, beta: float, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sigmoid DPO over all pairs i < j of a group ranked best to worst.

    ``mean over pairs of −log σ(β[(π_i − ref_i) − (π_j − ref_j)])``, the loss of the N·(N−1)/2 plain pairs
    (Rafailov et al., arXiv 2305.18290), with conservative label smoothing as in TRL.

    Args:
        policy: log-probabilities of the N responses in nats, shape ``[N]``.
        reference: the same under the reference model, shape ``[N]``.

    Returns:
        The loss (scalar), and the reward margins β·(…) of the pairs, shape ``[N·(N−1)/2]``.
    """
    import torch
    from torch.nn.functional import logsigmoid

    rewards = beta * (policy - reference)
    better, worse = torch.triu_indices(len(rewards), len(rewards), offset=1)
    margins = rewards[better] - rewards[worse]
    losses = -logsigmoid(margins) * (1 - label_smoothing) - logsigmoid(-margins) * label_smoothing
    return losses.mean(), margins.detach()
