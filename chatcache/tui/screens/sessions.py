"""All chats: filter by name and text, sort, pin, open, rename, delete with a way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from textual import on
from textual.content import Content
from textual.widgets import OptionList

from chatcache.chat.views import SearchHit, SessionSummary
from chatcache.formatting import one_line
from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.formatting import age, shorten
from chatcache.tui.screens.ask_text import AskTextScreen
from chatcache.tui.screens.filter_list import FilterListScreen, Row
from chatcache.tui.styles import MUTED

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

_NUMBER_WIDTH, _AGE_WIDTH = 8, 6
_MIN_SEARCH = 3
_SORTS: dict[str, Callable[[SessionSummary], Any]] = {
    "last used": lambda session: -session.updated_at,
    "name": lambda session: session.name.casefold(),
    "length": lambda session: -session.num_tokens,
}


class SessionsScreen(FilterListScreen[str]):
    """Returns the id of the chat to open. Deletions become real when the screen is left."""

    BINDINGS = bindings("sessions")
    title_text = "Chats"
    placeholder = "type to filter by name, or to search in what was said"
    keys_text = "Enter open · F2 rename · F6 pin · F7 sort · F8 delete · Ctrl+Z undo · Esc close"
    empty_text = "There are no chats yet."

    def __init__(
        self,
        service: ChatService,
        current_id: str | None,
        *,
        is_busy: bool,
        query: str,
        clock: Callable[[], float],
        on_highlight: Callable[[str], None] = lambda session_id: None,
    ) -> None:
        super().__init__(query)
        self._service = service
        self._current_id = current_id
        self._is_busy = is_busy
        self._clock = clock
        self._on_highlight = on_highlight
        self._sessions: dict[str, SessionSummary] = {}
        self._deleted: list[str] = []
        self._hits: dict[str, SearchHit] = {}
        self._searched = ""
        self._sort = "last used"

    def on_mount(self) -> None:
        super().on_mount()
        self._do(self._load())

    # Loading and searching

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self.run_worker(self._guarded(work), exit_on_error=False)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as failure:
            error = as_user_error(failure)
            self.app.notify(f"{error.message} {error.hint}", severity="error", markup=False)

    async def _load(self, keep: str | None = None) -> None:
        sessions = await asyncio.to_thread(self._service.list_sessions)
        self._sessions = {session.session_id: session for session in sessions}
        self._show(keep or self._current_id)

    def _show(self, keep: str | None = None) -> None:
        self.set_rows(
            [
                Row(session.session_id, f"{session.name} {session.preview}", self._drawer(session))
                for session in self._sorted()
                if session.session_id not in self._deleted
            ]
        )
        self._filter(keep)
        self._search()

    def _sorted(self) -> list[SessionSummary]:
        """In the order that was asked for, what is pinned before the rest."""
        by = _SORTS[self._sort]
        return sorted(self._sessions.values(), key=lambda one: (not one.is_pinned, by(one)))

    def _search(self) -> None:
        """Look into the messages as well, beside the filtering of names."""
        query = self.query_text.strip()
        if query != self._searched:
            self._searched, self._hits = query, {}
            if len(query) >= _MIN_SEARCH:
                self._do(self._find(query))

    async def _find(self, query: str) -> None:
        hits = await asyncio.to_thread(self._service.search, query)
        if query == self._searched:
            self._hits = {}
            for hit in hits:
                self._hits.setdefault(hit.session_id, hit)
            row = self.highlighted_row
            self._filter(row.row_id if row else None)

    def _filter(self, keep: str | None = None) -> None:
        super()._filter(keep)
        self._search()

    def is_match(self, row: Row, words: Sequence[str]) -> bool:
        return super().is_match(row, words) or row.row_id in self._hits

    @on(OptionList.OptionHighlighted)
    def _tell_highlighted(self) -> None:
        if (row := self.highlighted_row) is not None:
            self._on_highlight(row.row_id)

    # Drawing

    def columns(self, width: int) -> Content:
        return _line("  ", "name", "turns", "tokens", "used", width).stylize(MUTED)

    def _drawer(self, session: SessionSummary) -> Callable[[int], Content]:
        mark = "● " if session.session_id == self._current_id else "  "
        name = ("* " if session.is_pinned else "") + ("⑂ " if session.forked_from else "")
        name += one_line(session.name)

        def draw(width: int) -> Content:
            used = age(self._clock() - session.updated_at)
            turns, tokens = f"{session.num_turns:,}", f"{session.num_tokens:,}"
            return _line(mark, name, turns, tokens, used, width)

        return draw

    def preview(self, row: Row) -> Content:
        session = self._sessions[row.row_id]
        origin = self._sessions.get(session.forked_from or "")
        facts = [f"on {one_line(session.model)}" if session.model else "not answered yet"]
        if session.forked_from:
            facts.append(f"forked from {one_line(origin.name)}" if origin else "a fork")
        if session.session_id == self._current_id:
            facts.append("open now")
        if session.is_pinned:
            facts.append("* pinned")
        if session.history_mode == "append":
            facts.append("append mode")
        hit = self._hits.get(row.row_id)
        said = f"turn {hit.turn}: {hit.snippet}" if hit else session.preview
        return Content.assemble((" · ".join(facts), MUTED), "\n", self.fit(said))

    # Keys

    def choose(self, row: Row) -> None:
        self._leave_with(row.row_id)

    def action_leave(self) -> None:
        self._leave_with(None)

    def _leave_with(self, session_id: str | None) -> None:
        self._do(self._commit_and_leave(session_id))

    async def _commit_and_leave(self, session_id: str | None) -> None:
        deleted, self._deleted = self._deleted, []
        for one in deleted:
            await asyncio.to_thread(self._service.delete, one)
        self.dismiss(session_id)

    def action_rename(self) -> None:
        if (row := self.highlighted_row) is not None:
            self._do(self._rename(self._sessions[row.row_id]))

    async def _rename(self, session: SessionSummary) -> None:
        name = await self.app.push_screen_wait(AskTextScreen("Rename the chat", session.name))
        if name is not None and name != session.name:
            await asyncio.to_thread(self._service.rename, session.session_id, name)
            await self._load(session.session_id)

    def action_delete(self) -> None:
        row = self.highlighted_row
        if row is None:
            return
        if self._is_busy and row.row_id == self._current_id:
            self.say("This chat is being answered. Esc, then Esc again stops it.")
            return
        index = self._shown.index(row)
        near = self._shown[index + 1 : index + 2] or self._shown[max(0, index - 1) : index]
        self._deleted.append(row.row_id)
        self._show(near[0].row_id if near else None)
        name = shorten(self._sessions[row.row_id].name, 30)
        self.say(f"Deleted “{name}”. Ctrl+Z brings it back until this list is closed.")

    def action_pin(self) -> None:
        if (row := self.highlighted_row) is not None:
            self._do(self._pin(self._sessions[row.row_id]))

    async def _pin(self, session: SessionSummary) -> None:
        is_pinned = not session.is_pinned
        await asyncio.to_thread(self._service.set_pinned, session.session_id, is_pinned)
        await self._load(session.session_id)
        self.say("Pinned: it stays at the top." if is_pinned else "No longer pinned.")

    def action_sort(self) -> None:
        names = list(_SORTS)
        self._sort = names[(names.index(self._sort) + 1) % len(names)]
        row = self.highlighted_row
        self._show(row.row_id if row else None)
        self.say(f"Sorted by {self._sort}.")

    def action_undo(self) -> None:
        if self._deleted:
            session_id = self._deleted.pop()
            self._show(session_id)
            self.say(f"“{shorten(self._sessions[session_id].name, 30)}” is back.")


def _line(mark: str, name: str, turns: str, tokens: str, used: str, width: int) -> Content:
    tokens = f"{tokens:>{_NUMBER_WIDTH}}" if width >= 50 else ""
    rest = width - len(mark) - _NUMBER_WIDTH - len(tokens) - _AGE_WIDTH - 1
    name = shorten(name, rest)
    return Content.assemble(
        mark,
        Content(name).pad_right(max(0, rest - Content(name).cell_length)),
        f"{turns:>{_NUMBER_WIDTH}}{tokens}{used:>{_AGE_WIDTH}}",
    )
