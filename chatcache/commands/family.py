"""The tree of a session and its forks, as runs of turns between the places where they part.

Owns the merging of paths and the drawing. The paths come from the chat service.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatcache.chat.branches import family
from chatcache.chat.views import SessionSummary, TranscriptMessage
from chatcache.formatting import shorten

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

TEXT_WIDTH = 48


@dataclass(slots=True)
class Run:
    """Messages that follow one another without a fork. `sessions` end with its last message."""

    messages: list[TranscriptMessage]
    sessions: list[SessionSummary] = field(default_factory=list)
    children: list[Run] = field(default_factory=list)
    kv: dict[str, int] | None = None

    @property
    def session_ids(self) -> list[str]:
        """The sessions that end in the run or in what follows it."""
        below = [one for child in self.children for one in child.session_ids]
        return [*(one.session_id for one in self.sessions), *below]

    @property
    def first_turn(self) -> int:
        return self.messages[0].turn

    @property
    def last_turn(self) -> int:
        return self.messages[-1].turn

    @property
    def text(self) -> str:
        """The first words of the run's first user message, or of what there is."""
        spoken = [message for message in self.messages if message.role == "user"]
        return (spoken or self.messages)[0].text

    def as_json(self) -> dict[str, Any]:
        return {
            "first_turn": self.first_turn,
            "last_turn": self.last_turn,
            "text": shorten(self.text, TEXT_WIDTH),
            "tokens": self.messages[-1].num_tokens,
            "node_id": self.messages[-1].node_id,
            "kv": self.kv,
            "sessions": [
                {"session_id": one.session_id, "session": one.name} for one in self.sessions
            ],
            "children": [child.as_json() for child in self.children],
        }


def family_tree(service: ChatService, session: SessionSummary) -> list[Run]:
    """The runs of a session and of all sessions related to it by forks, roots first."""
    roots: list[Run] = []
    sessions = service.list_sessions()
    members = family(session.session_id, [(one.session_id, one.forked_from) for one in sessions])
    for member in reversed([one for one in sessions if one.session_id in members]):
        messages = service.transcript(member.session_id)
        if messages:
            _add_path(roots, messages, member)
    return roots


def _add_path(runs: list[Run], messages: list[TranscriptMessage], session: SessionSummary) -> None:
    """Merge one path into the tree, splitting a run where the path leaves it."""
    for run in runs:
        shared = _shared(run.messages, messages)
        if shared == 0:
            continue
        if shared < len(run.messages):
            rest = Run(run.messages[shared:], run.sessions, run.children)
            run.messages, run.sessions, run.children = run.messages[:shared], [], [rest]
        if shared == len(messages):
            run.sessions.append(session)
        else:
            _add_path(run.children, messages[shared:], session)
        return
    runs.append(Run(list(messages), [session]))


def _shared(left: Sequence[TranscriptMessage], right: Sequence[TranscriptMessage]) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one.node_id != other.node_id:
            return index
    return min(len(left), len(right))


def draw_tree(runs: Sequence[Run], session_id: str) -> str:
    """The tree as lines; the session that was asked for is marked with a star."""
    return "\n".join(line for run in runs for line in _lines(run, session_id, "", ""))


def _lines(run: Run, session_id: str, first: str, rest: str) -> Iterator[str]:
    names = [
        f"{shorten(one.name, TEXT_WIDTH)}{' *' if one.session_id == session_id else ''}"
        for one in run.sessions
    ]
    turns = f"turn {run.first_turn}"
    if run.last_turn != run.first_turn:
        turns = f"turns {run.first_turn}-{run.last_turn}"
    ends = f"  [{', '.join(names)}]" if names else ""
    yield f"{first}{turns}  {shorten(run.text, TEXT_WIDTH)}{ends}"
    for index, child in enumerate(run.children):
        is_last = index == len(run.children) - 1
        branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        yield from _lines(child, session_id, f"{rest}{branch}", f"{rest}{below}")
