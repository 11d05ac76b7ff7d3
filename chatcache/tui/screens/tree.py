"""F3: the chat and its forks as a tree, each with what going on there costs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static, Tree
from textual.widgets.tree import TreeNode

from chatcache.backends.base import CostEstimate
from chatcache.chat.views import SessionSummary
from chatcache.tui import figures
from chatcache.tui.formatting import age, plural, shorten
from chatcache.tui.worker import as_user_error

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService


def family(sessions: Sequence[SessionSummary], session_id: str) -> list[tuple[int, SessionSummary]]:
    """The root of a session's family and its forks, depth first, oldest branch first."""
    by_id = {session.session_id: session for session in sessions}
    root, seen = session_id, {session_id}
    while (origin := by_id[root].forked_from) in by_id and origin not in seen:
        root = origin
        seen.add(root)
    children: dict[str, list[SessionSummary]] = {}
    for session in sorted(sessions, key=lambda one: one.updated_at):
        if session.forked_from:
            children.setdefault(session.forked_from, []).append(session)
    ordered: list[tuple[int, SessionSummary]] = []
    waiting = [(0, by_id[root])]
    while waiting:
        depth, session = waiting.pop()
        if all(session is not other for _, other in ordered):
            ordered.append((depth, session))
            waiting += [(depth + 1, one) for one in reversed(children.get(session.session_id, []))]
    return ordered


class TreeScreen(ModalScreen[str | None]):
    """Returns the id of the chat to open."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "leave", "close", show=False, id="tree.close")
    ]

    def __init__(self, service: ChatService, session_id: str, now: float) -> None:
        super().__init__(classes="medium")
        self._service, self._session_id, self._now = service, session_id, now

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static("Forks", classes="dialog-title", markup=False)
            tree: Tree[str] = Tree("")
            tree.show_root, tree.guide_depth = False, 3
            yield tree
            keys = "Enter open · ● open now · ★ the first one · Esc close"
            yield Static(keys, classes="dialog-keys", markup=False)

    def on_mount(self) -> None:
        self.run_worker(self._fill(), exit_on_error=False)

    async def _fill(self) -> None:
        try:
            sessions = await asyncio.to_thread(self._service.list_sessions)
            branches = family(sessions, self._session_id)
            ids = [session.session_id for _, session in branches]
            costs = await asyncio.to_thread(self._service.costs, ids)
        except Exception as failure:
            error = as_user_error(failure)
            self.dismiss(None)
            self.app.notify(f"{error.message} {error.hint}", severity="error", markup=False)
            return
        tree = self.query_one(Tree)
        parents: list[TreeNode[str]] = [tree.root]
        for (depth, session), cost in zip(branches, costs, strict=True):
            del parents[depth + 1 :]
            label = self._label(depth, session, cost)
            node = parents[depth].add(label, session.session_id, expand=True, allow_expand=False)
            parents.append(node)
            if session.session_id == self._session_id:
                self.call_after_refresh(tree.move_cursor, node)
        tree.root.expand()
        tree.focus()

    def _label(self, depth: int, session: SessionSummary, cost: CostEstimate | None) -> Text:
        mark = "● " if session.session_id == self._session_id else ""
        star = "★ " if depth == 0 else ""
        name = Text(f"{mark}{star}{shorten(session.name, 40)}", style="bold" if mark else "")
        facts = [
            plural(session.num_turns, "turn"),
            f"{session.num_tokens:,} tok",
            figures.cost(cost),
            age(self._now - session.updated_at),
        ]
        return name + Text("  " + " · ".join(facts), style="dim")

    @on(Tree.NodeSelected)
    def _selected(self, event: Tree.NodeSelected[str]) -> None:
        event.stop()
        self.dismiss(event.node.data)

    def action_leave(self) -> None:
        self.dismiss(None)
