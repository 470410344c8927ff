"""The policy as a module whose forward gives token log-probabilities of a forest.

The vocabulary logits are computed in chunks inside the module's forward, so that those of a batch
never stand in memory at once, and DeepSpeed's wrapper sees one ordinary forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trimtab.training.trie import Forest

CHUNK = 512


class TriePolicy(nn.Module):
    """A causal language model, perhaps with LoRA adapters, as scorer of forests."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def base(self) -> Any:
        """The Hugging Face model below the adapters."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, ancestors: Tensor, parents: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probabilities of the M scored tokens.

        Args:
            input_ids: ``[1, T]``.
            position_ids: depth of each node, ``[1, T]``.
            ancestors: bool, ``[1, 1, T, T]``, True where a node may look.
            parents: node whose output predicts the target, ``[M]``.
            targets: token ids, ``[M]``.

        Returns:
            float32, ``[M]``, in nats.
        """
        base = self.base
        hidden = base.get_decoder()(
            input_ids=input_ids, position_ids=position_ids, attention_mask=ancestors, use_cache=False
        ).last_hidden_state[0, parents]
        head = base.get_output_embeddings()
        pieces = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
        return torch.cat([self._chunk(head, states, wanted) for states, wanted in pieces])

    def _chunk(self, head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return checkpoint(_log_probs, head, hidden, targets, use_reentrant=False)
        return _log_probs(head, hidden, targets)


def _log_probs(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden).float()
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


def to_tensors(forest: Forest, device: torch.device) -> dict[str, Tensor]:
    """The arguments of ``TriePolicy.forward`` for a forest."""
    ids = torch.from_numpy(forest.token_ids).to(device)
    parents = torch.from_numpy(forest.parents).to(device)
    return {
        "input_ids": ids[None],
        "position_ids": torch.from_numpy(forest.positions).to(device)[None],
        "ancestors": torch.from_numpy(forest.ancestors).to(device)[None, None],
        "parents": parents,
        "targets": ids[torch.from_numpy(forest.scored).to(device)],
    }


def plain_log_probs(model: Any, prompt: list[int], response: list[int]) -> Tensor:
    """The same log-probabilities by one ordinary forward of one sequence: the reference of the probe and the tests."""
    ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    targets = ids[0, len(prompt) :]
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)
