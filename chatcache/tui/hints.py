"""Keys with a word each, for the status line and the welcome."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chatcache.frontend.registry import key_words
from chatcache.tui.status import BackendStatus

_ON_A_MESSAGE = ("edit", "regenerate", "fork", "copy", "inspect", "delete")
_WORDS = {
    "help": "help",
    "fork": "fork",
    "sessions": "chats",
    "new": "new",
    "panel": "cache",
    "model": "models",
    "message.edit": "edit",
    "message.regenerate": "again",
    "message.fork": "fork",
    "message.copy": "copy",
    "message.inspect": "figures",
    "message.delete": "delete",
}


def hints(binding_ids: Iterable[str], keymap: Mapping[str, str]) -> list[tuple[str, str]]:
    """The first key of each binding, as it is bound now; those without a key are left out."""
    return [
        (keys[0], _WORDS.get(binding_id, binding_id))
        for binding_id in binding_ids
        if (keys := key_words(binding_id, keymap))
    ]


def status_ids(
    status: BackendStatus, *, is_narrow: bool, is_walking: bool, is_empty: bool, is_working: bool
) -> list[str]:
    """What is most useful now; fewer where there is little room, or much to say beside them."""
    if is_walking:
        return [f"message.{action}" for action in _ON_A_MESSAGE]
    is_told = is_working or status.loading is not None or status.is_restarting
    if is_narrow and is_told:
        return []
    if status.failure is not None and not status.is_restarting:
        return ["model", "help"]
    return ["help", "model" if is_empty else "fork", "sessions", "panel"]
