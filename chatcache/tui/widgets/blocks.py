"""From stored messages to the widgets that show them."""

from __future__ import annotations

from chatcache.chat.figures import decode
from chatcache.chat.views import TranscriptMessage
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.message import MessageBlock, SystemMessage, UserMessage


def make_block(message: TranscriptMessage, now: float) -> MessageBlock:
    """The widget for a stored message."""
    block: MessageBlock
    if message.role == "system":
        block = SystemMessage(message.text, created_at=message.created_at, now=now)
    elif message.role == "user":
        block = UserMessage(message.turn, message.text, created_at=message.created_at, now=now)
    else:
        block = AnswerMessage(
            message.turn,
            message.text,
            model=message.model or "",
            created_at=message.created_at,
            now=now,
            reasoning=message.reasoning or "",
            figures=decode(message.result_json, message.finish_reason),
            finish_reason=message.finish_reason,
        )
    block.adopt(message)
    return block
