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
from textual.widgets import Static

from chatcache.backends.base import (
    BackendEvent,
    BackendFailed,
    CacheEvent,
    CacheSnapshot,
    ModelReady,
    Prepared,
)
from chatcache.chat.views import SessionSummary
from chatcache.frontend import registry
from chatcache.frontend.sampling import Sampling
from chatcache.tui import commands, layout, messages
from chatcache.tui.actions import Actions
from chatcache.tui.chats import Chats
from chatcache.tui.idle import IdleHooks
from chatcache.tui.options import ChatOptions
from chatcache.tui.screens.chat_shape import Column, ShapedScreen
from chatcache.tui.screens.segments import SegmentsScreen
from chatcache.tui.status import BackendStatus
from chatcache.tui.turns import RunningTurn, Turns
from chatcache.tui.widgets.cache_panel import CacheLine, CachePanel
from chatcache.tui.widgets.command_popup import CommandPopup
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.first_run import FirstRunBar
from chatcache.tui.widgets.notice import Notice
from chatcache.tui.widgets.status_bar import StatusBar
from chatcache.tui.widgets.title_bar import TitleBar
from chatcache.tui.widgets.transcript import EarlierTurns, Transcript
from chatcache.tui.widgets.welcome import Welcome
from chatcache.tui.worker import as_user_error

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService

DOUBLE_PRESS_SECONDS = 0.6
_MESSAGE_HINTS = ("edit", "regenerate", "fork", "copy", "inspect", "delete")
PLACEHOLDER = "Say something. Enter sends, Ctrl+J adds a line, / lists the commands"
_Result = TypeVar("_Result")
_Args = ParamSpec("_Args")


class ChatScreen(ShapedScreen):
    """One chat at a time."""

    BINDINGS = commands.bindings("chat")
    AUTO_FOCUS = "#composer"

    def __init__(self, service: ChatService, options: ChatOptions) -> None:
        super().__init__(layout.as_panel_mode(options.panel) or "full")
        self.service = service
        self.options = options
        self.sampling = options.sampling
        self.status = BackendStatus()
        self.turns = Turns(self)
        self.chats = Chats(self)
        self.actions = Actions(self)
        self.idle = IdleHooks(self)
        self._escaped_at = 0.0
        self._unsubscribe: Callable[[], None] | None = None

    def compose(self) -> ComposeResult:
        popup = CommandPopup()
        yield TitleBar(id="title-bar")
        yield FirstRunBar(id="first-run")
        with Horizontal(id="middle"):
            with Column(id="column"):
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
        self.set_sampling(self.sampling)
        self._apply_panel_mode()
        self.refresh_status()
        self.refresh_panel()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """After the first paint: listen to the engine, and open the chat that was asked for."""
        self.run_async(self._listen())
        self.run_async(self.chats.open_first(self.options.session_ref))
        self.run_async(self.actions.offer_another())

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
    def think(self) -> bool | None:
        return self.sampling.think

    def set_sampling(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.panel_state.sampling = tuple(sampling.words())
        self.refresh_panel()

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
            "model": "another model",
            "message.edit": "edit",
            "message.regenerate": "again",
            "message.fork": "fork",
            "message.copy": "copy",
            "message.inspect": "figures",
            "message.delete": "delete",
        }
        keys = [(registry.key_words(i, self.options.keys), words.get(i, i)) for i in ids]
        return [(key[0], word) for key, word in keys if key]

    # What the backend says

    @on(messages.BackendChanged)
    async def _backend_changed(self, message: messages.BackendChanged) -> None:
        event = message.event
        if isinstance(event, CacheSnapshot):
            self.panel_state.snapshot = event
            if isinstance(shown := self.app.screen, SegmentsScreen):
                shown.show_segments(event.segments)
        elif isinstance(event, CacheEvent):
            self.panel_state.events.append(event)
        elif isinstance(event, Prepared):
            self.panel_state.idle.note(event)
        else:
            self.status.absorb(event)
            self.panel_state.info = self.status.info
            if isinstance(event, ModelReady):
                self.actions.model_ready(event.info)
                self.idle.opened()
                for welcome in self.query(Welcome):
                    welcome.show_model(event.info)
            elif isinstance(event, BackendFailed) and not event.will_restart:
                self.run_async(self._show_load_failure())
                self.actions.model_failed()
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
        meant = registry.parse(message.text)
        if isinstance(meant, registry.Unknown):
            self.run_async(self.show_error(f"There is no command /{meant.word}.", meant.hint))
            return
        self.composer.reset()
        if isinstance(meant, registry.Call):
            self.actions.run(meant.command.id, meant.argument)
        else:
            self.query_one(FirstRunBar).hide()
            self.composer.remember(meant.text)
            self.chats.submit(meant.text)

    @on(messages.CommandChosen)
    def _command_chosen(self, message: messages.CommandChosen) -> None:
        self.actions.run(message.command_id, message.argument)

    @on(messages.FilesWanted)
    def _files_wanted(self) -> None:
        self.run_async(self.actions.find_files())

    @on(messages.FilePicked)
    def _file_picked(self, message: messages.FilePicked) -> None:
        self.actions.run("attach", message.path)

    def on_descendant_focus(self) -> None:
        """The keys that work on a message are shown while one has the focus."""
        self.refresh_status()

    @on(messages.MessageActed)
    def _message_acted(self, message: messages.MessageActed) -> None:
        self.actions.act_on_message(message.action, message.turn, message.node_id)

    @on(EarlierTurns.Asked)
    def _earlier_asked(self) -> None:
        self.run_async(self.chats.load_earlier())

    @on(Composer.Edited)
    def _edited(self) -> None:
        self._escaped_at = 0.0
        self.idle.edited()

    def action_command(self, command_id: str) -> None:
        self.actions.run(command_id, "")

    def action_escape(self) -> None:
        """Close the list, else stop, else go back to writing; twice on an idle screen: fork."""
        composer = self.composer
        if composer.close_popup() or self.turns.stop() or self.actions.cancel_switch():
            return
        if self.query_one(FirstRunBar).hide():
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

    def refresh_status(self) -> None:
        self.query_one(TitleBar).show_model(self.status.model_line)
        self.query_one(StatusBar).show_state(self.status, self.turns.doing)
        is_walking = self.transcript.focused_block is not None
        self.set_class(is_walking, "-walking")
        ids = ["help", "fork"] if self._is_narrow else ["help", "fork", "sessions", "panel"]
        if is_walking:
            ids = [f"message.{one}" for one in _MESSAGE_HINTS]
        elif self._is_narrow and self.status.loading is not None:
            ids = []  # the figures of a download need the room
        self.query_one(StatusBar).show_hints(self.hints(ids))
