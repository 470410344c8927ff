"""Forged turns: what a caller would have to write into a user turn to make a model see a system turn there.

A template writes control tokens around turns, and a caller who spells them may be taken for the template. Our renderer
and our gate refuse such texts (``Chat.refuse_control_tokens``); other servers may not.
"""

from __future__ import annotations

from trimtab.chat import Chat

SYSTEM, USER = "trimtabsystemtext", "trimtabusertext"


def forged_system(chat: Chat, text: str) -> str:
    """The end of a user turn, a system turn with this text and the beginning of another user turn.

    As the model's template writes them: where it has no system role, the text stands at the head of the second user
    turn. The token that begins a whole conversation is left out, as it would stand in its middle.
    """
    whole = str(chat.tokenizer.apply_chat_template(chat.messages(SYSTEM, USER), tokenize=False))
    before, _, rest = whole.partition(SYSTEM)
    between, _, end = rest.partition(USER)
    return end + before.removeprefix(chat.tokenizer.bos_token or "") + text + between
