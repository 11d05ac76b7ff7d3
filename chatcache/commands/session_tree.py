"""`chatcache sessions tree`: a session and its forks as runs of turns, drawn or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chatcache.chat.branches import Branch
from chatcache.formatting import shorten

TEXT_WIDTH = 48


def session_ids(branch: Branch) -> list[str]:
    """The sessions that end in the run or in what follows it."""
    return [session.session_id for run in branch.walk() for session in run.sessions]


def tree_json(branch: Branch, held: Mapping[str, dict[str, int] | None]) -> dict[str, Any]:
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
        "children": [tree_json(child, held) for child in branch.children],
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
