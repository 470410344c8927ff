"""Top-p on CPU without sorting the vocabulary.

At each step vLLM sorts all logits of every row, which takes a small model longer than its network. A nucleus is nearly
always among the first few hundred tokens: these are picked, and only a row whose nucleus is larger is sorted. Its
tokens are those of vLLM's own top-p (Holtzman et al., arXiv 1904.09751, §3.1), and the draws that follow are vLLM's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import SamplingParams

NUM_PICKED = 512


class Nucleus(LogitsProcessor):
    """Applies ``extra_args["nucleus"]`` of a request as its top-p; its own ``top_p`` has to be 1."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._top_p: dict[int, float] = {}
        """Of each row of the batch that has one."""

    def is_argmax_invariant(self) -> bool:
        """The likeliest token is in every nucleus. So vLLM applies this behind the temperature, as it does top-p."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Follow the rows that come, go and move."""
        process_dict_updates(self._top_p, batch_update, lambda params, prompt, output: _top_p(params))

    def apply(self, logits: Tensor) -> Tensor:
        """Logits ``[rows, vocabulary]`` with those outside of each row's nucleus at minus infinity."""
        import torch

        if not self._top_p:
            return logits
        rows = sorted(self._top_p)
        top_p = torch.tensor([self._top_p[row] for row in rows])
        if len(rows) == len(logits):
            return within_nucleus(logits, top_p)
        logits[rows] = within_nucleus(logits[rows], top_p)
        return logits


def _top_p(params: SamplingParams) -> float | None:
    given = (params.extra_args or {}).get("nucleus")
    return given if given is not None and given < 1 else None


def within_nucleus(logits: Tensor, top_p: Tensor) -> Tensor:
    """Logits ``[rows, vocabulary]`` with minus infinity for tokens that likelier ones fill ``top_p [rows]`` without."""
    import torch

    picked, places = logits.topk(min(NUM_PICKED, logits.shape[-1]))
    chances = (picked - logits.logsumexp(-1, keepdim=True)).exp()
    is_within = chances.cumsum(-1) - chances < top_p[:, None]
    is_larger = is_within[:, -1]
    found = torch.full_like(logits, -torch.inf)
    found.scatter_(1, places, picked.masked_fill(~is_within, -torch.inf))
    if is_larger.any():
        found[is_larger] = apply_top_k_top_p(logits[is_larger], None, top_p[is_larger])
    return found
