"""The main screen: transcript, composer, panel, and the state they share.

Owns which chat is open and what the backend last said. Turns are run by `Turns`, commands by
`Actions`; everything slow happens in threads, and arrives here as messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from chatcache.errors import ChatcacheError
from chatcache.frontend import registry
from chatcache.tui import backstage, commands, layout, messages
from chatcache.tui.failures import as_user_error
from chatcache.tui.hints import hints, status_ids
from chatcache.tui.options import ChatOptions
from chatcache.tui.screens.chat_shape import Column, ShapedScreen
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.cache_panel import CacheLine, CachePanel
from chatcache.tui.widgets.command_popup import CommandPopup
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.first_run import FirstRunBar
from chatcache.tui.widgets.notice import Notice
from chatcache.tui.widgets.status_bar import StatusBar
from chatcache.tui.widgets.title_bar import TitleBar
from chatcache.tui.widgets.transcript import EarlierTurns, Transcript

if TYPE_CHECKING:
    from chatcache.chat.service import ChatService
    from chatcache.chat.views import SessionSummary
    from chatcache.frontend.sampling import Sampling
    from chatcache.tui.actions import Actions
    from chatcache.tui.backstage import Backstage
    from chatcache.tui.chats import Chats
    from chatcache.tui.idle import IdleHooks
    from chatcache.tui.listening import Listening
    from chatcache.tui.long_work import LongWork
    from chatcache.tui.turns import RunningTurn, Turns

DOUBLE_PRESS_SECONDS = 0.6
PLACEHOLDER = "Say something. Enter sends, Ctrl+J adds a line, / lists the commands"
_Result = TypeVar("_Result")
_Args = ParamSpec("_Args")


class ChatScreen(ShapedScreen):
    """One chat at a time. What stands behind it is opened after the first paint."""

    BINDINGS = commands.bindings("chat")
    AUTO_FOCUS = "#composer"

    sampling: Sampling

    def __init__(self, open_backstage: Callable[[], Backstage], options: ChatOptions) -> None:
        super().__init__(layout.as_panel_mode(options.panel) or "full")
        self.options = options
        self.status = BackendStatus()
        self._open_backstage = open_backstage
        self._backstage: Backstage | None = None
        self._is_open = asyncio.Event()
        self._escaped_at = 0.0

    # What works for the screen. Each is imported when it is first asked for.

    @cached_property
    def turns(self) -> Turns:
        from chatcache.tui.turns import Turns

        return Turns(self)

    @cached_property
    def chats(self) -> Chats:
        from chatcache.tui.chats import Chats

        return Chats(self)

    @cached_property
    def actions(self) -> Actions:
        from chatcache.tui.actions import Actions

        return Actions(self)

    @cached_property
    def idle(self) -> IdleHooks:
        from chatcache.tui.idle import IdleHooks

        return IdleHooks(self)

    @cached_property
    def listening(self) -> Listening:
        from chatcache.tui.listening import Listening

        return Listening(self)

    @cached_property
    def work(self) -> LongWork:
        from chatcache.tui.long_work import LongWork

        return LongWork(self)

    @property
    def backstage(self) -> Backstage:
        """Nothing asks for it before `is_open`."""
        if self._backstage is None:
            raise RuntimeError("asked for before it was opened")
        return self._backstage

    @property
    def service(self) -> ChatService:
        return self.backstage.service

    @property
    def is_open(self) -> bool:
        return self._backstage is not None

    def compose(self) -> ComposeResult:
        popup = CommandPopup()
        yield TitleBar(id="title-bar")
        yield FirstRunBar(id="first-run")
        with Horizontal(id="middle"):
            with Column(id="column"):
                yield Transcript(id="transcript")
                with Vertical(id="writing"):
                    yield CacheLine(id="cache-line")
                    yield popup
                    yield Composer(popup, PLACEHOLDER)
            yield CachePanel(id="cache-panel")
        yield StatusBar(id="status-bar")
        yield Static(id="too-small", markup=False)

    def on_mount(self) -> None:
        self._is_narrow = self.app.size.width < layout.NARROW_BELOW
        self.query_one(TitleBar).show_session(None, None)
        self._apply_panel_mode()
        self.refresh_status()
        self.refresh_panel()
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        self.run_worker(self._open(), exit_on_error=False)

    async def _open(self) -> None:
        """After the first paint: open what is behind, listen to the engine, show a chat."""
        try:
            self._backstage = await self.ask(self._open_backstage)
        except Exception as failure:
            self.app.exit(failure)
            return
        await self.ask(backstage.load_chat)
        self.set_sampling(self._backstage.sampling)
        self._is_open.set()
        self.run_async(self.listening.begin())
        self.run_async(self.chats.open_first(self.options.session_ref))
        await self.ask(backstage.load_rest)
        self.run_async(self.actions.offer_another())

    def leave(self) -> None:
        """Keep what is written and the mode of the panel, and end what is being answered."""
        if self.is_open:
            self.chats.save()
            self.service.stop()
        keep = self.options.keep_setting
        if keep is not None and self.kept_panel_mode != self.options.panel:
            with contextlib.suppress(ChatcacheError):  # a setting is not worth a failing exit
                keep("ui.panel", self.kept_panel_mode)

    def on_unmount(self) -> None:
        if self.is_open:
            self.listening.end()

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
            if not self.query(TitleBar):
                return  # the program is being left: there is nobody and nothing to tell it
            error = as_user_error(failure)
            await self.show_error(error.message, error.hint)

    def run_command(self, command_id: str, argument: str = "") -> None:
        """Run a command of the registry, as soon as there is something to run it on."""

        async def run() -> None:
            await self._is_open.wait()
            await self.actions.handler(command_id)(argument)

        self.run_async(run())

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

    # What the backend says

    @on(messages.BackendChanged)
    def _backend_changed(self, message: messages.BackendChanged) -> None:
        self.listening.take(message.event)

    # What a turn says

    @on(messages.TurnAdvanced)
    def _turn_advanced(self, message: messages.TurnAdvanced) -> None:
        if self.turns.is_current(message):
            self.turns.advance(message.event)

    @on(messages.AnswerGrew)
    def _answer_grew(self, message: messages.AnswerGrew) -> None:
        if self.turns.is_current(message):
            self.turns.grow()

    @on(messages.TurnRaised)
    def _turn_failed(self, message: messages.TurnRaised) -> None:
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
            self.run_command(meant.command.id, meant.argument)
        else:
            self.query_one(FirstRunBar).hide()
            self.composer.remember(meant.text)
            self.chats.submit(meant.text)

    @on(messages.CommandChosen)
    def _command_chosen(self, message: messages.CommandChosen) -> None:
        self.run_command(message.command_id, message.argument)

    @on(messages.FilesWanted)
    def _files_wanted(self) -> None:
        self.run_async(self.actions.find_files())

    @on(messages.FilePicked)
    def _file_picked(self, message: messages.FilePicked) -> None:
        self.run_command("attach", message.path)

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
        if self.is_open:
            self.idle.edited()

    def action_command(self, command_id: str) -> None:
        self.run_command(command_id)

    def action_escape(self) -> None:
        """Close the list, else stop, else go back to writing; twice on an idle screen: fork."""
        composer = self.composer
        if composer.close_popup() or self.turns.stop() or self.work.stop():
            return
        if self.actions.cancel_switch() or self.uncover():
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
                self.run_command("fork")
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
        self.composer.focus()
        self.run_async(self.turns.flush())

    def action_walk(self, step: int) -> None:
        if not self.transcript.walk(step):
            self.composer.focus()

    def refresh_status(self) -> None:
        self.query_one(TitleBar).show_model(self.status.model_line)
        doing = self.turns.doing if self.is_open else ""
        work = self.work.shown if self.is_open else None
        ahead = self.panel_state.restore_words
        self.query_one(StatusBar).show_state(self.status, doing, work, ahead)
        is_walking = self.transcript.focused_block is not None
        self.set_class(is_walking, "-walking")
        ids = status_ids(
            self.status,
            is_narrow=self._is_narrow,
            is_walking=is_walking,
            is_empty=not self.transcript.blocks,
            is_working=work is not None,
        )
        self.query_one(StatusBar).show_hints(hints(ids, self.options.keys))
