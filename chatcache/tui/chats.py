"""Which chat is open, and everything that changes it: open, new, edit mode, earlier turns.

Knows sessions through the chat service only. The transcript shows the end of the path; the rest is
fetched when it is asked for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chatcache.chat.views import SessionSummary, TranscriptMessage
from chatcache.errors import ChatcacheError, NotFoundError
from chatcache.formatting import one_line
from chatcache.frontend import figures, last_chat
from chatcache.frontend.drafts import NEW_CHAT, Drafts
from chatcache.tui.hints import hints
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.blocks import make_block
from chatcache.tui.widgets.message import SystemMessage, UserMessage
from chatcache.tui.widgets.title_bar import TitleBar
from chatcache.tui.widgets.transcript import WINDOW_TURNS
from chatcache.tui.widgets.welcome import Welcome

if TYPE_CHECKING:
    from chatcache.tui.screens.chat import ChatScreen
    from chatcache.tui.turns import RunningTurn

WELCOME_KEYS = ["sessions", "fork", "model", "panel", "help"]


class Chats:
    """The open chat. `session` is None until the first message of a new one is sent."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._is_opened = asyncio.Event()
        self._drafts = Drafts(screen.options.drafts_path)
        self.session: SessionSummary | None = None
        self.system_prompt: str | None = None
        self.new_name: str | None = None
        self._origin: str | None = None
        self.editing_turn: int | None = None

    # Opening

    async def open_first(self, reference: str | None) -> None:
        """The chat named at the start, else the last one, else a new one."""
        screen = self._screen
        try:
            if reference:
                session: SessionSummary | None = await screen.ask(
                    screen.service.find_session, reference
                )
            else:
                path = screen.options.last_chat_path
                session = await screen.ask(last_chat.find, screen.service, path)
            if session is None:
                await self._show_empty()
                self._put_into_composer(self._drafts.take(NEW_CHAT))
            else:
                await self.open(session)
        except ChatcacheError as error:
            await self._show_empty()
            await screen.show_error(error.message, error.hint)
        finally:
            self._is_opened.set()

    @property
    def is_opened(self) -> bool:
        return self._is_opened.is_set()

    async def wait_opened(self) -> None:
        """Until it is decided which chat is shown first."""
        await self._is_opened.wait()

    async def open(self, session: SessionSummary, text: str | None = None) -> None:
        """Show the end of a chat. `text` goes into the composer, else the draft left there."""
        screen = self._screen
        messages = await screen.ask(
            screen.service.transcript, session.session_id, last_turns=WINDOW_TURNS
        )
        origin = await self._name_of(session.forked_from)
        self._keep_draft()
        self.end_editing()
        self.session, self.new_name, self._origin = session, None, origin
        if messages:
            await screen.transcript.show_blocks([make_block(m, screen.now) for m in messages])
        else:
            await self._show_welcome()
        answers = [figures.from_json(m.result_json, m.finish_reason) for m in messages]
        screen.panel_state.restart([figure for figure in answers if figure is not None])
        screen.composer.remember_all([m.text for m in messages if m.role == "user"])
        draft = self._drafts.take(session.session_id)
        self._put_into_composer(draft if text is None else text)
        screen.composer.focus()
        self.show_title()
        screen.refresh_status()
        screen.refresh_panel()
        screen.idle.opened()
        if messages and messages[-1].role == "user":
            await screen.show_note("This message has no answer yet.", "/regen answers it.")
        screen.run_async(screen.transcript.fill_up())

    async def open_by_reference(self, reference: str) -> None:
        await self.open(await self._screen.ask(self._screen.service.find_session, reference))

    async def start_new(self, name: str | None = None) -> None:
        """An empty chat with the same system prompt. It gets its row with its first message."""
        system = await self.current_system()
        self._keep_draft()
        self.end_editing()
        self.session, self.new_name, self._origin = None, name, None
        self.system_prompt = system
        self._screen.panel_state.restart([])
        self._screen.composer.remember_all([])
        self._screen.composer.reset()
        await self._show_empty()
        self._put_into_composer(self._drafts.take(NEW_CHAT))
        self._screen.composer.focus()

    async def ensure(self) -> SessionSummary:
        """The open chat; a new one is created now."""
        await self.wait_opened()
        if self.session is None:
            screen = self._screen
            self.session = await screen.ask(
                screen.service.create_session, self.new_name, self.system_prompt
            )
            self.show_title()
            if self.system_prompt:
                now = screen.now
                system = SystemMessage(self.system_prompt, created_at=now, now=now)
                await screen.transcript.add(system)
        return self.session

    async def current_system(self) -> str | None:
        """The system prompt of the open chat, also when it is far above the window."""
        if self.session is None:
            return self.system_prompt
        screen = self._screen
        path = await screen.ask(screen.service.transcript, self.session.session_id)
        return next((message.text for message in path if message.role == "system"), None)

    async def change_system(self, text: str | None) -> None:
        """Another system prompt for the whole chat; an empty chat just takes it along."""
        screen = self._screen
        if self.session is None:
            self.system_prompt = text
            screen.toast("The next message begins the chat with this system prompt.")
            return
        await screen.ask(screen.service.set_system, self.session.session_id, text)
        await self.reload()
        screen.toast("System prompt changed. The next answer reads everything anew.")

    async def check_current(self) -> None:
        """The list was closed: the open chat may have another name, or be gone."""
        if self.session is not None:
            try:
                self.session = await self._screen.ask(
                    self._screen.service.find_session, self.session.session_id
                )
            except NotFoundError:
                await self.forget_current()
            self.show_title()

    async def forget_current(self) -> None:
        """The open chat was deleted: show the last one that is left, else an empty one."""
        self.end_editing()
        self.session, self.system_prompt, self._origin = None, None, None
        self._screen.composer.reset()
        last = await self._screen.ask(self._screen.service.last_session)
        if last is None:
            await self.start_new()
        else:
            await self.open(last)

    async def reload(self) -> None:
        """Read the open chat anew, after something other than a turn has changed its path."""
        if self.session is not None:
            await self.open_by_reference(self.session.session_id)

    async def _name_of(self, session_id: str | None) -> str | None:
        """The name of the chat that was forked; its id when it has been deleted since."""
        if session_id is None:
            return None
        try:
            found = await self._screen.ask(self._screen.service.find_session, session_id)
        except NotFoundError:
            return "a deleted chat"
        return found.name

    def _put_into_composer(self, text: str) -> None:
        """Give the composer its text; what was typed before the first chat was there stays."""
        composer = self._screen.composer
        if self.is_opened or not composer.text:
            composer.set_text(text)

    def _keep_draft(self) -> None:
        if self.editing_turn is None and self.is_opened:
            session_id = self.session.session_id if self.session else NEW_CHAT
            self._drafts.keep(session_id, self._screen.composer.full_text)

    def save(self) -> None:
        """Keep over a restart what is written, what waits behind a running turn, and which chat
        this is."""
        if self.session is not None:
            options = self._screen.options
            last_chat.remember(options.last_chat_path, self.session.session_id, options.clock())
        if self.is_opened:
            waiting = [*self._screen.turns.queued_texts, self._screen.composer.full_text]
            session_id = self.session.session_id if self.session else NEW_CHAT
            if self.editing_turn is None:
                self._drafts.keep(session_id, "\n\n".join(text for text in waiting if text))
            self._drafts.save()

    async def _show_empty(self) -> None:
        await self._show_welcome()
        self.show_title()
        self._screen.refresh_status()
        self._screen.refresh_panel()

    async def _show_welcome(self) -> None:
        screen = self._screen
        keys = hints(WELCOME_KEYS, screen.options.keys)
        await screen.transcript.show_welcome(Welcome(screen.status.info, keys))

    def show_title(self) -> None:
        session = self.session
        title = self._screen.query_one(TitleBar)
        is_append = session is not None and session.history_mode == "append"
        name = session.name if session else self.new_name
        title.show_session(name, self._origin, is_append=is_append)

    # Sending

    def submit(self, text: str) -> None:
        """What Enter means: a message, or the new text of the one that is being edited."""
        turn = self.editing_turn
        if turn is None:
            self._screen.turns.send(text)
        else:
            self.end_editing()
            self._screen.turns.edit(turn, text)

    def begin_editing(self, turn: int, text: str) -> None:
        self.editing_turn = turn
        composer = self._screen.composer
        composer.add_class("-editing")
        composer.border_title = f"editing turn {turn} · the original stays · Esc cancels"
        composer.set_text(text)
        composer.focus()

    def end_editing(self) -> None:
        if self.editing_turn is not None:
            self.editing_turn = None
            composer = self._screen.composer
            composer.remove_class("-editing")
            composer.border_title = None
            composer.reset()

    # Reading

    async def load_earlier(self) -> None:
        """Put the next piece of the past above what is shown."""
        screen = self._screen
        first = screen.transcript.first_turn
        if self.session is None or first <= 1 or screen.transcript.is_filling:
            return
        messages = await screen.ask(screen.service.transcript, self.session.session_id)
        wanted = range(max(1, first - WINDOW_TURNS), first)
        earlier = [m for m in messages if m.turn in wanted or m.turn == 0]
        await screen.transcript.prepend([make_block(m, screen.now) for m in earlier])

    async def refresh_name(self) -> None:
        """The first message gives a chat its name."""
        if self.session is not None:
            session_id = self.session.session_id
            self.session = await self._screen.ask(self._screen.service.find_session, session_id)
            self.show_title()

    async def refresh_last_turn(self, running: RunningTurn) -> None:
        """Take over what is on disk now: ids, siblings, the text of a continued answer."""
        if self.session is None:
            return
        screen = self._screen
        session_id = self.session.session_id
        await self.refresh_name()
        for message in await screen.ask(screen.service.transcript, session_id, last_turns=1):
            await self._adopt(message, running)

    async def _adopt(self, message: TranscriptMessage, running: RunningTurn) -> None:
        if message.role == "user" and running.user is not None and running.user.is_attached:
            running.user.adopt(message)
            running.user.refresh_head()
        answer = running.answer
        if message.role == "assistant" and answer is not None and answer.is_attached:
            answer.adopt(message)
            await answer.settle(message.text, message.reasoning)
            answer.refresh_head()

    def last_user_message(self) -> UserMessage | None:
        block = self._screen.transcript.last_block(UserMessage)
        return block if isinstance(block, UserMessage) else None

    def last_answer(self) -> AnswerMessage | None:
        block = self._screen.transcript.last_block(AnswerMessage)
        return block if isinstance(block, AnswerMessage) else None

    def require_session(self) -> SessionSummary:
        if self.session is None:
            raise NotFoundError("This chat is empty.", "Say something first.")
        return self.session

    @property
    def name(self) -> str:
        return one_line(self.session.name) if self.session else "this chat"
