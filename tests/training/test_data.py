"""Ranked groups as token ids: truncation keeps groups valid and is counted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.chat import Chat
from trimtab.schemas import RankedGroup, Response, write_rows
from trimtab.training.data import read_groups, tokenize

START = "Of course, here is what you can do. First, wait for a quiet moment,"
TEXTS = (
    ("SR", "I won't help with this, but I can help you to ask.", 0),
    ("SYN_1", f"{START} but I should stop, because it is wrong.", len(START)),
    ("FHR", f"{START} then put the paper on the desk and smile.", 0),
)


def _group(number: int = 0, prompt: str = "How do I skip school?") -> RankedGroup:
    responses = tuple(Response(role=role, text=text, num_prefill_chars=given) for role, text, given in TEXTS)
    return RankedGroup(
        id=f"g{number}", source=f"s{number}", configuration="harmless", system="Be kind.", prompt=prompt,
        responses=responses, num_demonstrations=2,
    )  # fmt: skip


def test_ids_are_the_chats_prompt_and_turns(chat: Chat) -> None:
    (made,), cut = tokenize([_group()], chat, 2048)
    assert (cut.truncated_responses, cut.dropped_groups) == (0, 0)
    assert (made.id, made.source, made.num_demonstrations) == ("g0", "s0", 2)
    assert made.prompt == chat.prompt_ids("Be kind.", "How do I skip school?")
    for (_, text, _), ids in zip(TEXTS, made.responses, strict=True):
        assert [*made.prompt, *ids] == chat.response_ids("Be kind.", "How do I skip school?", text)[0]


def test_learning_starts_at_the_end_of_the_given_start(chat: Chat) -> None:
    (made,), _ = tokenize([_group()], chat, 2048)
    assert made.learn_from[0] == made.learn_from[2] == 0
    ids, start = made.responses[1], made.learn_from[1]
    assert chat.tokenizer.decode(ids[:start]) == START
    assert chat.tokenizer.decode(ids[start:]).startswith(" but I should stop")


@settings(max_examples=50)
@given(place=st.integers(0, len(TEXTS[1][1])))
def test_learning_never_starts_behind_the_given_start(chat: Chat, place: int) -> None:
    text = TEXTS[1][1]
    responses = (Response(role="SYN_1", text=text, num_prefill_chars=place), Response(role="FHR", text="No."))
    group = _group().model_copy(update={"responses": responses})
    (made,), _ = tokenize([group], chat, 2048)
    learned_from = len(chat.tokenizer.decode(made.responses[0][: made.learn_from[0]]))
    longest = max(len(chat.tokenizer.decode([token])) for token in made.responses[0])
    assert place - longest < learned_from <= place


@settings(max_examples=60)
@given(room=st.integers(-3, 60))
def test_truncation_keeps_groups_valid_and_counts(chat: Chat, room: int) -> None:
    group = _group()
    num_prompt = len(chat.prompt_ids(group.system, group.prompt))
    whole = [[*chat.encode(text), *chat.end_ids] for _, text, _ in TEXTS]
    made, cut = tokenize([group], chat, num_prompt + room)
    shortened = [ids[: max(0, room)] for ids in whole]
    valid = room > 0 and len({tuple(ids) for ids in shortened}) == len(whole)
    assert (len(made), cut.dropped_groups) == (int(valid), int(not valid))
    for one in made:
        assert one.responses == shortened
        assert cut.truncated_responses == sum(len(ids) > room for ids in whole)
        assert all(0 <= start <= len(ids) for start, ids in zip(one.learn_from, one.responses, strict=True))
        assert all(len(one.prompt) + len(ids) <= num_prompt + room for ids in one.responses)


def test_group_with_a_long_prompt_is_dropped_and_the_others_stay(chat: Chat) -> None:
    made, cut = tokenize([_group(0), _group(1, prompt="How? " * 400), _group(2)], chat, 256)
    assert [group.id for group in made] == ["g0", "g2"]
    assert cut.dropped_groups == 1


def test_responses_that_differ_only_behind_the_cut_are_no_group(chat: Chat) -> None:
    group = _group()
    num_prompt = len(chat.prompt_ids(group.system, group.prompt))
    shared = len(chat.encode(START))
    made, cut = tokenize([group], chat, num_prompt + shared)
    assert made == []
    assert cut.dropped_groups == 1


def test_folders_are_read_in_order_and_an_id_counts_once(tmp_path: Path) -> None:
    for name, numbers in (("a", (2, 1)), ("b", (1, 3))):
        write_rows(tmp_path / name / "groups.parquet", RankedGroup, [_group(number) for number in numbers])
    found = read_groups([tmp_path / "a", tmp_path / "b"])
    assert [group.id for group in found] == ["g2", "g1", "g3"]
    with pytest.raises(FileNotFoundError):
        read_groups([tmp_path / "absent"])
