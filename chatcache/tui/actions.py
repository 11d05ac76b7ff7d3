"""What each command does. One method per command of the registry, named `_do_ID`.

Commands change the chat through the service, in threads; screens that ask something are awaited.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatcache.backends.base import SamplingParams
from chatcache.chat.views import ForkResult
from chatcache.errors import UsageError, did_you_mean
from chatcache.tui import figures, layout, reports
from chatcache.tui.clipboard import copy_natively
from chatcache.tui.formatting import duration, plural
from chatcache.tui.screens.confirm import ConfirmScreen
from chatcache.tui.screens.fork import ForkChoice, ForkScreen
from chatcache.tui.screens.help import HelpScreen
from chatcache.tui.screens.history import HistoryScreen
from chatcache.tui.screens.sessions import SessionsScreen
from chatcache.tui.screens.system_prompt import SystemPromptScreen
from chatcache.tui.screens.tree import TreeScreen
from chatcache.tui.widgets.answer import AnswerMessage

if TYPE_CHECKING:
    from chatcache.tui.screens.chat import ChatScreen

Handler = Callable[[str], Coroutine[Any, Any, None]]


class Actions:
    """Runs commands for the chat screen."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen

    def run(self, command_id: str, argument: str = "") -> None:
        """Run a command; what goes wrong is shown as one line."""
        self._screen.run_async(self.handler(command_id)(argument))

    def handler(self, command_id: str) -> Handler:
        handler: Handler = getattr(self, f"_do_{command_id}")
        return handler

    def _require_idle(self) -> None:
        if self._screen.turns.running is not None:
            raise UsageError("An answer is being written.", "Esc stops it and keeps what is there.")

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

    async def _do_system(self, argument: str) -> None:
        screen = self._screen
        system = await screen.chats.current_system()
        if argument:
            text: str | None = argument
        else:
            cost = reports.system_change_cost(screen.panel_state.figures)
            text = await screen.app.push_screen_wait(SystemPromptScreen(system or "", cost))
        if text is None or text == (system or ""):
            return
        self._require_idle()
        await screen.chats.change_system(text or None)

    async def _do_set(self, argument: str) -> None:
        screen = self._screen
        if not argument:
            await screen.show_note(reports.sampling(screen.sampling, screen.think))
            return
        name, _, value = argument.replace("=", " ").partition(" ")
        if name == "think":
            screen.think = _parse_switch(value.strip())
        else:
            screen.sampling = _with_sampling(screen.sampling, name, value.strip())
        screen.toast(f"{name}: {value.strip()}. The cache is not touched by it.")

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

    async def _do_editor(self, argument: str) -> None:
        self._screen.composer.edit_outside()

    async def _do_history(self, argument: str) -> None:
        screen = self._screen
        earlier = list(dict.fromkeys(reversed(screen.composer.earlier)))
        text = await screen.app.push_screen_wait(HistoryScreen(earlier, argument))
        if text is not None:
            screen.composer.set_text(text)

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
                is_busy=screen.turns.running is not None,
                query=argument,
                clock=screen.options.clock,
            )
        )
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
        chosen = await screen.app.push_screen_wait(
            TreeScreen(screen.service, current.session_id, screen.now)
        )
        if chosen is not None and chosen != current.session_id:
            self._require_idle()
            await screen.chats.open_by_reference(chosen)

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
        messages = await screen.ask(screen.service.transcript, session.session_id)
        path = Path(argument or reports.file_name(session.name)).expanduser()
        await screen.ask(reports.write_new, path, reports.as_markdown(session.name, messages))
        screen.toast(f"Written to {path}.")

    # View

    async def _do_panel(self, argument: str) -> None:
        screen = self._screen
        mode = layout.as_panel_mode(argument) if argument else None
        if argument and mode is None:
            raise UsageError(f"There is no panel mode {argument!r}.", "Say full, compact or off.")
        screen.set_panel_mode(mode or layout.next_panel_mode(screen.shown_panel_mode))

    async def _do_stats(self, argument: str) -> None:
        screen = self._screen
        session = screen.chats.require_session()
        messages = await screen.ask(screen.service.transcript, session.session_id)
        stored = [figures.from_json(message.result_json) for message in messages]
        await screen.show_note(reports.totals([one for one in stored if one is not None]))

    async def _do_model(self, argument: str) -> None:
        info = self._screen.status.info
        if info is None:
            raise UsageError("The model is not loaded yet.", "Wait for the bar at the bottom.")
        await self._screen.show_note(reports.model(info))

    async def _do_theme(self, argument: str) -> None:
        app = self._screen.app
        if not argument:
            app.search_themes()
        elif argument in app.available_themes:
            app.theme = argument
        else:
            hint = did_you_mean(argument, app.available_themes) or "/theme shows them all."
            raise UsageError(f"There is no theme {argument!r}.", hint)

    async def _do_help(self, argument: str) -> None:
        await self._screen.app.push_screen_wait(HelpScreen(self._screen.options.keys))

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

    async def _inspect(self, turn: int) -> None:
        answer = self._screen.transcript.answer_of(turn)
        if isinstance(answer, AnswerMessage) and answer.figures is not None:
            self._screen.panel_state.show(answer.figures, turn)
            if self._screen.shown_panel_mode != "full":
                self._screen.set_panel_mode("full")
            self._screen.refresh_panel()

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


def _parse_switch(value: str) -> bool | None:
    known = {"on": True, "off": False, "default": None, "true": True, "false": False}
    if value not in known:
        raise UsageError(f"{value!r} is neither on, off nor default.", "Say /set think off.")
    return known[value]


def _with_sampling(sampling: SamplingParams, name: str, value: str) -> SamplingParams:
    """The parameters with one changed. Raises UsageError naming what is wrong."""
    names = [parameter.name for parameter in fields(SamplingParams)]
    if name not in names:
        hint = did_you_mean(name, [*names, "think"]) or f"There are {', '.join(names)} and think."
        raise UsageError(f"There is no parameter {name!r}.", hint)
    if value == "default":
        return replace(sampling, **{name: None})
    is_whole = name in ("top_k", "seed", "max_new_tokens")
    try:
        number: Any = int(value) if is_whole else float(value)
    except ValueError:
        what = "a whole number" if is_whole else "a number"
        raise UsageError(f"{name} takes {what}, not {value!r}.", "Or say default.") from None
    return replace(sampling, **{name: number})
