"""All chats: filter by name and text, sort, pin, open, rename, delete with a way back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from textual import on
from textual.content import Content
from textual.widgets import Input, OptionList

from chatcache.chat.views import SearchHit, SessionSummary
from chatcache.formatting import model_label, one_line
from chatcache.tui.commands import bindings
from chatcache.tui.look.formatting import MUTED, age, padded, shorten
from chatcache.tui.screens.dialogs import rename_chat
from chatcache.tui.screens.filter_list import FilterListScreen

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

_NUMBER_WIDTH, _AGE_WIDTH = 8, 6
_MIN_SEARCH = 3
_SORTS: dict[str, Callable[[SessionSummary], Any]] = {
    "last used": lambda session: -session.updated_at,
    "name": lambda session: session.name.casefold(),
    "length": lambda session: -session.num_tokens,
}


class SessionsScreen(FilterListScreen[SessionSummary, str]):
    """Returns the id of the chat to open. Deletions become real when the screen is left."""

    BINDINGS = bindings("sessions")
    title_text = "Chats"
    placeholder = "type to filter by name, or to search in what was said"
    keys_text = "Enter open · F2 rename · F6 pin · F7 sort · F8 delete · Ctrl+Z undo · Esc close"
    empty_text = "There are no chats yet."

    def __init__(
        self,
        service: ChatService,
        current_id: str,
        *,
        is_answering: bool,
        query: str,
        now: float,
        on_highlight: Callable[[str], None] = lambda session_id: None,
    ) -> None:
        super().__init__(query, is_answering=is_answering)
        self._service = service
        self._current_id = current_id
        self._now = now
        self._on_highlight = on_highlight
        self._sessions: dict[str, SessionSummary] = {}
        self._deleted: list[str] = []
        self._hits: dict[str, SearchHit] = {}
        self._searched = ""
        self._sort = "last used"

    # Loading and searching

    async def fill(self) -> None:
        await self._read(self._current_id)
        self._search()

    async def _read(self, highlight: str | None) -> None:
        sessions = await asyncio.to_thread(self._service.list_sessions)
        self._sessions = {session.session_id: session for session in sessions}
        self._show(highlight)

    def _show(self, highlight: str | None = None) -> None:
        self.set_items(
            {
                session.session_id: session
                for session in self._sorted()
                if session.session_id not in self._deleted
            },
            highlight,
        )

    def search_text(self, session: SessionSummary) -> str:
        return f"{session.name} {session.preview}"

    def _sorted(self) -> list[SessionSummary]:
        """In the order that was asked for, what is pinned before the rest."""
        by = _SORTS[self._sort]
        return sorted(
            self._sessions.values(), key=lambda session: (not session.is_pinned, by(session))
        )

    @on(Input.Changed)
    def _search(self) -> None:
        """Look into the messages as well, beside the filtering of names."""
        query = self.query_text.strip()
        if query != self._searched:
            self._searched, self._hits = query, {}
            if len(query) >= _MIN_SEARCH or not query.isascii():  # 京 is a whole word
                self.do(self._find(query))

    async def _find(self, query: str) -> None:
        hits = await asyncio.to_thread(self._service.search, query)
        if query == self._searched:
            self._hits = {}
            for hit in hits:
                self._hits.setdefault(hit.session_id, hit)
            self.filter(self.highlighted_id)

    def is_match(self, session: SessionSummary, words: Sequence[str]) -> bool:
        return super().is_match(session, words) or session.session_id in self._hits

    @on(OptionList.OptionHighlighted)
    def _tell_highlighted(self) -> None:
        if (session_id := self.highlighted_id) is not None:
            self._on_highlight(session_id)

    # Drawing

    def columns(self, width: int) -> Content:
        return _line("  ", "name", "turns", "tokens", "used", width)

    def draw(self, session: SessionSummary, width: int) -> Content:
        mark = "● " if session.session_id == self._current_id else "  "
        name = ("* " if session.is_pinned else "") + ("⑂ " if session.forked_from else "")
        name += one_line(session.name)
        used = age(self._now - session.updated_at)
        return _line(mark, name, f"{session.num_turns:,}", f"{session.num_tokens:,}", used, width)

    def preview(self, session: SessionSummary) -> Content:
        origin = self._sessions.get(session.forked_from or "")
        label = model_label(session.model or "", session.quantization)
        facts = [f"on {label}" if session.model else "not answered yet"]
        if session.forked_from:
            facts.append(f"forked from {one_line(origin.name)}" if origin else "a fork")
        if session.session_id == self._current_id:
            facts.append("open now")
        if session.is_pinned:
            facts.append("* pinned")
        if session.history_mode == "append":
            facts.append("append mode")
        hit = self._hits.get(session.session_id)
        said = f"turn {hit.turn}: {hit.snippet}" if hit else session.preview
        return Content.assemble((" · ".join(facts), MUTED), "\n", self.fit(said))

    # Keys

    def choose(self, session: SessionSummary) -> None:
        self.do(self._commit_and_leave(session.session_id))

    def action_leave(self) -> None:
        self.do(self._commit_and_leave(None))

    async def _commit_and_leave(self, chosen_id: str | None) -> None:
        deleted, self._deleted = self._deleted, []
        for session_id in deleted:
            await asyncio.to_thread(self._service.delete, session_id)
        self.dismiss(chosen_id)

    def action_rename(self) -> None:
        if (session := self.highlighted) is not None:
            self.do(self._rename(session))

    async def _rename(self, session: SessionSummary) -> None:
        if await rename_chat(self.app, self._service, session):
            await self._read(session.session_id)

    def action_delete(self) -> None:
        session = self.highlighted
        if session is None or (session.session_id == self._current_id and self.is_refused()):
            return
        shown = list(self._shown)
        index = shown.index(session.session_id)
        near = shown[index + 1 : index + 2] or shown[max(0, index - 1) : index]
        self._deleted.append(session.session_id)
        self._show(near[0] if near else None)
        name = shorten(session.name, 30)
        self.say(f"Deleted “{name}”. Ctrl+Z brings it back until this list is closed.")

    def action_pin(self) -> None:
        if (session := self.highlighted) is not None:
            self.do(self._pin(session))

    async def _pin(self, session: SessionSummary) -> None:
        is_pinned = not session.is_pinned
        await asyncio.to_thread(self._service.set_pinned, session.session_id, is_pinned)
        await self._read(session.session_id)
        self.say("Pinned: it stays at the top." if is_pinned else "No longer pinned.")

    def action_sort(self) -> None:
        names = list(_SORTS)
        self._sort = names[(names.index(self._sort) + 1) % len(names)]
        self._show()
        self.say(f"Sorted by {self._sort}.")

    def action_undo(self) -> None:
        if self._deleted:
            session_id = self._deleted.pop()
            self._show(session_id)
            self.say(f"“{shorten(self._sessions[session_id].name, 30)}” is back.")


def _line(mark: str, name: str, turns: str, tokens: str, used: str, width: int) -> Content:
    tokens = f"{tokens:>{_NUMBER_WIDTH}}" if width >= 50 else ""
    rest = width - len(mark) - _NUMBER_WIDTH - len(tokens) - _AGE_WIDTH - 1
    return Content.assemble(
        mark,
        padded(shorten(name, rest), rest),
        f"{turns:>{_NUMBER_WIDTH}}{tokens}{used:>{_AGE_WIDTH}}",
    )
