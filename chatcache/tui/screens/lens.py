"""/lens: what a cache is, seen in the open chat; one screen with views that Tab goes through.

Owns drawing and keys. What a view shows is said by its page; it is read in threads, so the screen
answers while the model is being asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.events import Click, Resize
from textual.widgets import Static

from chatcache.formatting import model_name, one_line, shorten
from chatcache.frontend.lens.exports import export_name, export_page
from chatcache.frontend.lens.lens import Lens, problem_page
from chatcache.frontend.lens.page import Page
from chatcache.frontend.lens.state import LensKey
from chatcache.frontend.lens.views import VIEWS
from chatcache.tui.commands import bindings
from chatcache.tui.failures import as_user_error
from chatcache.tui.look.formatting import MUTED, TITLE, key_lines
from chatcache.tui.messages import LensOutdated, SegmentsChanged
from chatcache.tui.screens.dialogs import AskTextScreen
from chatcache.tui.screens.modal import Dialog
from chatcache.tui.widgets.page_view import PageView

# A page that is there sooner is shown without a word about waiting.
PATIENCE_SECONDS = 0.15
# Changes of the cache come in swarms.
SETTLE_SECONDS = 0.3
ALWAYS = "Tab view · [ ] turn · e export · Esc close"
MARGIN = 2


class TabLine(Static):
    """The names of the views; the open one is in brackets, so that no colour is needed."""

    def __init__(self, choose: Callable[[str], None]) -> None:
        super().__init__("", id="lens-tabs", markup=False)
        self._choose = choose
        self._ends: list[tuple[int, str]] = []

    def show(self, name: str, width: int) -> None:
        for letters, gap in ((20, "  "), (20, " "), (6, " "), (3, " ")):
            texts = [
                f"[{view.title}]" if view.name == name else view.title[:letters] for view in VIEWS
            ]
            if len(gap.join(texts)) <= width:
                break
        self._ends, at = [], 0
        for view, text in zip(VIEWS, texts, strict=True):
            at += len(text) + len(gap)
            self._ends.append((at, view.name))
        parts = [
            Content.styled(text, TITLE if view.name == name else MUTED)
            for view, text in zip(VIEWS, texts, strict=True)
        ]
        self.update(Content(gap).join(parts))

    def on_click(self, event: Click) -> None:
        for end, name in self._ends:
            if event.x < end:
                self._choose(name)
                return


class LensScreen(Dialog[int | None]):
    """Returns the turn whose figures are wanted."""

    BINDINGS = bindings("lens")

    def __init__(self, lens: Lens, chat_name: str) -> None:
        super().__init__()
        self.lens, self._chat_name = lens, chat_name
        self._shown_view = ""
        self._page: Page | None = None
        self._num_turns = self._answered = 0
        self._doing = ""
        self._is_outdated = False

    def compose(self) -> ComposeResult:
        yield TabLine(self._show_view)
        yield Static("", id="lens-title", markup=False)
        yield PageView()
        yield Static("", id="lens-keys", markup=False)

    def on_mount(self) -> None:
        self.query_one(PageView).focus()
        self._update()

    def on_resize(self, event: Resize) -> None:
        self.call_after_refresh(self._draw)

    @on(LensOutdated)
    @on(SegmentsChanged)
    def _outdated(self) -> None:
        """What changed is read once all is quiet; until then the page stays."""
        if not self._is_outdated:
            self._is_outdated = True
            self.set_timer(SETTLE_SECONDS, self._read_anew)

    def _read_anew(self) -> None:
        self._is_outdated = False
        self.lens.refresh()
        self._update()

    # What is shown

    def _update(self) -> None:
        """Show the open view: at once what is known, and what must be read when it is there."""
        self._draw()
        if (read := self.lens.reading()) is not None:
            self._do(self._read(read))
        if self._known_page() is None:
            self.set_timer(PATIENCE_SECONDS, self._say_waiting)

    async def _read(self, read: Callable[[], None]) -> None:
        await asyncio.to_thread(read)
        source = self.lens.source
        self._num_turns = max(await asyncio.to_thread(source.turns), default=0)
        self._answered = await asyncio.to_thread(source.last_answered)
        self._doing = ""
        self._update()  # what is chosen by now may be something else

    def _say_waiting(self) -> None:
        if not self.query(PageView) or self._known_page() is not None:
            return
        self._doing = self.lens.waits_for
        if self._shown_view != self.lens.view.name:
            self._show(Page(self.lens.view.title, (), ()))
        self._draw_frame()

    def _draw(self) -> None:
        if not self.query(PageView):
            return
        if (page := self._known_page()) is not None:
            self._show(page)
        self._draw_frame()

    def _show(self, page: Page) -> None:
        self._page = page
        is_other = self._shown_view != self.lens.view.name
        self._shown_view = self.lens.view.name
        self.query_one(PageView).show(
            page, from_top=is_other, is_followed=self.lens.view.follows or not is_other
        )

    def _draw_frame(self) -> None:
        """The lines around the page."""
        width = self.size.width
        self.query_one(TabLine).show(self.lens.view.name, width - MARGIN)
        turn = self.lens.state.turn or self._answered
        title = self._page.title if self._page is not None else self.lens.view.title
        is_told = not turn or not self._num_turns or "turn" in title
        which = [] if is_told else [f"turn {turn} of {self._num_turns}"]
        about = [*which, one_line(self._chat_name)]
        right = self._doing or shorten(" · ".join(about), max(10, width // 2))
        left = shorten(title, max(10, width - MARGIN - len(right) - 2))
        gap = " " * max(1, width - MARGIN - len(left) - len(right))
        self.query_one("#lens-title", Static).update(
            Content.assemble((left, "bold"), gap, (right, TITLE if self._doing else MUTED))
        )
        self.query_one("#lens-keys", Static).update(Content(self._keys(width - MARGIN)))

    def _keys(self, width: int) -> str:
        """The keys of this view, and those of all; none is broken at the end of a line."""
        own = self._page.keys if self._page is not None else ""
        load = "Enter loads the model" if self.lens.can_load else ""
        return key_lines(" · ".join(filter(None, (load, own, ALWAYS))), width)

    def _known_page(self) -> Page | None:
        return self.lens.page(self._width, self.query_one(PageView).size.height or None)

    @property
    def _width(self) -> int:
        room = self.query_one(PageView).scrollable_content_region.width
        return max(20, room or self.app.size.width - MARGIN)

    # Keys

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self.run_worker(self._guarded(work), exit_on_error=False)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as failure:
            self._doing = ""
            if self.query(PageView):
                error = as_user_error(failure)
                self._show(problem_page(self.lens.view.title, error, self._width))
                self._draw_frame()

    def _show_view(self, name: str) -> None:
        self.lens.show(name)
        self._update()

    def action_step(self, by: int) -> None:
        self.lens.step(by)
        self._update()

    def action_go(self, key: LensKey) -> None:
        if self.lens.press(key, self._width):
            self._update()
            return
        view = self.query_one(PageView)
        scrolls: dict[LensKey, Callable[..., None]] = {
            "up": view.scroll_up,
            "down": view.scroll_down,
            "page_up": view.scroll_page_up,
            "page_down": view.scroll_page_down,
            "home": view.scroll_home,
            "end": view.scroll_end,
        }
        if (scroll := scrolls.get(key)) is not None:
            scroll(animate=False)

    def action_turn(self, by: int) -> None:
        self._do(self._step_turn(by))

    async def _step_turn(self, by: int) -> None:
        if await asyncio.to_thread(self.lens.step_turn, by):
            self._update()

    def action_enter(self) -> None:
        if self.lens.can_load:
            self._do(self._load())
        elif self.lens.view is VIEWS[0]:
            self._do(self._leave_for_figures())
        elif self.lens.view.need != "disk":
            self._do(self._name_model())

    async def _name_model(self) -> None:
        if model := await asyncio.to_thread(self.lens.other_model):
            words = f"{model_name(model)} read this turn. /model {one_line(model)} loads it."
            self.notify(words, markup=False)

    async def _load(self) -> None:
        self._doing = "loading the model …"
        self._draw_frame()
        await asyncio.to_thread(self.lens.source.load)
        self._doing = ""
        self._read_anew()

    async def _leave_for_figures(self) -> None:
        turn = self.lens.state.turn or await asyncio.to_thread(self.lens.source.last_answered)
        self.dismiss(turn or None)

    def action_export(self) -> None:
        if self._page is not None:
            self._do(self._export(self._page))

    async def _export(self, page: Page) -> None:
        title = "Write this page to a file: .svg, .png, .json or .txt"
        suggested = export_name(self._chat_name, self.lens.view.name)
        name = await self.app.push_screen_wait(AskTextScreen(title, suggested))
        if name is not None:
            try:
                done = await asyncio.to_thread(export_page, page, name)
            except Exception as failure:
                error = as_user_error(failure)
                self.notify(f"{error.message} {error.hint}", severity="warning", markup=False)
            else:
                self.notify(done, markup=False)

    def action_leave(self) -> None:
        self.dismiss(None)
