"""What a training needs on each GPU: model states by ZeRO stage, activations by trie tokens, and which cards hold it.

Model states: Rajbhandari et al., "ZeRO" (arXiv 1910.02054), section 3.1 and figure 1: mixed-precision Adam keeps
2 bytes of weights, 2 of gradients and 12 of optimizer states (master weights, momentum, variance) a parameter; stage 1
shares the optimizer's among N GPUs, stage 2 the gradients as well, stage 3 the weights as well. DeepSpeed further makes
a float32 copy of the gradients (4 bytes a parameter) for the step, as its own estimators count; in stage 3 a sub-group
at a time.

Activations: Korthikanti et al. (arXiv 2205.05198), equation 1, without dropout and stored scores, for a gated MLP
and grouped keys. A stated estimate: what a kernel keeps differs.
"""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.operations.sizing.config import TrainingNumbers
from trimtab.operations.sizing.shapes import Shape

GIB = 2**30
STAGES = (0, 1, 2, 3)
HEAD_CHUNK = 512
"""Rows of the vocabulary's logits that stand in memory at once (``training.policy.CHUNK``)."""
LOGIT_COPIES = 3
"""Of a chunk's logits in float32: the logits, their log-softmax and its gradient."""


@dataclass(frozen=True)
class Fit:
    """Bytes on each of N GPUs."""

    stage: int
    gpus: int
    adapters: bool
    checkpointing: bool
    states: float
    """Weights, gradients and optimizer states: the ZeRO paper's formula."""
    working: float
    """DeepSpeed's float32 gradients, buckets and gathered weights."""
    activations: float
    card_gb: float | None
    """Smallest card that holds it; None: none of them."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.states + self.working + self.activations


def model_states(parameters: float, trainable: float, stage: int, gpus: int, weight_bytes: int = 2) -> float:
    """Bytes of weights, gradients and optimizer states on each of N GPUs.

    Args:
        parameters: all of the model's, adapters included.
        trainable: those that have gradients and optimizer states.
        weight_bytes: 2 in mixed precision; 4 in float32, where stage 0 alone needs no master copy of the weights.
    """
    weights = weight_bytes * parameters
    gradients = weight_bytes * trainable
    optimizer = (8 if weight_bytes == 4 and stage == 0 else 12) * trainable
    return (
        weights / (gpus if stage >= 3 else 1)
        + gradients / (gpus if stage >= 2 else 1)
        + optimizer / (gpus if stage >= 1 else 1)
    )


def working_memory(shape: Shape, trainable: float, stage: int, gpus: int, numbers: TrainingNumbers) -> float:
    """Bytes that DeepSpeed takes besides: the step's float32 gradients, two buckets, what stage 3 gathers."""
    share = trainable / (gpus if stage >= 1 else 1)
    width = _width(numbers)
    copy = 4 * (min(share, numbers.sub_group_elements) if stage == 3 else share) if width == 2 else 0
    buckets = 2 * width * min(numbers.bucket_elements, trainable) if gpus > 1 else 0
    gathered = 0.0
    if stage == 3 and gpus > 1:
        largest = shape.largest_module
        live = min(shape.num_parameters, max(numbers.live_parameters, largest))
        gathered = width * (live + (largest if trainable >= shape.num_parameters else 0))
    return copy + buckets + gathered


def activations(shape: Shape, numbers: TrainingNumbers, checkpointing: bool) -> float:
    """Bytes of the activations of one pass of ``trie_tokens_per_pass`` tokens."""
    tokens = max(numbers.trie_tokens_per_pass, numbers.trie_tokens)
    width = _width(numbers)
    layer = width * tokens * _values_a_layer(shape)
    kept = width * tokens * shape.hidden
    body = shape.layers * kept + layer if checkpointing else shape.layers * layer
    logits = LOGIT_COPIES * 4 * HEAD_CHUNK * shape.vocabulary
    return float(body + logits)


def _values_a_layer(shape: Shape) -> int:
    """Values that one token leaves for the backward pass of a layer.

    Two norms' inputs and outputs (4 h), queries, keys, values and the mixed values (2 q + 2 kv), and of the MLP the
    gate, its activation, the other branch and their product (4 i).
    """
    return 4 * shape.hidden + 2 * shape.attention_width + 2 * shape.kv_width + 4 * shape.intermediate


def _width(numbers: TrainingNumbers) -> int:
    return 2 if numbers.dtype == "bfloat16" else 4


def fit(shape: Shape, numbers: TrainingNumbers, stage: int, gpus: int, adapters: bool, checkpointing: bool) -> Fit:
    """What one way of training needs on each GPU, and the smallest card for it."""
    added = shape.lora_parameters(numbers.lora_r) if adapters else 0
    trainable = added or shape.num_parameters
    states = model_states(shape.num_parameters + added, trainable, stage, gpus, _width(numbers))
    working = working_memory(shape, trainable, stage, gpus, numbers)
    held = activations(shape, numbers, checkpointing)
    card = smallest_card(states + working + held, numbers)
    return Fit(stage, gpus, adapters, checkpointing, states, working, held, card)


def smallest_card(needed: float, numbers: TrainingNumbers) -> float | None:
    """The smallest of the cards that holds so many bytes besides its reserve."""
    return next((card for card in sorted(numbers.cards_gb) if needed <= card * 1e9 * (1 - numbers.reserve_share)), None)


def fits(shape: Shape, numbers: TrainingNumbers, gpus: tuple[int, ...]) -> list[Fit]:
    """Every stage with and without adapters and checkpointing, on each number of GPUs."""
    return [
        fit(shape, numbers, stage, count, adapters, checkpointing)
        for adapters in (False, True)
        for checkpointing in (True, False)
        for stage in STAGES
        for count in gpus
    ]


def gpus_of_an_engine(shape: Shape, card_gb: float, numbers: TrainingNumbers) -> int:
    """GPUs that hold the weights of one engine with a fifth of the card left for its KV cache: a power of two."""
    room = card_gb * 1e9 * (1 - numbers.reserve_share - 0.2)
    count = 1
    while 2 * shape.num_parameters > room * count:
        count *= 2
    return count
