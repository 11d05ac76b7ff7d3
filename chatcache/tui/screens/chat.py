"""The main screen: transcript, composer, panel, status line; the stage of what works behind it.

Owns the widgets and where each message goes. Turns, commands and the open chat are parts of their
own (`parts/wiring.py`), made after the first paint; everything slow happens in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from functools import cached_property
from typing import TYPE_CHECKING, Any

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.events import Key
from textual.screen import Screen
from textual.widgets import Static

from chatcache.errors import ChatcacheError
from chatcache.frontend.options import ChatOptions
from chatcache.tui import commands, late_imports, messages
from chatcache.tui.failures import as_user_error
from chatcache.tui.hints import hints, status_ids
from chatcache.tui.look import layout
from chatcache.tui.parts.drafts import DraftKeeper
from chatcache.tui.screens.chat_shape import Column, ShapedScreen
from chatcache.tui.stage import Args, Result
from chatcache.tui.status import BackendStatus
from chatcache.tui.widgets.bars import FirstRunBar, StatusBar, TitleBar
from chatcache.tui.widgets.cache_panel import CacheLine, CachePanel
from chatcache.tui.widgets.command_popup import CommandPopup
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.notices import Notice, Welcome
from chatcache.tui.widgets.transcript import EarlierTurns, Transcript

if TYPE_CHECKING:
    from chatcache.frontend.options import Backstage
    from chatcache.tui.actions.table import Actions
    from chatcache.tui.parts.wiring import ChatParts

DOUBLE_PRESS_SECONDS = 0.6
DIALOG_SECONDS = 0.5


class ChatScreen(ShapedScreen):
    """One chat at a time. What stands behind it is opened after the first paint."""

    BINDINGS = commands.bindings("chat")
    AUTO_FOCUS = "#composer"

    def __init__(self, open_backstage: Callable[[], Backstage], options: ChatOptions) -> None:
        super().__init__(layout.as_panel_mode(options.panel) or "full")
        self.options = options
        self.status = BackendStatus()
        self.drafts = DraftKeeper(self, options.drafts_path)
        self._open_backstage = open_backstage
        self._parts: ChatParts | None = None
        self._is_open = asyncio.Event()
        self._is_settled = asyncio.Event()  # not while a command may be about to open a dialog
        self._is_settled.set()
        self._escaped_at = 0.0

    @property
    def is_open(self) -> bool:
        return self._parts is not None

    @property
    def parts(self) -> ChatParts:
        """Nothing asks for them before `is_open`."""
        if self._parts is None:
            raise RuntimeError("asked for before they were there")
        return self._parts

    @cached_property
    def actions(self) -> Actions:
        """Imported when a command is asked for: the first chat is shown before."""
        from chatcache.tui.actions.table import Actions

        return Actions(self.app, self.parts)

    @property
    def is_answering(self) -> bool:
        return self.is_open and self.parts.turns.running is not None

    def stop_answer(self) -> bool:
        """Ask the running turn to end; False when there is none."""
        return self.is_open and self.parts.turns.stop()

    def compose(self) -> ComposeResult:
        popup = CommandPopup()
        composer = Composer(popup)
        self.drafts.watch(composer)
        yield TitleBar(id="title-bar")
        yield FirstRunBar(id="first-run")
        with Horizontal(id="middle"):
            with Column(id="column"):
                yield Transcript(id="transcript")
                with Vertical(id="writing"):
                    yield CacheLine(id="cache-line")
                    yield popup
                    yield composer
            yield CachePanel(id="cache-panel")
        yield StatusBar(id="status-bar")
        yield Static(id="too-small", markup=False)

    def on_mount(self) -> None:
        self._is_narrow = self.app.size.width < layout.NARROW_BELOW
        self.query_one(TitleBar).show_session(None, None)
        self._apply_panel_mode()
        self.refresh_status()
        self.refresh_panel()
        self.call_after_refresh(lambda: self.run_worker(self._open(), exit_on_error=False))

    async def _open(self) -> None:
        """After the first paint: open what is behind, listen to the engine, show a chat."""
        try:
            opened = await self.ask(self._open_backstage)
        except Exception as failure:
            self.app.exit(failure)
            return
        await self.ask(late_imports.load_chat)
        self._parts = self._assemble(opened)
        self.parts.view.show_sampling()
        self._is_open.set()
        self.run(self.parts.listening.begin())
        self.run(self.parts.view.open_first())
        for note in await self.ask(opened.service.store.untold):
            self.toast(note)
        await self.ask(late_imports.load_rest)
        self.run(self.actions.models.offer_another(self.query_one(FirstRunBar)))

    def _assemble(self, opened: Backstage) -> ChatParts:
        from chatcache.tui.parts.wiring import ChatParts

        return ChatParts(
            self,
            opened,
            self.options,
            self.status,
            self.panel_state,
            self.query_one(TitleBar),
            self.transcript,
            self.composer,
            self.drafts,
        )

    def leave(self) -> None:
        """Keep what is written and the mode of the panel, and end what is being answered."""
        self.drafts.keep_now()
        if self.is_open:
            self.parts.view.note_left()
            self.parts.chat.service.stop()
        keep = self.options.keep_setting
        if keep is not None and self.kept_panel_mode != self.options.panel:
            with contextlib.suppress(ChatcacheError):  # a setting is not worth a failing exit
                keep("ui.panel", self.kept_panel_mode)

    def on_unmount(self) -> None:
        if self.is_open:
            self.parts.listening.end()

    # The stage

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def now(self) -> float:
        return self.options.clock()

    async def ask(
        self, function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs
    ) -> Result:
        return await asyncio.to_thread(function, *args, **kwargs)

    async def push_screen_wait(self, screen: Screen[Result]) -> Result:
        dismissed = self.app.push_screen(screen, wait_for_dismiss=True)
        self._is_settled.set()
        return await dismissed

    async def wait_settled(self) -> None:
        """Until it is clear where keys go: what is typed ahead of a dialog is not for the
        composer."""
        try:
            await asyncio.wait_for(self._is_settled.wait(), DIALOG_SECONDS)
        except TimeoutError:
            self._is_settled.set()

    def run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.run_worker(self._guarded(work), exit_on_error=False)

    async def _guarded(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except Exception as failure:
            if not self.query(TitleBar):
                return  # the program is being left: there is nobody and nothing to tell it
            error = as_user_error(failure)
            await self.show_error(error.message, error.hint)

    async def show_error(self, message: str, hint: str = "") -> None:
        await self.transcript.add(Notice(message, hint, is_error=True))

    async def show_note(self, message: str, hint: str = "") -> None:
        await self.transcript.add(Notice(message, hint))

    def toast(self, message: str, *, is_warning: bool = False) -> None:
        self.notify(message, severity="warning" if is_warning else "information", markup=False)

    # What the backend says

    @on(messages.BackendChanged)
    def _backend_changed(self, message: messages.BackendChanged) -> None:
        self.parts.listening.take(message.event)

    @on(messages.ModelBecameReady)
    def _model_became_ready(self, message: messages.ModelBecameReady) -> None:
        self.run(self.actions.models.ready(message.info))
        self.tell_above(messages.LensOutdated())
        self.parts.idle.opened()
        for welcome in self.query(Welcome):
            welcome.show_model(message.info)

    @on(messages.ModelGaveUp)
    def _model_gave_up(self, message: messages.ModelGaveUp) -> None:
        self.run(self.parts.view.show_later(message.sentence, message.hint))
        self.actions.models.go_back()

    @on(messages.SegmentsChanged)
    def _segments_changed(self, message: messages.SegmentsChanged) -> None:
        self.tell_above(messages.SegmentsChanged(message.segments))

    @on(messages.RestoreShown)
    def _restore_shown(self, message: messages.RestoreShown) -> None:
        self.parts.turns.show_restore(message.words)

    # What a turn says

    @on(messages.RestoreEnded)
    def _restore_ended(self) -> None:
        """By a message, so that it comes behind the news of the backend that it ends."""
        self.parts.listening.restored()

    @on(messages.QueueEmptied)
    def _queue_emptied(self) -> None:
        self.parts.idle.answered()
        self.tell_above(messages.LensOutdated())

    @on(messages.ChatShown)
    def _chat_shown(self) -> None:
        self.parts.idle.opened()

    # What the user does

    @on(messages.PromptRefused)
    def _refused(self, message: messages.PromptRefused) -> None:
        self.run(self.show_error(message.message, message.hint))

    @on(messages.PromptSubmitted)
    def _submitted(self, message: messages.PromptSubmitted) -> None:
        self.query_one(FirstRunBar).hide()
        self.drafts.wait_with(message.text)
        self.run(self._say(message.text, message.turn))

    async def _say(self, text: str, turn: int | None) -> None:
        """A message, or the new text of the one that was edited."""
        await self._opened()
        if turn is None:
            self.parts.turns.send(text)
        else:
            self.parts.turns.edit(turn, text)
        self.drafts.waited_with(text)

    def _run_command(self, command_id: str, argument: str = "", *, is_typed: bool = False) -> None:
        async def run() -> None:
            try:
                await self._opened()
                await self.actions.handlers[command_id](argument)
            finally:
                self._is_settled.set()

        self.drafts.command_began("" if is_typed else self.composer.full_text)
        self._is_settled.clear()
        self.run(run())

    async def _opened(self) -> None:
        """Until there is a chat to work on: what is typed at once is done in its order then."""
        await self._is_open.wait()
        await self.parts.view.wait_opened()

    @on(messages.CommandChosen)
    def _command_chosen(self, message: messages.CommandChosen) -> None:
        self._run_command(message.command_id, message.argument, is_typed=message.is_typed)

    @on(messages.FilesWanted)
    def _files_wanted(self) -> None:
        async def find() -> None:
            await self._is_open.wait()
            await self.actions.writing.find_files()

        self.run(find())

    def on_key(self, event: Key) -> None:
        """What is typed while a message has the focus, and is no key of its, is writing."""
        if event.is_printable and event.key not in self.active_bindings:
            event.stop()
            self.composer.focus()
            self.composer.post_message(event)

    def on_descendant_focus(self) -> None:
        """The keys that work on a message are shown while one has the focus."""
        self.refresh_status()

    @on(messages.MessageActed)
    def _message_acted(self, message: messages.MessageActed) -> None:
        self.actions.act_on_message(message)

    @on(EarlierTurns.Asked)
    def _earlier_asked(self) -> None:
        self.run(self.parts.view.load_earlier())

    @on(Composer.Edited)
    def _edited(self) -> None:
        self._escaped_at = 0.0
        self.drafts.edited()
        if self.is_open:
            self.parts.idle.edited()

    def action_command(self, command_id: str) -> None:
        self._run_command(command_id)

    def action_escape(self) -> None:
        """Close the list, else stop, else go back to writing; twice on an idle screen: fork."""
        composer = self.composer
        if composer.close_popup() or self._stop_something() or self.uncover():
            return
        if self.query_one(FirstRunBar).hide():
            return
        if not composer.has_focus:
            composer.focus()
        elif composer.end_editing() is not None:
            return
        elif not composer.text:
            now = time.monotonic()
            if now - self._escaped_at < DOUBLE_PRESS_SECONDS:
                self._run_command("fork")
            self._escaped_at = now

    def _stop_something(self) -> bool:
        """Stop the turn, else the long work, else the load; False when nothing is going on."""
        if not self.is_open:
            return False
        parts = self.parts
        return parts.turns.stop() or parts.work.stop() or self.actions.models.cancel_switch()

    def action_page_up(self) -> None:
        self.transcript.scroll_page_up(animate=False)

    def action_page_down(self) -> None:
        self.transcript.scroll_page_down(animate=False)

    def action_top(self) -> None:
        if self.transcript.scroll_y <= 0 and self.query(EarlierTurns):
            self.run(self.parts.view.load_earlier())
        else:
            self.transcript.scroll_home(animate=False)

    def action_follow(self) -> None:
        self.transcript.anchor()
        self.composer.focus()

    def action_walk(self, step: int) -> None:
        if not self.transcript.walk(step):
            self.composer.focus()

    def refresh_status(self) -> None:
        self.query_one(TitleBar).show_model(self.status.model_line)
        doing = self.parts.turns.doing if self.is_open else ""
        work = self.parts.work.shown if self.is_open else None
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
