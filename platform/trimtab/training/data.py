"""Ranked groups as token ids, cut to the limits so that each stays a valid group."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.chat import Chat
from trimtab.schemas import RankedGroup, read_rows


@dataclass(frozen=True)
class TokenizedGroup:
    """A group's ids. ``learn_from[i]`` is the place in response i behind its given, harmful start."""

    id: str
    source: str
    prompt: list[int]
    responses: list[list[int]]
    learn_from: list[int]
    num_demonstrations: int


@dataclass
class Truncation:
    """What the limits did to the data."""

    truncated_responses: int = 0
    dropped_groups: int = 0


def read_groups(folders: list[Path]) -> list[RankedGroup]:
    """The groups of several synthesis outputs, each id once."""
    groups = {group.id: group for folder in folders for group in read_rows(folder / "groups.parquet", RankedGroup)}
    return list(groups.values())


def tokenize(groups: list[RankedGroup], chat: Chat, max_length: int) -> tuple[list[TokenizedGroup], Truncation]:
    """Token ids of the groups; a response is cut at ``max_length`` tokens with its prompt.

    A group whose prompt leaves no room, or in which two responses became equal, is dropped and counted.
    """
    cut = Truncation()
    made = []
    for group in groups:
        one = _tokenize_one(group, chat, max_length, cut)
        if one is None:
            cut.dropped_groups += 1
        else:
            made.append(one)
    return made, cut


def _tokenize_one(group: RankedGroup, chat: Chat, max_length: int, cut: Truncation) -> TokenizedGroup | None:
    prompt = chat.prompt_ids(group.system, group.prompt)
    room = max_length - len(prompt)
    responses, learn_from = [], []
    for response in group.responses:
        ids = [*chat.encode(response.text), *chat.end_ids]
        given = chat.encode(response.text[: response.num_prefill_chars])
        cut.truncated_responses += len(ids) > room
        responses.append(ids[: max(room, 0)])
        learn_from.append(_shared_length(given, ids[: max(room, 0)]))
    if room <= 0 or len({tuple(ids) for ids in responses}) < len(responses):
        return None
    return TokenizedGroup(
        id=group.id, source=group.source, prompt=prompt, responses=responses, learn_from=learn_from,
        num_demonstrations=group.num_demonstrations,
    )  # fmt: skip


def _shared_length(left: list[int], right: list[int]) -> int:
    """How many leading tokens two sequences share."""
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
