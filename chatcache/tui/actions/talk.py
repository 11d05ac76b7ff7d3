"""The commands on what is being said: stop, go on, edit, fork, other answers, copy.

Owns the keys on one message as well. What each means is said by the open chat.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from textual.app import App

from chatcache.errors import UsageError
from chatcache.formatting import plural
from chatcache.frontend.changes import Forked
from chatcache.frontend.open_chat import as_turn, copyable
from chatcache.tui.clipboard import copy_natively
from chatcache.tui.messages import MessageActed
from chatcache.tui.parts.wiring import ChatParts
from chatcache.tui.screens.dialogs import ConfirmScreen
from chatcache.tui.screens.fork import ForkScreen
from chatcache.tui.stage import Handler
from chatcache.tui.widgets.answer import AnswerMessage
from chatcache.tui.widgets.message import UserMessage


class TalkActions:
    def __init__(self, app: App[Any], parts: ChatParts) -> None:
        self._app, self._stage, self._chat = app, parts.stage, parts.chat
        self._view, self._turns, self._transcript = parts.view, parts.turns, parts.transcript
        self.handlers: dict[str, Handler] = {
            "stop": self._stop,
            "continue": self._continue,
            "regenerate": self._regenerate,
            "edit": self._edit,
            "undo": self._undo,
            "fork": self._fork,
            "variant": self._variant,
            "copy": self._copy,
        }

    async def _stop(self, argument: str) -> None:
        if not self._turns.stop():
            self._stage.toast("Nothing is being answered.")

    async def _continue(self, argument: str) -> None:
        self._chat.require_idle()
        self._chat.require_session()
        self._turns.continue_answer()

    async def _regenerate(self, argument: str) -> None:
        self._chat.require_idle()
        self._chat.require_session()
        self._turns.regenerate()

    async def _edit(self, argument: str) -> None:
        question = await self._stage.ask(self._chat.question_to_edit)
        if argument:
            self._turns.edit(question.turn, argument)
        else:
            self._view.begin_editing(question.turn, question.text)

    async def _undo(self, argument: str) -> None:
        await self._show_fork(await self._stage.ask(self._chat.undo))

    async def _fork(self, argument: str) -> None:
        session = self._chat.require_session()
        if argument:
            await self.fork_at(as_turn(argument))
            return
        choice = await self._stage.push_screen_wait(
            ForkScreen(session.name, self._chat.fork_points)
        )
        if choice is not None:
            await self.fork_at(choice.at_turn, choice.text)

    async def fork_at(self, turn: int | None, text: str | None = None) -> None:
        """Go on after a turn (None: the last one) in a new chat; `text` goes into the composer."""
        await self._show_fork(await self._stage.ask(self._chat.fork, turn, text))

    async def _show_fork(self, forked: Forked) -> None:
        await self._view.show(forked.text)
        self._stage.toast(forked.words)

    async def _variant(self, argument: str) -> None:
        chosen = await self._stage.ask(self._chat.variant, argument)
        await self._view.show()
        self._stage.toast(chosen.words)

    async def _copy(self, argument: str) -> None:
        answer = self._transcript.last_block(AnswerMessage)
        if answer is None:
            raise UsageError("There is no answer to copy yet.", "Say something first.")
        await self._copy_text(answer.text, is_code=argument == "code")

    async def _copy_text(self, text: str, *, is_code: bool) -> None:
        copied = copyable(text, is_code=is_code)
        self._app.copy_to_clipboard(copied)
        await self._stage.ask(copy_natively, copied)
        self._stage.toast(f"Copied {plural(len(copied), 'character')}.")

    # On one message

    def act_on_message(self, message: MessageActed) -> None:
        turn, node_id = message.turn, message.node_id
        acts: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "edit": lambda: self._edit_turn(turn),
            "regenerate": lambda: self._regenerate_turn(turn),
            "fork": lambda: self.fork_at(turn),
            "copy": lambda: self._copy_focused(is_code=False),
            "copy_code": lambda: self._copy_focused(is_code=True),
            "older": lambda: self._switch_sibling(node_id, -1),
            "newer": lambda: self._switch_sibling(node_id, 1),
            "delete": lambda: self._delete_from(turn, node_id),
        }
        self._stage.run(acts[message.action]())

    async def _edit_turn(self, turn: int) -> None:
        self._chat.require_idle()
        user = self._transcript.user_message(turn)
        if user is not None:
            self._view.begin_editing(turn, user.text)

    async def _regenerate_turn(self, turn: int) -> None:
        last = self._transcript.last_block(UserMessage)
        if last is None or last.turn != turn:
            raise UsageError(
                "Only the last answer can be given once more.", "Press f on this one to fork here."
            )
        await self._regenerate("")

    async def _copy_focused(self, *, is_code: bool) -> None:
        block = self._transcript.focused_block
        if block is not None:
            await self._copy_text(block.text, is_code=is_code)

    async def _switch_sibling(self, node_id: str | None, step: int) -> None:
        self._chat.require_idle()
        if node_id is None:
            return
        chosen = await self._stage.ask(self._chat.variant_beside, node_id, step)
        if chosen is None:
            self._stage.toast("There is no other variant on this side.")
        else:
            await self._view.show()

    async def _delete_from(self, turn: int, node_id: str | None) -> None:
        """Delete a message and all below it, in this chat and in those that forked behind it."""
        self._chat.require_idle()
        if node_id is None or turn < 1:
            raise UsageError("The system prompt stays.", "/system changes it.")
        planned = await self._stage.ask(self._chat.plan_removal, node_id)
        question = f"Delete turn {turn} from here on?"
        chats = f" {plural(len(planned.deleted), 'chat')} too." if planned.deleted else ""
        detail = f"{plural(len(planned.nodes), 'message')}, with all K and V.{chats}"
        dialog = ConfirmScreen(question, f"{detail} This cannot be undone.", "Delete")
        if await self._stage.push_screen_wait(dialog):
            await self._stage.ask(self._chat.remove, node_id)
            await self._view.show_rest()
