"""The main screen: transcript, composer, panel, and the state they share.

Owns which chat is open and what the backend last said. Turns are run by `Turns`, commands by
`Actions`; everything slow happens in threads, and arrives here as messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Static

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CacheSnapshot,
    ModelReady,
)
from chatcache.chat.views import SessionSummary
from chatcache.tui import commands, layout, messages
from chatcache.tui.actions import Actions
from chatcache.tui.chats import Chats
from chatcache.tui.options import ChatOptions
from chatcache.tui.panel_model import PanelState
from chatcache.tui.status import BackendStatus
from chatcache.tui.turns import RunningTurn, Turns
from chatcache.tui.widgets.cache_panel import CacheLine, CachePanel
from chatcache.tui.widgets.command_popup import CommandPopup
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.notice import Notice
from chatcache.tui.widgets.status_bar import StatusBar
from chatcache.tui.widgets.title_bar import TitleBar
from chatcache.tui.widgets.transcript import EarlierTurns, Transcript
from chatcache.tui.widgets.welcome import Welcome
from chatcache.tui.worker import as_user_error

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

DOUBLE_PRESS_SECONDS = 0.6
PLACEHOLDER = "Say something. Enter sends, Ctrl+J adds a line, / lists the commands"
_Result = TypeVar("_Result")
_Args = ParamSpec("_Args")


class ChatScreen(Screen[None]):
    """One chat at a time."""

    BINDINGS = commands.bindings("chat")
    AUTO_FOCUS = "#composer"

    def __init__(self, service: ChatService, options: ChatOptions) -> None:
        super().__init__()
        self.service = service
        self.options = options
        self.sampling, self.think = options.sampling, options.think
        self.status = BackendStatus()
        self.panel_state = PanelState()
        self.turns = Turns(self)
        self.chats = Chats(self)
        self.actions = Actions(self)
        self.panel_mode: layout.PanelMode = layout.as_panel_mode(options.panel) or "full"
        self._is_narrow = False
        self._panel_covers = False
        self._is_panel_due = False
        self._escaped_at = 0.0
        self._unsubscribe: Callable[[], None] | None = None

    def compose(self) -> ComposeResult:
        popup = CommandPopup()
        yield TitleBar(id="title-bar")
        with Horizontal(id="middle"):
            with Vertical(id="column"):
                yield Transcript(id="transcript")
                with Vertical(id="writing"):
                    yield CacheLine(id="cache-line", markup=False)
                    yield popup
                    yield Composer(popup, PLACEHOLDER)
            yield CachePanel(id="cache-panel")
        yield StatusBar(id="status-bar")
        yield Static(id="too-small", markup=False)

    def on_mount(self) -> None:
        self._is_narrow = self.app.size.width < layout.NARROW_BELOW
        self.chats.show_title()
        self._apply_panel_mode()
        self.refresh_status()
        self.refresh_panel()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """After the first paint: listen to the engine, and open the chat that was asked for."""
        self.run_async(self._listen())
        self.run_async(self.chats.open_first(self.options.session_ref))

    async def _listen(self) -> None:
        backend = self.service.backend
        if backend is None:
            return
        self._unsubscribe = await self.ask(backend.subscribe, self._tell)

    def _tell(self, event: BackendEvent) -> None:
        """Called in a thread of the backend."""
        self.post_message(messages.BackendChanged(event))

    def on_unmount(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()

    # What turns, commands and chats use

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def now(self) -> float:
        return self.options.clock()

    @property
    def model_name(self) -> str:
        return self.status.info.model if self.status.info else "assistant"

    async def ask(
        self, function: Callable[_Args, _Result], *args: _Args.args, **kwargs: _Args.kwargs
    ) -> _Result:
        """Call something that may block, in a thread."""
        return await asyncio.to_thread(function, *args, **kwargs)

    def run_async(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a coroutine beside the message loop; what goes wrong is shown as one line."""
        self.run_worker(self._guarded(work), exit_on_error=False)

    async def _guarded(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except Exception as failure:
            error = as_user_error(failure)
            await self.show_error(error.message, error.hint)

    async def ensure_session(self) -> SessionSummary:
        return await self.chats.ensure()

    async def show_error(self, message: str, hint: str = "") -> None:
        await self.transcript.add(Notice(message, hint, is_error=True))

    async def show_note(self, message: str, hint: str = "") -> None:
        await self.transcript.add(Notice(message, hint))

    def toast(self, message: str, *, is_warning: bool = False) -> None:
        self.notify(message, severity="warning" if is_warning else "information", markup=False)

    def give_back_text(self, text: str) -> None:
        """Put words that were not sent back where they were written."""
        written = self.composer.text
        self.composer.set_text(f"{text}\n\n{written}" if written.strip() else text)

    def clear_composer(self) -> bool:
        """Empty the composer (Ctrl+Z brings it back); False when it was empty."""
        if not self.composer.text:
            return False
        self.composer.clear_text()
        return True

    async def turn_ended(self, running: RunningTurn) -> None:
        await self.chats.refresh_last_turn(running)
        await self.transcript.prune()

    def hints(self, ids: list[str]) -> list[tuple[str, str]]:
        """Keys with a word each, as they are bound now."""
        words = {
            "help": "help",
            "fork": "fork",
            "sessions": "chats",
            "new": "new",
            "panel": "cache",
        }
        keys = [(commands.key_words(i, self.options.keys), words.get(i, i)) for i in ids]
        return [(key[0], word) for key, word in keys if key]

    # What the backend says

    @on(messages.BackendChanged)
    async def _backend_changed(self, message: messages.BackendChanged) -> None:
        event = message.event
        if isinstance(event, CacheSnapshot):
            self.panel_state.snapshot = event
        elif isinstance(event, CacheEvent):
            self.panel_state.events.append(event)
        else:
            self.status.absorb(event)
            self.panel_state.info = self.status.info
            if isinstance(event, ModelReady):
                for welcome in self.query(Welcome):
                    welcome.show_model(event.info)
            elif isinstance(event, BackendFailed) and not event.will_restart:
                self.run_async(self._show_load_failure())
            self.refresh_status()
        self.refresh_panel()

    async def _show_load_failure(self) -> None:
        await self.chats.wait_opened()
        await self.show_error(*self.status.failure_words)

    # What a turn says

    @on(messages.TurnAdvanced)
    def _turn_advanced(self, message: messages.TurnAdvanced) -> None:
        if self.turns.is_current(message):
            self.turns.advance(message.event)

    @on(messages.AnswerGrew)
    def _answer_grew(self, message: messages.AnswerGrew) -> None:
        if self.turns.is_current(message):
            self.turns.grow()

    @on(messages.TurnFailed)
    def _turn_failed(self, message: messages.TurnFailed) -> None:
        if self.turns.is_current(message):
            self.turns.fail(message.error)

    @on(messages.TurnEnded)
    def _turn_ended(self, message: messages.TurnEnded) -> None:
        if self.turns.is_current(message):
            self.run_async(self.turns.finish())

    @on(Transcript.Followed)
    def _followed(self) -> None:
        self.run_async(self.turns.flush())

    # What the user does

    @on(messages.PromptSubmitted)
    def _submitted(self, message: messages.PromptSubmitted) -> None:
        meant = commands.parse(message.text)
        if isinstance(meant, commands.Unknown):
            self.run_async(self.show_error(f"There is no command /{meant.word}.", meant.hint))
            return
        self.composer.reset()
        if isinstance(meant, commands.Call):
            self.actions.run(meant.command.id, meant.argument)
        else:
            self.composer.remember(meant.text)
            self.chats.submit(meant.text)

    @on(messages.CommandChosen)
    def _command_chosen(self, message: messages.CommandChosen) -> None:
        self.actions.run(message.command_id, message.argument)

    @on(messages.MessageActed)
    def _message_acted(self, message: messages.MessageActed) -> None:
        self.actions.act_on_message(message.action, message.turn, message.node_id)

    @on(EarlierTurns.Asked)
    def _earlier_asked(self) -> None:
        self.run_async(self.chats.load_earlier())

    @on(Composer.Edited)
    def _edited(self) -> None:
        self._escaped_at = 0.0

    def action_command(self, command_id: str) -> None:
        self.actions.run(command_id, "")

    def action_escape(self) -> None:
        """Close the list, else stop, else go back to writing; twice on an idle screen: fork."""
        composer = self.composer
        if composer.close_popup() or self.turns.stop():
            return
        if not composer.has_focus:
            composer.focus()
        elif self.chats.editing_turn is not None:
            self.chats.end_editing()
        elif not composer.text:
            now = time.monotonic()
            if now - self._escaped_at < DOUBLE_PRESS_SECONDS:
                self.actions.run("fork", "")
            self._escaped_at = now

    def action_page_up(self) -> None:
        self.transcript.scroll_page_up(animate=False)

    def action_page_down(self) -> None:
        self.transcript.scroll_page_down(animate=False)

    def action_top(self) -> None:
        if self.transcript.scroll_y <= 0 and self.query(EarlierTurns):
            self.run_async(self.chats.load_earlier())
        else:
            self.transcript.scroll_home(animate=False)

    def action_follow(self) -> None:
        self.transcript.anchor()
        self.run_async(self.turns.flush())

    def action_walk(self, step: int) -> None:
        if not self.transcript.walk(step):
            self.composer.focus()

    # Shape

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        is_small = layout.is_too_small(width, height)
        self.set_class(is_small, "-too-small")
        if is_small:
            self.query_one("#too-small", Static).update(
                f"The terminal has {width} × {height} cells.\n"
                f"chatcache needs {layout.MIN_WIDTH} × {layout.MIN_HEIGHT}."
            )
        is_narrow = width < layout.NARROW_BELOW
        if is_narrow != self._is_narrow:
            self._is_narrow, self._panel_covers = is_narrow, False
        self._apply_panel_mode()
        self.refresh_status()

    def _center(self) -> None:
        column = self.query_one("#column").size.width
        margin = layout.side_margin(column)
        top = 0 if self.size.height < layout.TINY_BELOW else 1
        self.transcript.styles.padding = (top, margin, 0, margin)
        self.query_one("#writing").styles.padding = (0, max(0, margin - 2))

    @property
    def shown_panel_mode(self) -> layout.PanelMode:
        """Without room the full panel is one line, unless it was asked for: then it covers."""
        if self.panel_mode == "full" and self._is_narrow and not self._panel_covers:
            return "compact"
        return self.panel_mode

    def set_panel_mode(self, mode: layout.PanelMode) -> None:
        self.panel_mode, self._panel_covers = mode, self._is_narrow
        self._apply_panel_mode()

    def _apply_panel_mode(self) -> None:
        shown = self.shown_panel_mode
        self.query_one(CachePanel).display = shown == "full"
        has_room = self.app.size.height >= layout.TINY_BELOW
        self.query_one(CacheLine).display = shown == "compact" and has_room
        self.refresh_panel()
        self.call_after_refresh(self._center)

    def refresh_panel(self) -> None:
        """Draw the figures anew, once per refresh however often it is asked for."""
        if not self._is_panel_due:
            self._is_panel_due = True
            self.call_after_refresh(self._draw_panel)

    def _draw_panel(self) -> None:
        self._is_panel_due = False
        self.query_one(CachePanel).show(self.panel_state, self.now)
        self.query_one(CacheLine).show(self.panel_state)

    def refresh_status(self) -> None:
        self.query_one(TitleBar).show_model(self.status.model_line)
        self.query_one(StatusBar).show_state(self.status, self.turns.doing)
        ids = ["help", "fork"] if self._is_narrow else ["help", "fork", "sessions", "panel"]
        self.query_one(StatusBar).show_hints(self.hints(ids))
