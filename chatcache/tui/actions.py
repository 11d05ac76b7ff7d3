"""What each command does. One method per command of the registry, named `_do_ID`.

Commands change the chat through the service, in threads; screens that ask something are awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from chatcache.chat.views import ForkResult
from chatcache.errors import UsageError
from chatcache.formatting import duration, plural, size
from chatcache.frontend import exports, reports
from chatcache.frontend.variants import which_variant
from chatcache.tui.clipboard import copy_natively
from chatcache.tui.model_actions import ModelActions
from chatcache.tui.prompt_actions import PromptActions
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.fork import ForkChoice, ForkScreen
from chatcache.tui.screens.sessions import SessionsScreen
from chatcache.tui.screens.tree import TreeScreen
from chatcache.tui.view_actions import ViewActions
from chatcache.tui.writing_actions import WritingActions

Handler = Callable[[str], Coroutine[Any, Any, None]]


class Actions(PromptActions, WritingActions, ModelActions, ViewActions):
    """Runs commands for the chat screen."""

    def handler(self, command_id: str) -> Handler:
        handler: Handler = getattr(self, f"_do_{command_id}")
        return handler

    # Conversation

    async def _do_stop(self, argument: str) -> None:
        if not self._screen.turns.stop():
            self._screen.toast("Nothing is being answered.")

    async def _do_continue(self, argument: str) -> None:
        self._require_idle()
        self._screen.chats.require_session()
        self._screen.turns.continue_answer()

    async def _do_regenerate(self, argument: str) -> None:
        self._require_idle()
        self._screen.chats.require_session()
        self._screen.turns.regenerate()

    async def _do_edit(self, argument: str) -> None:
        self._require_idle()
        user = self._screen.chats.last_user_message()
        if user is None:
            raise UsageError("There is no message to edit yet.", "Say something first.")
        if argument:
            self._screen.turns.edit(user.turn, argument)
        else:
            self._screen.chats.begin_editing(user.turn, user.text)

    async def _do_undo(self, argument: str) -> None:
        self._require_idle()
        user = self._screen.chats.last_user_message()
        if user is None:
            raise UsageError("There is no turn to go back over.", "")
        await self._fork(ForkChoice(user.turn - 1, user.text))

    async def _do_fork(self, argument: str) -> None:
        session = self._screen.chats.require_session()
        if argument:
            if not argument.isdecimal():
                raise UsageError(f"{argument!r} is no turn.", "Say /fork 3, or /fork for a list.")
            await self._fork(ForkChoice(int(argument), None))
            return
        service = self._screen.service
        picker = ForkScreen(session.name, lambda: service.fork_points(session.session_id))
        choice = await self._screen.app.push_screen_wait(picker)
        if choice is not None:
            await self._fork(choice)

    async def _fork(self, choice: ForkChoice) -> None:
        self._require_idle()
        screen = self._screen
        session = screen.chats.require_session()
        result = await screen.ask(screen.service.fork, session.session_id, at_turn=choice.at_turn)
        forked = await screen.ask(screen.service.find_session, result.session_id)
        await screen.chats.open(forked, text=choice.text)
        screen.toast(_fork_words(result, session.name))

    async def _do_variant(self, argument: str) -> None:
        """Another answer to the last message: the next one, or the one with this number."""
        self._require_idle()
        screen = self._screen
        answer = screen.chats.last_answer()
        session = screen.chats.require_session()
        if answer is None or answer.node_id is None:
            raise UsageError("There is no answer yet.", "Say something first.")
        variants = await screen.ask(screen.service.variants, session.session_id, answer.node_id)
        here = variants.index(answer.node_id)
        wanted = which_variant(argument, here, len(variants))
        await screen.ask(screen.service.switch_sibling, session.session_id, variants[wanted])
        await screen.chats.reload()
        screen.toast(f"Answer {wanted + 1} of {len(variants)}.")

    async def _do_copy(self, argument: str) -> None:
        answer = self._screen.chats.last_answer()
        if answer is None:
            raise UsageError("There is no answer to copy yet.", "Say something first.")
        await self._copy(
            reports.last_code_block(answer.text) if argument == "code" else answer.text
        )

    async def _copy(self, text: str) -> None:
        if not text:
            raise UsageError("There is no code block in this answer.", "/copy takes all of it.")
        screen = self._screen
        screen.app.copy_to_clipboard(text)
        await screen.ask(copy_natively, text)
        screen.toast(f"Copied {plural(len(text), 'character')}.")

    # Chats

    async def _do_new(self, argument: str) -> None:
        self._require_idle()
        await self._screen.chats.start_new(argument or None)

    async def _do_sessions(self, argument: str) -> None:
        screen = self._screen
        current = screen.chats.session
        chosen = await screen.app.push_screen_wait(
            SessionsScreen(
                screen.service,
                current.session_id if current else None,
                is_answering=screen.turns.running is not None,
                query=argument,
                clock=screen.options.clock,
                on_highlight=screen.idle.highlighted,
            )
        )
        screen.idle.list_left(is_opening=chosen is not None)
        if chosen is not None:
            self._require_idle()
            await screen.chats.open_by_reference(chosen)
        elif current is not None:
            await screen.chats.check_current()

    async def _do_find(self, argument: str) -> None:
        await self._do_sessions(argument)

    async def _do_tree(self, argument: str) -> None:
        screen = self._screen
        current = screen.chats.require_session()
        is_answering = screen.turns.running is not None
        picker = TreeScreen(
            screen.service, current.session_id, screen.now, is_answering=is_answering
        )
        choice = await screen.app.push_screen_wait(picker)
        if choice is None:
            return
        if choice.session_id is None or choice.session_id == current.session_id:
            if choice.has_changed:
                await screen.chats.check_current()
                await screen.chats.reload()
        else:
            await screen.chats.open_by_reference(choice.session_id)
        if choice.fork_turn is not None:
            await self._fork(ForkChoice(choice.fork_turn, None))

    async def _do_switch(self, argument: str) -> None:
        self._require_idle()
        if not argument:
            await self._do_sessions("")
        else:
            await self._screen.chats.open_by_reference(argument)

    async def _do_rename(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        if not argument:
            raise UsageError("The new name is missing.", "Say /rename NAME.")
        await screen.ask(screen.service.rename, session.session_id, argument)
        await screen.chats.check_current()
        screen.toast(f"This chat is now called “{argument}”.")

    async def _do_delete(self, argument: str) -> None:
        self._require_idle()
        screen = self._screen
        session = screen.chats.require_session()
        question = f"Delete “{screen.chats.name}”?"
        detail = (
            f"{plural(session.num_turns, 'turn')}; turns that other chats share stay with them."
        )
        if await screen.app.push_screen_wait(ConfirmScreen(question, detail, "Delete")):
            await screen.ask(screen.service.delete, session.session_id)
            await screen.chats.forget_current()

    async def _do_export(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        work = partial(exports.export_chat, screen.service, session, argument)
        if written := await screen.work.run("exporting", work):
            path, num_bytes = written
            screen.toast(f"Written to {path}, {size(num_bytes)}.")

    async def _do_import(self, argument: str) -> None:
        self._require_idle()
        if not argument:
            raise UsageError("The file is missing.", "Say /import PATH.")
        screen = self._screen
        work = partial(exports.import_chat, screen.service, argument)
        if session := await screen.work.run("importing", work):
            await screen.chats.open(session)
            screen.toast(f"Imported {plural(session.num_turns, 'turn')}.")

    # View

    async def _do_quit(self, argument: str) -> None:
        await self._screen.app.action_quit()

    # On one message

    def act_on_message(self, action: str, turn: int, node_id: str | None) -> None:
        acts: dict[str, Callable[[], Awaitable[Any]]] = {
            "edit": lambda: self._edit_turn(turn),
            "regenerate": lambda: self._regenerate_turn(turn),
            "fork": lambda: self._fork(ForkChoice(turn, None)),
            "copy": lambda: self._copy_focused(is_code=False),
            "copy_code": lambda: self._copy_focused(is_code=True),
            "inspect": lambda: self._inspect(turn),
            "older": lambda: self._switch_sibling(node_id, -1),
            "newer": lambda: self._switch_sibling(node_id, 1),
            "delete": lambda: self._delete_from(turn, node_id),
        }

        async def act() -> None:
            await acts[action]()

        self._screen.run_async(act())

    async def _edit_turn(self, turn: int) -> None:
        self._require_idle()
        user = self._screen.transcript.user_message(turn)
        if user is not None:
            self._screen.chats.begin_editing(turn, user.text)

    async def _regenerate_turn(self, turn: int) -> None:
        last = self._screen.chats.last_user_message()
        if last is None or last.turn != turn:
            raise UsageError(
                "Only the last answer can be given once more.", "Press f on this one to fork here."
            )
        await self._do_regenerate("")

    async def _copy_focused(self, *, is_code: bool) -> None:
        block = self._screen.transcript.focused_block
        if block is not None:
            await self._copy(reports.last_code_block(block.text) if is_code else block.text)

    async def _delete_from(self, turn: int, node_id: str | None) -> None:
        """Delete a message and all below it, in this chat and in those that forked behind it."""
        self._require_idle()
        screen = self._screen
        session = screen.chats.require_session()
        if node_id is None or turn < 1:
            raise UsageError("The system prompt stays.", "/system changes it.")
        tree, session_id = screen.service.tree, session.session_id
        planned = await screen.ask(tree.plan_delete, session_id, node_id)
        question = f"Delete turn {turn} from here on?"
        chats = f" {plural(len(planned.deleted), 'chat')} too." if planned.deleted else ""
        detail = f"{plural(len(planned.nodes), 'message')}, with all K and V.{chats}"
        dialog = ConfirmScreen(question, f"{detail} This cannot be undone.", "Delete")
        if await screen.app.push_screen_wait(dialog):
            await screen.ask(tree.delete, session_id, node_id)
            await screen.chats.check_current()
            await screen.chats.reload()

    async def _switch_sibling(self, node_id: str | None, step: int) -> None:
        self._require_idle()
        screen = self._screen
        session = screen.chats.require_session()
        if node_id is None:
            return
        variants = await screen.ask(screen.service.variants, session.session_id, node_id)
        index = variants.index(node_id) + step if node_id in variants else -1
        if not 0 <= index < len(variants):
            screen.toast("There is no other variant on this side.")
            return
        await screen.ask(screen.service.switch_sibling, session.session_id, variants[index])
        await screen.chats.reload()


def _fork_words(result: ForkResult, origin: str) -> str:
    shared = f"It shares {result.shared_tokens:,} tokens, nothing was copied"
    return f"Forked in {duration(result.elapsed_ms)}. {shared}; “{origin}” is as it was."
