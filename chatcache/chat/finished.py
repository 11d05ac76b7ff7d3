"""Which part of a draft can be read ahead: its finished words. Owns no state."""

from __future__ import annotations

from chatcache.chat.conversation import replace_unstorable

MAX_DRAFT_CHARACTERS = 200_000


def stable_part(draft: str) -> str:
    """The finished words of a draft, as they would be sent; "" when there are none.

    A word is finished once white space follows it. White space at the end is left out: templates
    trim it, and more of it may come.
    """
    text = draft.lstrip("\n")
    if len(text) > MAX_DRAFT_CHARACTERS:
        return ""
    finished = len(text.rstrip())
    if finished == len(text):
        finished = next((at for at in reversed(range(len(text))) if text[at].isspace()), 0)
    return replace_unstorable(text[:finished].rstrip())
