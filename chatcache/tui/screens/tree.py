"""F3: the branches of the chat, one row per run of turns, each with where its K and V is.

Owns drawing and keys. What goes with a branch is said by the service before it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from textual.content import Content

from chatcache.backends.base import CostEstimate
from chatcache.chat.branches import Branch, BranchTree, Removal, TreeRow
from chatcache.chat.views import SessionSummary
from chatcache.formatting import model_name, one_line, plural
from chatcache.frontend import figures
from chatcache.frontend.lens.turns import added_tokens, where_words
from chatcache.frontend.open_chat import OpenChat
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import MUTED, TITLE, age, padded, shorten
from chatcache.tui.screens.dialogs import ConfirmScreen, rename_chat
from chatcache.tui.screens.filter_list import FilterListScreen

_TURNS, _TOKENS, _WHERE, _AGE = 10, 9, 10, 5
_NAME = 20  # the name of a chat is often its first message: what was said here says more
_MAX_DEPTH = 12  # lines drawn beside a row; deeper ones move closer together


@dataclass(frozen=True, slots=True)
class TreeChoice:
    """What is to be shown when the tree is closed: the open chat as it is now, which may be another
    one, or a fork of it behind a turn."""

    fork_turn: int | None = None


class TreeScreen(FilterListScreen[TreeRow, TreeChoice]):
    """Returns a choice when there is something new to show; all but the fork is done here."""

    BINDINGS = bindings("tree")
    title_text = "Branches"
    placeholder = "type to filter by what was said, or by the name of a chat"
    keys_text = "Enter switch · F4 fork · F2 rename · F8 delete · F6 keep only this · Esc close"
    empty_text = "Nothing has been said yet."

    def __init__(self, chat: OpenChat, now: float) -> None:
        super().__init__(is_answering=chat.is_busy)
        self._chat, self._now = chat, now
        self._tree = BranchTree((), None)
        self._costs: dict[str, CostEstimate | None] = {}
        self._parents: dict[str, str] = {}
        self._has_changed = False

    # Loading

    async def fill(self) -> None:
        await self._read()

    async def _read(self, highlight: str | None = None) -> None:
        """The rows at once, what they cost as soon as it is known."""
        tree = await asyncio.to_thread(self._chat.branches)
        rows = tree.rows()
        self._tree = tree
        self._parents = {
            child.node_id: row.branch.node_id for row in rows for child in row.branch.children
        }
        self.set_items(
            {row.branch.node_id: row for row in rows}, highlight or self._open_row_id(rows)
        )
        branches = [row.branch for row in rows]
        costs = await asyncio.to_thread(self._chat.service.tree.costs, branches)
        self._costs = {branch.node_id: cost for branch, cost in zip(branches, costs, strict=True)}
        self.filter(self.highlighted_id)

    def _open_row_id(self, rows: Sequence[TreeRow]) -> str | None:
        return next((row.branch.node_id for row in rows if self._is_open(row.branch)), None)

    def _is_open(self, branch: Branch) -> bool:
        return any(session.session_id == self._chat.session_id for session in branch.sessions)

    def search_text(self, row: TreeRow) -> str:
        return " ".join([row.branch.text, *(session.name for session in row.branch.sessions)])

    # Drawing

    def columns(self, width: int) -> Content:
        return _columns(Content("  turns"), "tokens", "where", "to go on", "used", width)

    def draw(self, row: TreeRow, width: int) -> Content:
        branch = row.branch
        is_known = branch.node_id in self._costs
        return _columns(
            self._label(row, width),
            f"{branch.own_tokens:,}",
            self._where(branch) if is_known else "…",
            figures.cost(self._costs.get(branch.node_id)) if is_known else "…",
            age(self._now - branch.created_at),
            width,
        )

    def _label(self, row: TreeRow, width: int) -> Content:
        branch, is_open = row.branch, self._is_open(row.branch)
        turns = f"{branch.first_turn}"
        if branch.last_turn != branch.first_turn:
            turns += f"–{branch.last_turn}"
        names = [self._starred(session) for session in branch.sessions]
        said = ("answer: " if branch.role == "assistant" else "") + one_line(branch.text)
        parts: list[tuple[str, str] | str] = [
            (_lines(row), MUTED),
            ("● " if is_open else "○ ", TITLE if is_open else MUTED),
            (f"{turns} ".ljust(_TURNS if width >= 90 else 0), MUTED),
        ]
        if names:
            parts.append((", ".join(names), "bold"))
            parts.append((f"  {said}", MUTED))
        else:
            parts.append(said)
        return Content.assemble(*parts)

    def _starred(self, session: SessionSummary) -> str:
        return ("★ " if session.session_id == self._tree.main_id else "") + shorten(
            session.name, _NAME
        )

    def _where(self, branch: Branch) -> str:
        """Where the K and V of the run's own tokens is."""
        cost = self._costs.get(branch.node_id)
        if cost is None or not branch.own_tokens:
            return "–"
        above = self._costs.get(self._parents.get(branch.node_id, ""))
        return where_words(*added_tokens(cost, above))

    def preview(self, row: TreeRow) -> Content:
        branch = row.branch
        facts = [f"{branch.num_tokens:,} tokens from the start to here"]
        if branch.node_id in self._costs:
            facts.append(f"to go on: {figures.cost(self._costs[branch.node_id])}")
        if self._is_open(branch):
            facts.append("open now")
        if not branch.sessions:
            facts.append("no chat ends here" if branch.children else "a variant without a chat")
        if any(session.session_id == self._tree.main_id for session in branch.sessions):
            facts.append("★ main: the others came from it")
        if branch.model:
            facts.append(f"on {model_name(branch.model)}")
        return Content.assemble(
            (" · ".join(facts), MUTED),
            "\n",
            self.fit(branch.text),
            "\n",
            self.fit(branch.last_text),
        )

    # Keys

    def choose(self, row: TreeRow) -> None:
        self.do(self._switch(row.branch))

    async def _switch(self, branch: Branch) -> None:
        if self._is_open(branch):
            self.action_leave()
        elif not self.is_refused():
            await asyncio.to_thread(self._chat.follow, branch)
            self.dismiss(TreeChoice())

    def action_fork(self) -> None:
        if (branch := self._chosen()) is not None and not self.is_refused():
            self.do(self._fork(branch))

    async def _fork(self, branch: Branch) -> None:
        below = next(run for run in branch.walk() if run.sessions or not run.children)
        await asyncio.to_thread(self._chat.follow, below)
        self.dismiss(TreeChoice(branch.last_turn))

    def action_rename(self) -> None:
        branch = self._chosen()
        if branch is None:
            return
        if branch.sessions:
            self.do(self._rename(branch))
        else:
            self.say("No chat ends here. F4 makes one, which can have a name.")

    async def _rename(self, branch: Branch) -> None:
        if await rename_chat(self.app, self._chat.service, branch.sessions[0]):
            self._has_changed = True
            await self._read(branch.node_id)

    def action_delete(self) -> None:
        if (branch := self._chosen()) is not None and not self.is_refused():
            self.do(self._remove(branch.first_id, "Delete this branch?", is_path_kept=False))

    def action_keep_only(self) -> None:
        if (branch := self._chosen()) is not None and not self.is_refused():
            question = f"Keep only the path to turn {branch.last_turn}?"
            self.do(self._remove(branch.node_id, question, is_path_kept=True))

    async def _remove(self, node_id: str, question: str, *, is_path_kept: bool) -> None:
        plan = partial(self._chat.plan_removal, node_id, is_path_kept=is_path_kept)
        detail = self._removal_words(await asyncio.to_thread(plan))
        if not await self.app.push_screen_wait(ConfirmScreen(question, detail, "Delete")):
            return
        remove = partial(self._chat.remove, node_id, is_path_kept=is_path_kept)
        done = await asyncio.to_thread(remove)
        self._has_changed = True
        if self._chat.session_id not in self._names():  # nothing of this tree is left
            self.dismiss(TreeChoice())
            return
        await self._read()
        self.say(f"Deleted {_amount(done)}.")

    def _names(self) -> dict[str, str]:
        """The chats of the tree by their ids."""
        return {
            session.session_id: session.name
            for row in self.items.values()
            for session in row.branch.sessions
        }

    def _removal_words(self, planned: Removal) -> str:
        names = self._names()
        gone = ", ".join(
            f"“{shorten(names.get(session_id, session_id), 24)}”"
            for session_id in planned.deleted[:4]
        )
        more = f" and {len(planned.deleted) - 4} more" if len(planned.deleted) > 4 else ""
        text = f"{_amount(planned)}, with all K and V."
        if planned.deleted:
            noun = "chat" if len(planned.deleted) == 1 else "chats"
            text += f" The {noun} {gone}{more} too."
        if planned.moved:
            text += " This chat goes on with what is left."
        return f"{text} This cannot be undone."

    def _chosen(self) -> Branch | None:
        return self.highlighted.branch if self.highlighted is not None else None

    def action_leave(self) -> None:
        self.dismiss(TreeChoice() if self._has_changed else None)


def _amount(removal: Removal) -> str:
    if removal.num_turns:
        return plural(removal.num_turns, "turn")
    return plural(len(removal.nodes), "message")


def _lines(row: TreeRow) -> str:
    """The lines of the branches on the left, as a version-control system draws them."""
    depth = min(row.depth, _MAX_DEPTH)
    if depth == 0:
        return ""
    return "│ " * (depth - 1) + ("├─" if row.leaves_line else "│ ")


def _columns(label: Content, tokens: str, where: str, cost: str, used: str, width: int) -> Content:
    """One row; on a narrow screen the last columns go first."""
    cost_width = 26 if width >= 100 else 22 if width >= 84 else 0
    tail = f"{tokens:>{_TOKENS}}  {where:<{_WHERE}}" if width >= 44 else f" {where:<{_WHERE}}"
    if cost_width:
        tail += f"{shorten(cost, cost_width):<{cost_width}}"
    if width >= 52:
        tail += f"{used:>{_AGE}}"
    rest = width - len(tail) - 1
    return padded(label.truncate(rest, ellipsis=True), rest) + Content(f" {tail}")
