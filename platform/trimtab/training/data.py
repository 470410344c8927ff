"""From ranked groups to token ids: reading a mixture, splitting it by prompt, cutting each group to the limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from trimtab.chat import Chat
from trimtab.config import InputError
from trimtab.files import AnyPath, parquet_source
from trimtab.schemas import SCHEMAS, RankedGroup, group_files, reason_of
from trimtab.sources import hold_out
from trimtab.stores import store_errors_are_input_errors
from trimtab.training.config import DataPart, TrainingConfig, ValidationConfig
from trimtab.training.plan import Item
from trimtab.training.store import TokenizedGroup
from trimtab.training.trie import num_nodes

MAX_SYSTEMS = 100


@dataclass
class Prepared:
    """What tokenizing left: the items of the plan, and what the limits did."""

    train: list[Item] = field(default_factory=list)
    validation: list[Item] = field(default_factory=list)
    systems: dict[str, list[str]] = field(default_factory=dict)
    """The distinct system prompts of each configuration, at most ``MAX_SYSTEMS`` of them."""
    probes: dict[str, list[Any]] = field(default_factory=dict)
    """The groups that ask most of a form, as (size, id): the largest ``trie`` and the longest ``sequence``."""
    truncated_responses: int = 0
    dropped_groups: int = 0
    """Groups left out because no valid one stayed within the limits, or for control tokens."""
    control_token_groups: int = 0
    """Those of the dropped that hold a control token of the model: a tokenizer would make turns of it."""


def read_groups(part: DataPart) -> Iterator[RankedGroup]:
    """The groups of one part, a batch at a time.

    Raises:
        InputError: a group that is none (fewer than two responses, equal or empty ones), by its id.
    """
    with store_errors_are_input_errors("data", part.path):
        files = group_files(part.path)
    if not files:
        raise InputError("data", part.path, "holds no groups", "give the output of trimtab synthesize")
    for path in files:
        for row in _rows(path):
            try:
                group = RankedGroup.model_validate(row)
            except ValueError as error:
                raise InputError("data", path, f"group {row['id']}: {reason_of(error)}", "make it again") from error
            if part.configurations is None or group.configuration in part.configurations:
                yield group


def _rows(path: AnyPath) -> Iterator[dict[str, Any]]:
    with store_errors_are_input_errors("data", path):
        source = parquet_source(path)
    for batch in pq.ParquetFile(source).iter_batches(batch_size=512, columns=SCHEMAS[RankedGroup].names):
        yield from batch.to_pylist()


def held_out_prompts(config: TrainingConfig) -> set[str]:
    """The prompts kept for validation, near-duplicates of one another on the same side."""
    split: ValidationConfig = config.validation
    if not split.share:
        return set()
    prompts = sorted({group.prompt for part in config.parts for group in read_groups(part)})
    count = max(1, round(split.share * len(prompts)))
    held = {prompts[place] for place in hold_out(prompts, count, split.seed)}
    if len(held) == len(prompts):
        remedy = "lower it or give more prompts"
        raise InputError("validation.share", split.share, "leaves no prompt for training", remedy)
    return held


def tokenized(config: TrainingConfig, chat: Chat, prepared: Prepared) -> Iterator[TokenizedGroup]:
    """Token ids of the mixture's groups, each id once; fills ``prepared`` on the way.

    A response is cut at ``max_length`` tokens with its prompt. A group whose prompt leaves no room, in which
    two responses became equal, or whose texts hold a control token of the model, is dropped and counted.
    """
    held = held_out_prompts(config)
    seen: set[str] = set()
    for part in config.parts:
        for group in read_groups(part):
            if group.id in seen:
                continue
            seen.add(group.id)
            made = tokenize(group, chat, config.max_length, prepared)
            if made is None:
                prepared.dropped_groups += 1
                continue
            side = prepared.validation if group.prompt in held else prepared.train
            side.append(Item(group.id, group.source, num_nodes(made.prompt, made.responses), part.weight))
            _remember(prepared, group, made, side[-1].num_tokens)
            yield made


def _remember(prepared: Prepared, group: RankedGroup, made: TokenizedGroup, num_tokens: int) -> None:
    systems = prepared.systems.setdefault(group.configuration, [])
    if (system := group.system or "") not in systems and len(systems) < MAX_SYSTEMS:
        systems.append(system)
    sizes = {"trie": num_tokens, "sequence": len(made.prompt) + max(map(len, made.responses))}
    for name, size in sizes.items():
        prepared.probes[name] = max(prepared.probes.get(name, [0, ""]), [size, group.id])


def tokenize(group: RankedGroup, chat: Chat, max_length: int, prepared: Prepared) -> TokenizedGroup | None:
    """Token ids of one group within ``max_length``; None where no valid group is left, or its texts forge turns."""
    texts = [chat.encode(response.text) for response in group.responses]
    given_to_us = (*texts, chat.encode(group.prompt), chat.encode(group.system or ""))
    if not all(chat.control_ids.isdisjoint(ids) for ids in given_to_us):
        prepared.control_token_groups += 1
        return None
    prompt = chat.prompt_ids(group.system, group.prompt)
    room = max_length - len(prompt)
    responses, learn_from = [], []
    for response, text in zip(group.responses, texts, strict=True):
        ids = [*text, *chat.end_ids]
        given = chat.encode(response.text[: response.num_prefill_chars])
        prepared.truncated_responses += len(ids) > room
        responses.append(ids[: max(room, 0)])
        learn_from.append(_shared_length(given, ids[: max(room, 0)]))
    if room <= 0 or len({tuple(ids) for ids in responses}) < len(responses):
        return None
    return TokenizedGroup(group.id, prompt, responses, learn_from, group.num_demonstrations)


def _shared_length(left: list[int], right: list[int]) -> int:
    """How many leading tokens two sequences share."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
