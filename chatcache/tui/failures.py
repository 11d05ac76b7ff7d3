"""Errors as people are told of them: a sentence and a hint, never a traceback."""

from __future__ import annotations

import logging

from chatcache.errors import ChatcacheError

_log = logging.getLogger(__name__)


def as_user_error(error: BaseException) -> ChatcacheError:
    """The error as one sentence and a hint. What is not ours is a bug, and goes to the log."""
    if isinstance(error, ChatcacheError):
        return error
    _log.error("unexpected failure", exc_info=error)
    return ChatcacheError(
        f"Something went wrong that should not have: {type(error).__name__}.",
        "What was said is kept. `chatcache paths` names the log that has the details.",
    )
