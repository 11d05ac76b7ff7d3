"""Shows the open chat: its messages, its title, its draft, and the turn that is being edited.

Which chat is open and what becomes of it is the business of `OpenChat`; this reads it in threads
and shows it. The transcript has the end of the path; earlier turns are fetched when asked for.
"""

from __future__ import annotations

import asyncio

from chatcache.chat.figures import decode
from chatcache.chat.views import TranscriptMessage
from chatcache.errors import ChatcacheError
from chatcache.formatting import model_name
from chatcache.frontend.open_chat import OpenChat
from chatcache.frontend.options import ChatOptions
from chatcache.frontend.remembered import NEW_CHAT, Drafts
from chatcache.tui.hints import hints
from chatcache.tui.messages import ChatShown
from chatcache.tui.panel.state import PanelState
from chatcache.tui.stage import Stage
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.bars import TitleBar
from chatcache.tui.widgets.composer import Composer
from chatcache.tui.widgets.message import MessageBlock, SystemMessage, UserMessage
from chatcache.tui.widgets.notices import Welcome
from chatcache.tui.widgets.transcript import WINDOW_TURNS, Transcript

WELCOME_KEYS = ["sessions", "fork", "model", "panel", "help"]


class ChatView:
    """The open chat as the screen shows it."""

    def __init__(
        self,
        stage: Stage,
        chat: OpenChat,
        options: ChatOptions,
        title: TitleBar,
        transcript: Transcript,
        composer: Composer,
        panel: PanelState,
    ) -> None:
        self._stage, self._chat, self._options = stage, chat, options
        self._title, self._transcript, self._composer = title, transcript, composer
        self._panel = panel
        self._drafts = Drafts(options.drafts_path)
        self._is_opened = asyncio.Event()
        self._draft_id = NEW_CHAT
        self._origin: str | None = None
        self.editing_turn: int | None = None

    # Opening

    async def open_first(self) -> None:
        """The chat named at the start, else the last one, else a new one."""
        options = self._options
        try:
            await self._stage.ask(
                self._chat.open_first, options.session_ref, options.last_chat_path
            )
            await self.show()
        except ChatcacheError as error:
            await self._show_welcome()
            await self._stage.show_error(error.message, error.hint)
        finally:
            self._is_opened.set()

    async def wait_opened(self) -> None:
        """Until it is decided which chat is shown first."""
        await self._is_opened.wait()

    async def show_later(self, sentence: str, hint: str) -> None:
        """Show an error below the messages, once there are any."""
        await self._is_opened.wait()
        await self._stage.show_error(sentence, hint)

    async def show(self, text: str | None = None) -> None:
        """Show the end of the open chat. `text` goes into the composer, else the draft left there.

        To be called whenever another chat was opened or this one has another path."""
        messages = await self._stage.ask(self._chat.messages, WINDOW_TURNS)
        origin = await self._stage.ask(self._chat.origin)
        self._keep_draft()
        self.end_editing()
        self._draft_id, self._origin = self._chat.session_id or NEW_CHAT, origin
        if messages:
            now = self._stage.now
            await self._transcript.show_blocks([make_block(message, now) for message in messages])
        else:
            await self._show_welcome()
        answers = {m.turn: decode(m.result_json, m.finish_reason) for m in messages}
        self._panel.restart({turn: known for turn, known in answers.items() if known is not None})
        self._composer.remember_all([m.text for m in messages if m.role == "user"])
        draft = self._drafts.take(self._draft_id)
        if self._is_opened.is_set() or not self._composer.text:  # what was typed before stays
            self._composer.set_text(draft if text is None else text)
        self._composer.focus()
        self.show_title()
        self._stage.refresh_status()
        self._stage.refresh_panel()
        self._stage.post_message(ChatShown())
        if messages and messages[-1].role == "user":
            await self._stage.show_note("This message has no answer yet.", "/regen answers it.")
        self._stage.run(self._transcript.fill_up())

    async def _show_welcome(self) -> None:
        keys = hints(WELCOME_KEYS, self._options.keys)
        await self._transcript.show_welcome(Welcome(self._panel.info, keys))

    async def ensure_session(self) -> None:
        """A new chat gets its row now, and shows its system prompt."""
        if self._chat.session is not None:
            return
        session = await self._stage.ask(self._chat.ensure_session)
        self._draft_id = session.session_id
        self.show_title()
        if self._chat.system_prompt:
            now = self._stage.now
            await self._transcript.add(
                SystemMessage(self._chat.system_prompt, created_at=now, now=now)
            )

    async def refresh(self) -> None:
        """The open chat may have another name, or have been deleted."""
        if await self._stage.ask(self._chat.refresh):
            self.show_title()
        else:
            await self.show_rest()

    async def show_rest(self) -> None:
        """Show what is left after a removal. What was written for a chat that is gone goes too."""
        if self._chat.session_id != self._draft_id:
            self.end_editing()
            self._composer.reset()
        await self.show()

    def show_title(self) -> None:
        session = self._chat.session
        is_append = session is not None and session.history_mode == "append"
        name = session.name if session else self._chat.new_name
        self._title.show_session(name, self._origin, is_append=is_append)

    def show_sampling(self) -> None:
        self._panel.sampling = tuple(self._chat.sampling.words())
        self._stage.refresh_panel()

    # Drafts

    def _keep_draft(self) -> None:
        if self.editing_turn is None and self._is_opened.is_set():
            self._drafts.keep(self._draft_id, self._composer.full_text)

    def save(self, queued: list[str]) -> None:
        """Keep over a restart what is written, what waits behind a running turn, and which chat
        this is."""
        self._chat.note_left(self._options.last_chat_path, self._stage.now)
        if not self._is_opened.is_set():
            return
        if self.editing_turn is None:
            waiting = [text for text in (*queued, self._composer.full_text) if text]
            self._drafts.keep(self._draft_id, "\n\n".join(waiting))
        self._drafts.save()

    # Editing

    def begin_editing(self, turn: int, text: str) -> None:
        self.editing_turn = turn
        self._composer.add_class("-editing")
        self._composer.border_title = f"editing turn {turn} · the original stays · Esc cancels"
        self._composer.set_text(text)
        self._composer.focus()

    def end_editing(self) -> int | None:
        """The turn that was being edited."""
        turn, self.editing_turn = self.editing_turn, None
        if turn is not None:
            self._composer.remove_class("-editing")
            self._composer.border_title = None
            self._composer.reset()
        return turn

    # Reading

    async def load_earlier(self) -> None:
        """Put the next piece of the past above what is shown."""
        first = self._transcript.first_turn
        if first <= 1 or self._transcript.is_filling:
            return
        messages = await self._stage.ask(self._chat.messages)
        wanted = range(max(1, first - WINDOW_TURNS), first)
        earlier = [m for m in messages if m.turn in wanted or m.turn == 0]
        await self._transcript.prepend([make_block(m, self._stage.now) for m in earlier])

    async def refresh_last_turn(
        self, user: UserMessage | None, answer: AnswerMessage | None
    ) -> None:
        """Take over what is on disk now: ids, siblings, the text of a continued answer."""
        await self.refresh()
        for message in await self._stage.ask(self._chat.messages, 1):
            await self._adopt(message, user, answer)

    async def _adopt(
        self, message: TranscriptMessage, user: UserMessage | None, answer: AnswerMessage | None
    ) -> None:
        if message.role == "user" and user is not None and user.is_attached:
            user.adopt(message)
            user.refresh_head()
        if message.role == "assistant" and answer is not None and answer.is_attached:
            answer.adopt(message)
            await answer.settle(message.text, message.reasoning)
            answer.refresh_head()


def make_block(message: TranscriptMessage, now: float) -> MessageBlock:
    """The widget for a stored message."""
    block: MessageBlock
    if message.role == "system":
        block = SystemMessage(message.text, created_at=message.created_at, now=now)
    elif message.role == "user":
        block = UserMessage(message.turn, message.text, created_at=message.created_at, now=now)
    else:
        block = AnswerMessage(
            message.turn,
            message.text,
            model=model_name(message.model or ""),
            created_at=message.created_at,
            now=now,
            reasoning=message.reasoning or "",
            figures=decode(message.result_json, message.finish_reason),
            finish_reason=message.finish_reason,
        )
    block.adopt(message)
    return block
