"""Where the last message of a prompt ends and the generation prompt begins.

Templates often write the generation prompt differently in history (`<think>` opened for the model,
but stripped later). What stands in front of it stays, so a checkpoint is taken there.
"""

from __future__ import annotations

from chatcache.backends.base import ChatMessage
from chatcache.backends.local.prompt.template import ChatTemplate
from chatcache.errors import UnavailableError
from chatcache.token_ids import TokenIds


class GenerationTail:
    """The generation prompts of one template, as ids."""

    def __init__(self, template: ChatTemplate):
        self._template = template
        self._tails: dict[bool | None, TokenIds] = {}

    def start(self, ids: TokenIds, think: bool | None) -> int:
        """How many leading ids of a prompt come before its generation prompt.

        All of them, where the prompt does not end with one that is known."""
        tail = self._tail(think)
        is_tail = bool(tail) and ids[-len(tail) :] == tail
        return len(ids) - len(tail) if is_tail else len(ids)

    def _tail(self, think: bool | None) -> TokenIds:
        if think not in self._tails:
            self._tails[think] = self._render(think)
        return self._tails[think]

    def _render(self, think: bool | None) -> TokenIds:
        messages = [ChatMessage("user", "u")]
        try:
            asked = self._template.render(messages, think=think)
            told = self._template.render(messages, think=think, add_generation_prompt=False)
        except UnavailableError:
            return TokenIds()
        pairs = enumerate(zip(asked.text, told.text, strict=False))
        shared = next((at for at, (left, right) in pairs if left != right), len(told.text))
        return TokenIds(self._template.codec.encode(asked.text[shared:], asked.marker))
