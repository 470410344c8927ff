"""A causal language model as scorer of groups: its forward gives token log-probabilities of a layout.

``as_scorer`` replaces the forward of a Hugging Face (or PEFT) model, which so stays what the libraries
know how to save, shard and load, and DeepSpeed's wrapper sees one ordinary forward, in which ZeRO-3
gathers the weights. The vocabulary logits are computed in chunks, so that those of a batch never stand
in memory at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trimtab.training.trie import Forest, build_forest

CHUNK = 512
PROBE_TOLERANCE = {"bfloat16": 0.1, "float32": 1e-3}

Form = Literal["trie", "grouped", "plain"]
Group = tuple[Sequence[int], Sequence[Sequence[int]]]
"""The ids of a prompt and of its responses."""


@dataclass(frozen=True)
class Layout:
    """Groups laid out for one forward pass.

    ``tensors`` are the arguments of ``score``; ``paths[g][i]`` are the places, in its result, of the tokens of
    response i of group g; ``num_tokens`` is what the pass costs (padding included).
    """

    tensors: dict[str, Any]
    paths: list[list[NDArray[np.int64]]]
    num_tokens: int

    def totals(self, log_probs: Tensor) -> list[list[float]]:
        """Summed log-probability of each response of each group, in nats, without gradient."""
        return [[float(log_probs[torch.from_numpy(path).to(log_probs.device)].double().sum()) for path in of_group]
                for of_group in self.paths]  # fmt: skip


def lay_out(groups: Sequence[Group], form: Form, device: torch.device) -> Layout:
    """Lay out groups as a forest, or as a padded batch of whole sequences (``grouped``, ``plain``)."""
    if form == "trie":
        return _forest_layout(build_forest(groups), device)
    return _batch_layout(groups, form, device)


def _forest_layout(forest: Forest, device: torch.device) -> Layout:
    ids = torch.from_numpy(forest.token_ids).to(device)
    tensors = {
        "input_ids": ids[None],
        "position_ids": torch.from_numpy(forest.positions).to(device)[None],
        "ends": torch.from_numpy(forest.ends).to(device),
        "parents": torch.from_numpy(forest.parents).to(device),
        "targets": ids[torch.from_numpy(forest.scored).to(device)],
    }
    return Layout(tensors, forest.paths, len(forest.token_ids))


def _batch_layout(groups: Sequence[Group], form: Form, device: torch.device) -> Layout:
    rows = [[*prompt, *response] for prompt, responses in groups for response in responses]
    length = max(map(len, rows))
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
    parents: list[NDArray[np.int64]] = []
    paths: list[list[NDArray[np.int64]]] = []
    scored = 0
    for prompt, responses in groups:
        paths.append([])
        for response in responses:
            start = len(parents) * length + len(prompt) - 1
            parents.append(np.arange(start, start + len(response)))
            paths[-1].append(np.arange(scored, scored + len(response)))
            scored += len(response)
    places = torch.from_numpy(np.concatenate(parents))
    tensors = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "parents": places.to(device),
               "targets": ids.flatten()[places + 1].to(device), "whole": form == "plain"}  # fmt: skip
    return Layout(tensors, paths, ids.numel())


def base_of(model: Any) -> Any:
    """The Hugging Face model below the adapters, where there are any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def as_scorer(model: Any) -> Any:
    """Give a model (in place) the forward ``score``, and its head one that gives log-probabilities in chunks."""
    chunked_head(model)
    model.forward = MethodType(score, model)
    return model


def chunked_head(model: Any) -> Any:
    """The model's head, which from now on takes targets too and then gives their log-probabilities."""
    head = base_of(model).get_output_embeddings()
    if "forward" not in vars(head):
        head.forward = MethodType(_head_forward, head)
    return head


def _head_forward(head: Any, hidden: Tensor, targets: Tensor | None = None) -> Tensor:
    """The head's own output, or the log-probabilities of targets, its logits made and dropped a chunk at a time.

    One call of the module however many chunks there are: under ZeRO-3 each call gathers the head's weights
    from all workers, who must make the same calls in the same order.
    """
    plain = partial(type(head).forward, head)
    if targets is None:
        return plain(hidden)
    pieces = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.cat([_chunk(plain, states, wanted) for states, wanted in pieces])


def score(
    model: Any, input_ids: Tensor, parents: Tensor, targets: Tensor, position_ids: Tensor | None = None,
    ends: Tensor | None = None, attention_mask: Tensor | None = None, whole: bool = False,
) -> Tensor:  # fmt: skip
    """Log-probabilities of the M scored tokens of a layout.

    Args:
        input_ids: ``[1, T]`` of a forest, or ``[R, L]`` of R padded sequences.
        parents: place, in the flattened ``input_ids``, whose output predicts the target, ``[M]``.
        targets: token ids, ``[M]``.
        position_ids: depth of each node of a forest, ``[1, T]``.
        ends: one behind the subtree of each node of a forest, ``[T]``.
        attention_mask: ``[R, L]``, 0 where a sequence is padded.
        whole: take the logits from the architecture's own forward, with whatever it does behind the head.

    Returns:
        float32, ``[M]``, in nats.
    """
    base = base_of(model)
    if whole:
        output = type(base).forward(base, input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return _log_probs(_as_they_are, output.logits.flatten(0, 1)[parents], targets)
    mask = attention_mask if ends is None else _tree_mask(ends, base.config._attn_implementation)
    hidden = base.get_decoder()(
        input_ids=input_ids, position_ids=position_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state.flatten(0, 1)[parents]
    return chunked_head(model)(hidden, targets)


def _tree_mask(ends: Tensor, attention: str) -> Any:
    """Who attends to whom in a forest: node j is seen by i when ``j <= i < ends[j]``."""
    if attention == "flex_attention":
        return block_mask(ends)
    node = torch.arange(len(ends), device=ends.device)
    return ((node <= node[:, None]) & (node[:, None] < ends))[None, None]


def block_mask(ends: Tensor) -> Any:
    """FlexAttention's block mask of a forest; blocks in which no node sees another are never computed."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < ends[key])

    return create_block_mask(sees, None, None, len(ends), len(ends), device=str(ends.device))


def _chunk(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return checkpoint(_log_probs, head, hidden, targets, use_reentrant=False)
    return _log_probs(head, hidden, targets)


def _as_they_are(logits: Tensor) -> Tensor:
    return logits


def _log_probs(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    picked: Tensor = _Picked.apply(head(hidden), targets)
    return picked


class _Picked(torch.autograd.Function):
    """Log-probabilities of targets in float32, ``[M, V]`` logits to ``[M]``, with a backward pass that works in place.

    What autograd makes of ``gather`` and ``logsumexp`` walks through several float32 copies of the logits; on CPU
    that took more time than the head's own products. The greatest logit is taken off first, in both directions:
    in float32 a softmax that is made from ``logsumexp`` itself has a mass that is off by up to 1e-6.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        top = logits.amax(-1, keepdim=True).float()
        below = logits.float() - top
        wanted = below.gather(-1, targets[:, None]).squeeze(-1)
        mass = below.exp_().sum(-1)
        ctx.save_for_backward(logits, top, mass, targets)
        return wanted - mass.log()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """d log p(target) / d logits = one at the target, less the softmax."""
        logits, top, mass, targets = ctx.saved_tensors
        (grad,) = grads
        found = logits.to(torch.float32, copy=True).sub_(top).exp_().mul_((-grad / mass)[:, None])
        found[torch.arange(len(targets), device=targets.device), targets] += grad
        return found.to(logits.dtype), None


def probe(
    scorer: Any, groups: Sequence[Group], dtype: str, wanted: str, device: torch.device
) -> tuple[Form, dict[str, float]]:
    """The first form that scores real groups as plain sequences do, and the errors seen, in nats a token.

    An architecture that ignores a custom mask or positions (ALiBi, linear attention, a sliding window shorter
    than a response) fails as a trie and is computed as whole sequences; one that does something behind its
    head, through its own forward. The error is the worst response's mean over its last half, since a window
    breaks what is deep.

    Args:
        scorer: a model made by ``as_scorer``, or DeepSpeed's engine around one (then all workers call this).
        groups: those that ask most of a form: the largest trie and the longest sequence.
    """
    errors: dict[str, float] = {}
    forms: tuple[Form, ...] = ("grouped", "plain") if wanted == "grouped" else ("trie", "grouped", "plain")
    plain = [[_scored(scorer, (prompt, [response]), "plain", device)[0] for response in responses]
             for prompt, responses in groups]  # fmt: skip
    if not all(torch.isfinite(own).all() for responses in plain for own in responses):
        raise ValueError("model: its log-probabilities are no numbers; its weights are broken")
    for form in forms:
        try:
            found = [_scored(scorer, group, form, device) for group in groups]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            if form == "plain":
                raise
            errors[form] = float("inf")
            continue
        pairs = [pair for own, right in zip(found, plain, strict=True) for pair in zip(own, right, strict=True)]
        errors[form] = max(float((own - right)[len(own) // 2 :].abs().mean()) for own, right in pairs)
        if errors[form] < PROBE_TOLERANCE[dtype]:
            return form, errors
    raise ValueError(f"model: a padded batch scores otherwise than single sequences (errors {errors} nats a token)")


def _scored(scorer: Any, group: Group, form: Form, device: torch.device) -> list[Tensor]:
    """Token log-probabilities of each response of a group, without gradient."""
    layout = lay_out([group], form, device)
    with torch.no_grad():
        log_probs = scorer(**layout.tensors)
    return [log_probs[torch.from_numpy(path).to(device)] for path in layout.paths[0]]
