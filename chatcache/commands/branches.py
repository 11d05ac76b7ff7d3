"""What the cache directory holds of sessions and of the branches of a tree.

A branch is a run of turns with all that follows it. What it owns is what nothing else reaches:
deleting its sessions frees exactly that. What it shares is held by other sessions as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chatcache import compose
from chatcache.config import Settings
from chatcache.frontend.shell_output import Narrator
from chatcache.token_ids import TokenIds

if TYPE_CHECKING:
    from chatcache.cache.views import SessionKV
    from chatcache.chat.service import ChatService
    from chatcache.commands.family import Run


def branch_kv(
    settings: Settings, service: ChatService, branches: Sequence[Sequence[str]]
) -> list[SessionKV | None]:
    """For each branch, given by the ids of its sessions; None when the cache cannot be read."""
    journals: list[tuple[str, TokenIds]] = []
    index_of: dict[str, int] = {}
    for session in service.list_sessions():
        journal = service.session_journal(session.session_id)
        if journal is not None:
            index_of[session.session_id] = len(journals)
            journals.append((journal.namespace_id, journal.ids))
    indexes = [[index_of[one] for one in branch if one in index_of] for branch in branches]
    try:
        return list(compose.open_inspector(settings).branch_kv(journals, indexes))
    except OSError as error:
        Narrator().warn(f"The cache cannot be read: {error}.")
        return [None] * len(branches)


def note_kv(settings: Settings, service: ChatService, runs: Sequence[Run]) -> None:
    """Note with each run what is held of the branch that begins with it."""
    found = list(_all(runs))
    held = branch_kv(settings, service, [run.session_ids for run in found])
    for run, kv in zip(found, held, strict=True):
        run.kv = kv_json(kv)


def kv_json(kv: SessionKV | None) -> dict[str, int] | None:
    if kv is None:
        return None
    return {
        "ram_tokens": kv.ram_tokens,
        "disk_tokens": kv.disk_tokens,
        "bytes_shared": kv.bytes_shared,
        "bytes_owned": kv.bytes_owned,
    }


def _all(runs: Sequence[Run]) -> Iterator[Run]:
    for run in runs:
        yield run
        yield from _all(run.children)
