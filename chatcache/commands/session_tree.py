"""`chatcache sessions tree`: a session and its forks as runs of turns, drawn or as JSON, with what
the cache directory holds of them.

A branch is a run of turns with all that follows it. What it owns is what nothing else reaches:
deleting its sessions frees exactly that. What it shares is held by other sessions as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from chatcache import compose
from chatcache.chat.branches import Branch
from chatcache.chat.service import ChatService
from chatcache.config import Settings
from chatcache.formatting import shorten
from chatcache.frontend.shell_output import Narrator
from chatcache.token_ids import TokenIds

TEXT_WIDTH = 48


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
    return [asdict(kv) for kv in held]


def tree_json(
    roots: Sequence[Branch], settings: Settings, service: ChatService
) -> list[dict[str, Any]]:
    branches = [branch for root in roots for branch in root.walk()]
    # The sessions that end in the run or in what follows it.
    ends = [
        [session.session_id for run in branch.walk() for session in run.sessions]
        for branch in branches
    ]
    kept = zip(branches, held_kv(settings, service, ends), strict=True)
    held = {branch.node_id: kv for branch, kv in kept}
    return [_branch_json(root, held) for root in roots]


def _branch_json(branch: Branch, held: Mapping[str, dict[str, int] | None]) -> dict[str, Any]:
    """`held`: what is kept of each branch, by the id of its last message."""
    return {
        "first_turn": branch.first_turn,
        "last_turn": branch.last_turn,
        "text": shorten(branch.text, TEXT_WIDTH),
        "tokens": branch.num_tokens,
        "node_id": branch.node_id,
        "kv": held[branch.node_id],
        "sessions": [
            {"session_id": session.session_id, "session": session.name}
            for session in reversed(branch.sessions)
        ],
        "children": [_branch_json(child, held) for child in branch.children],
    }


def draw_tree(roots: Sequence[Branch], session_id: str) -> str:
    """The tree as lines; the session that was asked for is marked with a star."""
    return "\n".join(line for root in roots for line in _lines(root, session_id, "", ""))


def _lines(branch: Branch, session_id: str, first: str, rest: str) -> Iterator[str]:
    names = [
        f"{shorten(session.name, TEXT_WIDTH)}{' *' if session.session_id == session_id else ''}"
        for session in reversed(branch.sessions)
    ]
    turns = f"turn {branch.first_turn}"
    if branch.last_turn != branch.first_turn:
        turns = f"turns {branch.first_turn}-{branch.last_turn}"
    ends = f"  [{', '.join(names)}]" if names else ""
    yield f"{first}{turns}  {shorten(branch.text, TEXT_WIDTH)}{ends}"
    for index, child in enumerate(branch.children):
        is_last = index == len(branch.children) - 1
        corner, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield from _lines(child, session_id, f"{rest}{corner}", f"{rest}{below}")
