"""What the cache directory holds of sessions and of the branches of a tree.

A branch is a run of turns with all that follows it. What it owns is what nothing else reaches:
deleting its sessions frees exactly that. What it shares is held by other sessions as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chatcache import compose
from chatcache.config import Settings
from chatcache.frontend.shell_output import Narrator
from chatcache.token_ids import TokenIds

if TYPE_CHECKING:
    from chatcache.cache.views import SessionKV
    from chatcache.chat.service import ChatService


def held_kv(
    settings: Settings, service: ChatService, branches: Sequence[Sequence[str]]
) -> list[dict[str, int] | None]:
    """For each branch, given by the ids of its sessions, what is held of it as JSON has it; None
    when the cache cannot be read."""
    journals: list[tuple[str, TokenIds]] = []
    index_of: dict[str, int] = {}
    for session in service.list_sessions():
        journal = service.session_journal(session.session_id)
        if journal is not None:
            index_of[session.session_id] = len(journals)
            journals.append((journal.namespace_id, journal.ids))
    indexes = [
        [index_of[session_id] for session_id in branch if session_id in index_of]
        for branch in branches
    ]
    try:
        held = compose.open_inspector(settings).branch_kv(journals, indexes)
    except OSError as error:
        Narrator().warn(f"The cache cannot be read: {error}.")
        return [None] * len(branches)
    return [_as_json(kv) for kv in held]


def _as_json(kv: SessionKV) -> dict[str, int]:
    return {
        "ram_tokens": kv.ram_tokens,
        "disk_tokens": kv.disk_tokens,
        "bytes_shared": kv.bytes_shared,
        "bytes_owned": kv.bytes_owned,
    }
