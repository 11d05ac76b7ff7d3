"""Shows the open chat: its messages, its title, its draft, and the turn that is being edited.

Which chat is open and what becomes of it is the business of `OpenChat`; this reads it in threads
and shows it. The transcript has the end of the path; earlier turns are fetched when asked for.
"""

from __future__ import annotations

import asyncio

from chatcache.chat.figures import decode
from chatcache.chat.views import TranscriptMessage
from chatcache.errors import ChatcacheError
from chatcache.formatting import model_label
from chatcache.frontend.open_chat import OpenChat
from chatcache.frontend.options import ChatOptions
from chatcache.frontend.remembered import NEW_CHAT
from chatcache.tui.hints import hints
from chatcache.tui.messages import ChatShown
from chatcache.tui.panel.state import PanelState
from chatcache.tui.parts.drafts import DraftKeeper
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
        drafts: DraftKeeper,
    ) -> None:
        self._stage, self._chat, self._options = stage, chat, options
        self._title, self._transcript, self._composer = title, transcript, composer
        self._panel, self._drafts = panel, drafts
        self._is_opened = asyncio.Event()
        self._origin: str | None = None
        self._linted: tuple[str, str | None] | None = None

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
        self._origin = origin
        if messages:
            now = self._stage.now
            await self._transcript.show_blocks([make_block(message, now) for message in messages])
        else:
            await self._show_welcome()
        answers = {m.turn: decode(m.result_json, m.finish_reason) for m in messages}
        self._panel.restart({turn: known for turn, known in answers.items() if known is not None})
        self._composer.recall.replace([m.text for m in messages if m.role == "user"])
        self._show_written(text)
        self._composer.focus()
        self.show_title()
        self._stage.refresh_status()
        self._stage.refresh_panel()
        self._stage.post_message(ChatShown())
        if messages and messages[-1].role == "user":
            await self._stage.show_note("This message has no answer yet.", "/regen answers it.")
        self._stage.run(self._transcript.fill_up())
        self._stage.run(self._lint())

    async def _lint(self) -> None:
        """Have the panel say what makes the chat's beginning change; once for each of its tips."""
        session = self._chat.session
        place = (session.session_id, session.tip) if session is not None else None
        if place != self._linted:
            self._linted = place
            words = await self._stage.ask(self._finding)
            if self._linted == place and words != self._panel.lint:
                self._panel.lint = words
                self._stage.refresh_panel()

    def _finding(self) -> str:
        from chatcache.frontend.lint.finding import panel_line  # not for the first chat shown
        from chatcache.frontend.lint.look import look_at_open

        return panel_line(look_at_open(self._chat.service, self._chat.session))

    def _show_written(self, text: str | None) -> None:
        """What is written here, and behind it what was typed for this chat while it was opened."""
        ahead = self._drafts.leave()
        self._composer.end_editing()
        draft = self._drafts.enter(self._chat.session_id or NEW_CHAT)
        written = draft if text is None else text
        if ahead and (written or self._composer.full_text != ahead):
            written = f"{written}\n\n{ahead}" if written else ahead
        elif ahead:
            return  # it stands there already, with the cursor in it
        self._composer.set_text(written, is_message=text is not None)

    async def _show_welcome(self) -> None:
        keys = hints(WELCOME_KEYS, self._options.keys)
        await self._transcript.show_welcome(Welcome(self._panel.info, keys))

    async def ensure_session(self) -> None:
        """A new chat gets its row now, and shows its system prompt."""
        if self._chat.session is not None:
            return
        session = await self._stage.ask(self._chat.ensure_session)
        self._drafts.got_row(session.session_id)
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
        if self._chat.session_id != self._drafts.session_id:
            self._composer.end_editing()
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

    def note_left(self) -> None:
        """Keep over a restart which chat this is."""
        self._chat.note_left(self._options.last_chat_path, self._stage.now)

    def begin_editing(self, turn: int, text: str) -> None:
        self._composer.begin_editing(turn, text)
        self._composer.focus()

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
        self._stage.run(self._lint())

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
            model=model_label(message.model or "", message.quantization),
            created_at=message.created_at,
            now=now,
            reasoning=message.reasoning or "",
            figures=decode(message.result_json, message.finish_reason),
            finish_reason=message.finish_reason,
        )
    block.adopt(message)
    return block
