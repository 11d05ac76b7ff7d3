"""F3: the branches of the chat, one row per run of turns, each with where its K and V is.

Owns drawing and keys. What goes with a branch is said by the service before it is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from textual.content import Content

from chatcache.backends.base import CostEstimate
from chatcache.chat.branches import Branch, BranchTree, Removal, TreeRow
from chatcache.chat.views import SessionSummary
from chatcache.formatting import one_line, plural
from chatcache.frontend import figures
from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.formatting import age, shorten
from chatcache.tui.screens.ask_text import AskTextScreen
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.filter_list import FilterListScreen, Row
from chatcache.tui.styles import MUTED, TITLE

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

_TURNS, _TOKENS, _WHERE, _AGE = 10, 9, 10, 5
_NAME = 20  # the name of a chat is often its first message: what was said here says more
_MAX_DEPTH = 12  # lines drawn beside a row; deeper ones move closer together


@dataclass(frozen=True, slots=True)
class TreeChoice:
    """What to do when the tree is closed: open a session, or fork behind a turn of one.

    `has_changed`: branches were deleted, so what is shown may be gone.
    """

    session_id: str | None = None
    fork_turn: int | None = None
    has_changed: bool = False


class TreeScreen(FilterListScreen[TreeChoice]):
    """Returns a choice; deleting and renaming are done here."""

    BINDINGS = bindings("tree")
    title_text = "Branches"
    placeholder = "type to filter by what was said, or by the name of a chat"
    keys_text = "Enter switch · F4 fork · F2 rename · F8 delete · F6 keep only this · Esc close"
    empty_text = "Nothing has been said yet."

    def __init__(
        self, service: ChatService, session_id: str, now: float, *, is_busy: bool = False
    ) -> None:
        super().__init__()
        self._service, self._session_id, self._now = service, session_id, now
        self._is_busy = is_busy
        self._tree = BranchTree((), None)
        self._tree_rows: dict[str, TreeRow] = {}
        self._costs: dict[str, CostEstimate | None] = {}
        self._parents: dict[str, str] = {}
        self._has_changed = False

    def on_mount(self) -> None:
        super().on_mount()
        self._do(self._load())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self.run_worker(self._guarded(work), exit_on_error=False)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as failure:
            error = as_user_error(failure)
            self.app.notify(f"{error.message} {error.hint}", severity="error", markup=False)

    # Loading

    async def _load(self, keep: str | None = None) -> None:
        """The rows at once, what they cost as soon as it is known."""
        tree = await asyncio.to_thread(self._service.tree.branches, self._session_id)
        rows = tree.rows()
        self._tree = tree
        self._tree_rows = {row.branch.node_id: row for row in rows}
        self._parents = {
            child.node_id: row.branch.node_id for row in rows for child in row.branch.children
        }
        self._show(keep or self._current_row())
        branches = [row.branch for row in rows]
        costs = await asyncio.to_thread(self._service.tree.costs, branches)
        self._costs = {branch.node_id: cost for branch, cost in zip(branches, costs, strict=True)}
        chosen = self.highlighted_row
        self._show(chosen.row_id if chosen else None)

    def _current_row(self) -> str | None:
        return next(
            (one for one, row in self._tree_rows.items() if self._is_open(row.branch)), None
        )

    def _is_open(self, branch: Branch) -> bool:
        return any(session.session_id == self._session_id for session in branch.sessions)

    def _show(self, keep: str | None) -> None:
        self.set_rows(
            [
                Row(node_id, _searched(row.branch), self._drawer(row))
                for node_id, row in self._tree_rows.items()
            ]
        )
        self._filter(keep)

    # Drawing

    def columns(self, width: int) -> Content:
        return _columns(Content("  turns"), "tokens", "where", "to go on", "used", width).stylize(
            MUTED
        )

    def _drawer(self, row: TreeRow) -> Callable[[int], Content]:
        def draw(width: int) -> Content:
            branch = row.branch
            known = branch.node_id in self._costs
            return _columns(
                self._label(row, width),
                f"{branch.own_tokens:,}",
                self._where(branch) if known else "…",
                figures.cost(self._costs.get(branch.node_id)) if known else "…",
                age(self._now - branch.created_at),
                width,
            )

        return draw

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
        ram = cost.ram_tokens - (above.ram_tokens if above else 0)
        disk = cost.disk_tokens - (above.disk_tokens if above else 0)
        missing = cost.recompute_tokens - (above.recompute_tokens if above else 0)
        tiers = [name for name, tokens in (("RAM", ram), ("disk", disk)) if tokens > 0]
        if not tiers:
            return "none"
        return "+".join(tiers) + (" part" if missing > 0 and len(tiers) == 1 else "")

    def preview(self, row: Row) -> Content:
        branch = self._tree_rows[row.row_id].branch
        facts = [f"{branch.num_tokens:,} tokens from the start to here"]
        if row.row_id in self._costs:
            facts.append(f"to go on: {figures.cost(self._costs[row.row_id])}")
        if self._is_open(branch):
            facts.append("open now")
        if not branch.sessions:
            facts.append("no chat ends here" if branch.children else "a variant without a chat")
        if any(session.session_id == self._tree.main_id for session in branch.sessions):
            facts.append("★ main: the others came from it")
        if branch.model:
            facts.append(f"on {one_line(branch.model)}")
        return Content.assemble(
            (" · ".join(facts), MUTED),
            "\n",
            self.fit(branch.text),
            "\n",
            self.fit(branch.last_text),
        )

    # Keys

    def choose(self, row: Row) -> None:
        self._do(self._switch(self._tree_rows[row.row_id].branch))

    async def _switch(self, branch: Branch) -> None:
        if not branch.sessions and branch.children:
            branch = branch.children[0]  # where lines part nobody ends: follow the main one
            while not branch.sessions and branch.children:
                branch = branch.children[0]
        if self._is_busy and not self._is_open(branch):
            self.say("An answer is being written. Esc, then Esc again stops it.")
            return
        session_id = await asyncio.to_thread(self._service.tree.follow, branch)
        moved = not branch.sessions and session_id == self._session_id
        self.dismiss(TreeChoice(session_id, has_changed=self._has_changed or moved))

    def action_fork(self) -> None:
        if (branch := self._chosen()) is not None:
            self._do(self._fork(branch))

    async def _fork(self, branch: Branch) -> None:
        below = next(one for one in branch.walk() if one.sessions or not one.children)
        session_id = await asyncio.to_thread(self._service.tree.follow, below)
        self.dismiss(TreeChoice(session_id, branch.last_turn, self._has_changed))

    def action_rename(self) -> None:
        branch = self._chosen()
        if branch is None:
            return
        if branch.sessions:
            self._do(self._rename(branch))
        else:
            self.say("No chat ends here. F4 makes one, which can have a name.")

    async def _rename(self, branch: Branch) -> None:
        session = branch.sessions[0]
        name = await self.app.push_screen_wait(AskTextScreen("Rename the chat", session.name))
        if name is not None and name != session.name:
            await asyncio.to_thread(self._service.rename, session.session_id, name)
            self._has_changed = True
            await self._load(branch.node_id)

    def action_delete(self) -> None:
        if (branch := self._chosen()) is not None and not self._refuses():
            keeper = self._service.tree
            top = branch.first_id
            self._do(self._remove(top, "Delete this branch?", keeper.plan_delete, keeper.delete))

    def action_keep_only(self) -> None:
        if (branch := self._chosen()) is not None and not self._refuses():
            keeper = self._service.tree
            question = f"Keep only the path to turn {branch.last_turn}?"
            end = branch.node_id
            self._do(self._remove(end, question, keeper.plan_keep_only, keeper.keep_only))

    async def _remove(
        self,
        node_id: str,
        question: str,
        plan: Callable[[str, str], Removal],
        act: Callable[[str, str], Removal],
    ) -> None:
        planned = await asyncio.to_thread(plan, self._session_id, node_id)
        if not planned.nodes:
            self.say("There is nothing beside this path.")
            return
        detail = self._removal_words(planned)
        if not await self.app.push_screen_wait(ConfirmScreen(question, detail, "Delete")):
            return
        done = await asyncio.to_thread(act, self._session_id, node_id)
        self._has_changed = True
        if self._session_id in done.deleted:
            staying = [one for one in self._sessions() if one not in done.deleted]
            if not staying:
                self.dismiss(TreeChoice(has_changed=True))
                return
            self._session_id = staying[0]
        await self._load()
        self.say(f"Deleted {_amount(done)}.")

    def _sessions(self) -> list[str]:
        return [
            session.session_id
            for row in self._tree_rows.values()
            for session in row.branch.sessions
        ]

    def _removal_words(self, planned: Removal) -> str:
        rows = self._tree_rows.values()
        names = {one.session_id: one.name for row in rows for one in row.branch.sessions}
        gone = ", ".join(f"“{shorten(names.get(one, one), 24)}”" for one in planned.deleted[:4])
        more = f" and {len(planned.deleted) - 4} more" if len(planned.deleted) > 4 else ""
        text = f"{_amount(planned)}, with all K and V."
        if planned.deleted:
            noun = "chat" if len(planned.deleted) == 1 else "chats"
            text += f" The {noun} {gone}{more} too."
        if planned.moved:
            text += " This chat goes on with what is left."
        return f"{text} This cannot be undone."

    def _refuses(self) -> bool:
        if self._is_busy:
            self.say("An answer is being written. Esc, then Esc again stops it.")
        return self._is_busy

    def _chosen(self) -> Branch | None:
        row = self.highlighted_row
        return self._tree_rows[row.row_id].branch if row is not None else None

    def action_leave(self) -> None:
        self.dismiss(TreeChoice(has_changed=True) if self._has_changed else None)


def _amount(removal: Removal) -> str:
    if removal.num_turns:
        return plural(removal.num_turns, "turn")
    return plural(len(removal.nodes), "message")


def _searched(branch: Branch) -> str:
    return " ".join([branch.text, *(session.name for session in branch.sessions)])


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
    label = label.truncate(rest, ellipsis=True)
    return label.pad_right(max(0, rest - label.cell_length)) + Content(f" {tail}")
