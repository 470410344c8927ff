"""Control tokens of a text without cutting it into pieces, for tokenizers whose files prove that this finds all.

A fast tokenizer takes its added tokens out of a text, and gives the rest to its model. Where the text isn't normalized
and nothing that the model can put out is a control token, these are all there are: a copy without the model finds
them in a twentieth of the time. Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM2) is of this kind. A model that has a
control token among its pieces (often Unigram with ``</s>``), or a normalizer that writes one, is not.
"""

from __future__ import annotations

import json
from typing import Any

UNKNOWN = "\x00unknown"
"""What stands for all other text; no text that gets here has a NUL."""


class Finder:
    """The control tokens' ids in a text, as the whole tokenizer would give them."""

    def __init__(self, encoder: Any, ids: frozenset[int]) -> None:
        from tokenizers import Tokenizer, models

        added = encoder.get_added_tokens_decoder()
        self._copy = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
        self._copy.add_tokens(list(added.values()))
        self._known = {self._copy.token_to_id(added[token].content): token for token in ids}

    def sequence(self, text: str) -> tuple[int, ...]:
        """The ids of the control tokens, in their order."""
        found = self._copy.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return tuple([self._known[token] for token in found if token in self._known])


def finder_of(encoder: Any, ids: frozenset[int]) -> Finder | None:
    """A finder of these ids; None: only the whole tokenizer is sure to find them."""
    if encoder is None or not ids <= set(encoder.get_added_tokens_decoder()):
        return None
    spec = json.loads(encoder.to_str())
    if spec["normalizer"] is not None or not _is_byte_level(spec["pre_tokenizer"]):
        return None
    possible = _possible(spec["model"])
    return None if possible is None or possible & ids else Finder(encoder, ids)


def _is_byte_level(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether the model gets a character for each byte, so that a text has no more tokens than bytes."""
    if pre_tokenizer is None:
        return False
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    return {"ByteLevel"} <= {step["type"] for step in steps} <= {"ByteLevel", "Split", "Digits"}


def _possible(model: dict[str, Any]) -> set[int] | None:
    """The ids that a BPE model can put out, whatever the text: characters and what merges make; None: not known."""
    if model["type"] != "BPE" or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    vocab: dict[str, int] = model["vocab"]
    if model["ignore_merges"] or model["unk_token"] is not None or model["byte_fallback"]:
        return set(vocab.values())
    pairs = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
    made = {left + right for left, right in pairs}
    return {token for text, token in vocab.items() if len(text) == 1 or text in made}
